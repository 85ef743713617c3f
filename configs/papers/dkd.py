r"""Diverse knowledge on seven classes, the D-KD of SSD-KD.

Wang et al. 2022 (doi:10.1016/j.media.2022.102693): logits, relations between images and
relations between channels,

    0.5 cross-entropy (class-weighted) + 0.5 T^2 KL(T = 5)
        + 25 distances + 50 angles + 1000 channels

    python -m mela_jax.main --config=configs/papers/dkd.py --workdir=runs/dkd \
        --config.data.dir=/path/to/HAM10000

What differs from the paper is in `blkd.py`. For a GPU; not run to the end yet.
`dkd_cpu.py` is its size for 2 cores.
"""

from ml_collections import ConfigDict

from configs.papers import crkd


def get_config() -> ConfigDict:
    """Return the configuration."""
    c = crkd.get_config()
    c.distill.weights.distance = 25.0
    c.distill.weights.angle = 50.0
    return c
