r"""Hints on seven classes, the baseline "FitNet" of SSD-KD.

Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015 (arXiv:1412.6550), as
compared in SSD-KD (doi:10.1016/j.media.2022.102693):

    mean squared difference of the last maps, the student's through a 1x1 convolution,
    batch norm and ReLU, + 0.01 cross-entropy (class-weighted)

    python -m mela_jax.main --config=configs/papers/fitnet.py --workdir=runs/fitnet \
        --config.data.dir=/path/to/HAM10000

What differs from the paper is in `blkd.py`. For a GPU; not run to the end yet.
`fitnet_cpu.py` is its size for 2 cores.
"""

from ml_collections import ConfigDict

from configs.papers import blkd


def get_config() -> ConfigDict:
    """Return the configuration."""
    c = blkd.get_config()
    c.distill.alpha = 0.0
    c.distill.weights.logits = 0.01
    c.distill.weights.hint = 1.0
    return c
