r"""Relations between images on seven classes, the baseline "RKD" of SSD-KD.

Park et al., "Relational Knowledge Distillation", CVPR 2019 (arXiv:1904.05068), as
compared in SSD-KD (doi:10.1016/j.media.2022.102693):

    25 distances + 50 angles + 3 cross-entropy (class-weighted)

    python -m mela_jax.main --config=configs/papers/rkd.py --workdir=runs/rkd \
        --config.data.dir=/path/to/HAM10000

What differs from the paper is in `blkd.py`. For a GPU; not run to the end yet.
`rkd_cpu.py` is its size for 2 cores.
"""

from ml_collections import ConfigDict

from configs.papers import blkd


def get_config() -> ConfigDict:
    """Return the configuration."""
    c = blkd.get_config()
    c.distill.alpha = 0.0
    c.distill.weights.logits = 3.0
    c.distill.weights.distance = 25.0
    c.distill.weights.angle = 50.0
    return c
