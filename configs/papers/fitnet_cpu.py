"""`fitnet.py` on 2 cores: HAM10000 at 200x150, 64 px, EfficientNet-Lite0 as teacher.

python -m mela_jax.main --config=configs/papers/fitnet_cpu.py --workdir=runs/fitnet_cpu
"""

from ml_collections import ConfigDict

from configs.papers import cpu, fitnet


def get_config() -> ConfigDict:
    """Return the configuration."""
    return cpu.shrink(fitnet.get_config())
