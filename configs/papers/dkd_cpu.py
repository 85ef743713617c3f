"""`dkd.py` on 2 cores: HAM10000 at 200x150, 64 px, EfficientNet-Lite0 as teacher.

python -m mela_jax.main --config=configs/papers/dkd_cpu.py --workdir=runs/dkd_cpu

Not run to the end yet.
"""

from configs.papers import cpu, dkd

get_config = cpu.shrunk(dkd.get_config)
