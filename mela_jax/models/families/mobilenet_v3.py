"""MobileNetV3-Small and -Large, number for number those of keras.applications.

Howard et al., "Searching for MobileNetV3", ICCV 2019 (arXiv:1905.02244). Width 1.0,
not "minimalistic". Keras pads by hand before a stride-2 depthwise convolution
(`correct_pad`: k//2 on both sides of an odd extent, one less at the start of an
even one). For stride 2 that is TensorFlow's SAME at every size, so SAME is used
throughout and an exported graph holds no padding operation.

Batch norm's momentum in Keras is 0.999, made for millions of steps: after the few
thousand of a fine-tuning run it would still hold mostly the initial statistics. Here it
is 0.99.
"""

import functools
from collections.abc import Iterator

import jax
from jax.nn import hard_swish, relu

from mela_jax.models.eight_bits import Int8
from mela_jax.models.layers import ROUNDING, Block, InvertedResidualNet, round_filters
from mela_jax.models.registry import KerasLayer, KerasWeights, Network

STEM_FILTERS = 16

SMALL = (
    Block(1, 16, 3, 2, relu, squeeze_excite=True),
    Block(72 / 16, 24, 3, 2, relu),
    Block(88 / 24, 24, 3, 1, relu),
    Block(4, 40, 5, 2, hard_swish, squeeze_excite=True),
    Block(6, 40, 5, 1, hard_swish, squeeze_excite=True),
    Block(6, 40, 5, 1, hard_swish, squeeze_excite=True),
    Block(3, 48, 5, 1, hard_swish, squeeze_excite=True),
    Block(3, 48, 5, 1, hard_swish, squeeze_excite=True),
    Block(6, 96, 5, 2, hard_swish, squeeze_excite=True),
    Block(6, 96, 5, 1, hard_swish, squeeze_excite=True),
    Block(6, 96, 5, 1, hard_swish, squeeze_excite=True),
)

LARGE = (
    Block(1, 16, 3, 1, relu),
    Block(4, 24, 3, 2, relu),
    Block(3, 24, 3, 1, relu),
    Block(3, 40, 5, 2, relu, squeeze_excite=True),
    Block(3, 40, 5, 1, relu, squeeze_excite=True),
    Block(3, 40, 5, 1, relu, squeeze_excite=True),
    Block(6, 80, 3, 2, hard_swish),
    Block(2.5, 80, 3, 1, hard_swish),
    Block(2.3, 80, 3, 1, hard_swish),
    Block(2.3, 80, 3, 1, hard_swish),
    Block(6, 112, 3, 1, hard_swish, squeeze_excite=True),
    Block(6, 112, 3, 1, hard_swish, squeeze_excite=True),
    Block(6, 160, 5, 2, hard_swish, squeeze_excite=True),
    Block(6, 160, 5, 1, hard_swish, squeeze_excite=True),
    Block(6, 160, 5, 1, hard_swish, squeeze_excite=True),
)


def _normalise(image: jax.Array) -> jax.Array:
    return image / 127.5 - 1.0


# Of a block: Keras's name after the prefix, class, module.
_KERAS_PARTS = (
    ("expand", "conv2d", "expand_conv"),
    ("expand_bn", "batch_normalization", "expand_bn"),
    ("depthwise", "depthwise_conv2d", "depthwise"),
    ("depthwise_bn", "batch_normalization", "depthwise_bn"),
    ("squeeze_excite_conv", "conv2d", "squeeze_excite/reduce"),
    ("squeeze_excite_conv_1", "conv2d", "squeeze_excite/expand"),
    ("project", "conv2d", "project_conv"),
    ("project_bn", "batch_normalization", "project_bn"),
)


def _keras_layers(blocks: tuple[Block, ...]) -> Iterator[KerasLayer]:
    """Yield the layers with weights of a Keras MobileNetV3, in Keras's order."""
    yield KerasLayer("conv", "conv2d", ("stem_conv",))
    yield KerasLayer("conv_bn", "batch_normalization", ("stem_bn",))
    for index, block in enumerate(blocks):
        prefix = f"expanded_conv_{index}_" if index else "expanded_conv_"
        has = {"expand": block.expansion != 1, "squeeze": block.squeeze_excite}
        for name, kind, module in _KERAS_PARTS:
            if has.get(name.split("_")[0], True):
                path = (f"block_{index:02d}", *module.split("/"))
                yield KerasLayer(prefix + name, kind, path)
    yield KerasLayer("conv_1", "conv2d", ("top_conv",))
    yield KerasLayer("conv_1_bn", "batch_normalization", ("top_bn",))


def _narrow_depthwise(blocks: tuple[Block, ...]) -> tuple[str, ...]:
    """List the depthwise convolutions that an int8 file keeps in float.

    Up to 120 channels one between two hard-swishes, which are float in any case, is no
    slower in float, and saves two conversions.
    """
    inputs = (STEM_FILTERS, *(block.filters for block in blocks))
    return tuple(
        f"body/block_{index:02d}/depthwise"
        for index, block in enumerate(blocks)
        if block.activation is hard_swish
        and round_filters(inputs[index] * block.expansion) <= 120
    )


def _network(blocks: tuple[Block, ...], *, size: str, md5: str) -> Network:
    return Network(
        functools.partial(
            InvertedResidualNet,
            blocks,
            normalise=_normalise,
            activation=hard_swish,
            stem_filters=STEM_FILTERS,
            top_filters=round_filters(6 * blocks[-1].filters),
        ),
        weights=KerasWeights(
            tuple(_keras_layers(blocks)),
            f"mobilenet_v3/weights_mobilenet_v3_{size}_224_1.0_float_no_top_v2.h5",
            md5,
            ignored=frozenset({"conv_2", "logits"}),
        ),
        int8=Int8(_narrow_depthwise(blocks), ROUNDING),
    )


NETWORKS = {
    "mobilenet_v3_small": _network(
        SMALL, size="small", md5="d3e8ec802a04aa4fc771ee12a9a9b836"
    ),
    "mobilenet_v3_large": _network(
        LARGE, size="large", md5="07fb09a5933dd0c8eaafa16978110389"
    ),
}
