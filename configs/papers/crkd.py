r"""Channel relations on seven classes, the baseline "CRKD" of SSD-KD.

Wang et al. 2022 (doi:10.1016/j.media.2022.102693); the weights are those that its D-KD
gives these terms:

    0.5 cross-entropy (class-weighted) + 0.5 T^2 KL(T = 5) + 1000 channels

    python -m mela_jax.main --config=configs/papers/crkd.py --workdir=runs/crkd \
        --config.data.dir=/path/to/HAM10000

What differs from the paper is in `blkd.py`. For a GPU; not run to the end yet.
`crkd_cpu.py` is its size for 2 cores.
"""

from ml_collections import ConfigDict

from configs.papers import blkd


def get_config() -> ConfigDict:
    """Return the configuration."""
    c = blkd.get_config()
    c.distill.weights.channel = 1000.0
    return c
