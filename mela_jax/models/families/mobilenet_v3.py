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

import jax
from jax.nn import hard_swish, relu

from mela_jax.models.eight_bits import Int8
from mela_jax.models.layers import (
    ROUNDING,
    Block,
    InvertedResidualNet,
    round_filters,
)
from mela_jax.models.registry import (
    KerasLayer,
    KerasWeights,
    Network,
    conv_and_norm,
)

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


def _keras_layers(blocks: tuple[Block, ...]) -> tuple[KerasLayer, ...]:
    """List the layers with weights of a Keras MobileNetV3, in Keras's order."""
    layers = conv_and_norm("conv", "conv_bn", "stem")
    for index, block in enumerate(blocks):
        prefix = f"expanded_conv_{index}_" if index else "expanded_conv_"
        module = f"block_{index:02d}"
        name = f"{prefix}expand"
        if block.expansion != 1:
            layers += conv_and_norm(name, f"{name}_bn", module, "expand")
        name = f"{prefix}depthwise"
        layers += conv_and_norm(name, f"{name}_bn", module, "depthwise", depthwise=True)
        name = f"{prefix}squeeze_excite_conv"
        if block.squeeze_excite:
            gate = (module, "squeeze_excite")
            layers += (
                KerasLayer(name, "conv2d", (*gate, "reduce")),
                KerasLayer(f"{name}_1", "conv2d", (*gate, "expand")),
            )
        name = f"{prefix}project"
        layers += conv_and_norm(name, f"{name}_bn", module, "project")
    return layers + conv_and_norm("conv_1", "conv_1_bn", "top")


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
            _keras_layers(blocks),
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
