r"""Decoupled distillation on seven classes.

Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022 (arXiv:2203.08679), which no
paper on melanoma has tried:

    cross-entropy (class-weighted) + T^2 (KL of the label's class + 8 KL of others)

    python -m mela_jax.main --config=configs/papers/decoupled.py --workdir=runs/parts \
        --config.data.dir=/path/to/HAM10000

T is 4, as in the paper; the rest is that of `blkd.py`. For a GPU; not run to the end
yet. `decoupled_cpu.py` is its size for 2 cores.
"""

from ml_collections import ConfigDict

from configs.papers import blkd


def get_config() -> ConfigDict:
    """Return the configuration."""
    c = blkd.get_config()
    c.distill.alpha = 0.0
    c.distill.temperature = 4.0
    c.distill.weights.decoupled = 1.0
    return c
