"""`decoupled.py` on 2 cores: HAM10000 at 200x150, 64 px, EfficientNet-Lite0 teaches.

python -m mela_jax.main --config=configs/papers/decoupled_cpu.py --workdir=runs/parts

Not run to the end yet.
"""

from configs.papers import cpu, decoupled

get_config = cpu.shrunk(decoupled.get_config)
