"""`crkd.py` on 2 cores: HAM10000 at 200x150, 64 px, EfficientNet-Lite0 as teacher.

python -m mela_jax.main --config=configs/papers/crkd_cpu.py --workdir=runs/crkd_cpu

Not run to the end yet.
"""

from configs.papers import cpu, crkd

get_config = cpu.shrunk(crkd.get_config)
