"""`blkd.py` on 2 cores: HAM10000 at 200x150, 64 px, EfficientNet-Lite0 as teacher.

python -m mela_jax.main --config=configs/papers/blkd_cpu.py --workdir=runs/blkd_cpu
"""

from ml_collections import ConfigDict

from configs.papers import blkd, cpu


def get_config() -> ConfigDict:
    """Return the configuration."""
    return cpu.shrink(blkd.get_config())
