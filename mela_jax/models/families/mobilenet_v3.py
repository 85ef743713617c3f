"""MobileNetV3-Small and -Large, number for number those of keras.applications.

Howard et al., "Searching for MobileNetV3", ICCV 2019 (arXiv:1905.02244), as
they are, at a width of 0.75, and "minimalistic": ReLU for hard-swish, kernels of 3x3
and no squeeze-excite, all of which int8 has kernels for. Keras pads by hand before a
stride-2 depthwise convolution (`correct_pad`: k//2 on both sides of an odd extent, one
less at the start of an even one). For stride 2 that is TensorFlow's SAME at every size,
so SAME is used throughout and an exported graph holds no padding operation.

Batch norm's momentum in Keras is 0.999, made for millions of steps: after the few
thousand of a fine-tuning run it would still hold mostly the initial statistics. Here it
is 0.99.
"""

import functools
from collections.abc import Iterator

from jax.nn import hard_sigmoid, hard_swish, relu, relu6

from mela_jax.models.attention import Gate
from mela_jax.models.eight_bits import Int8
from mela_jax.models.layers import (
    ROUNDING,
    Block,
    InvertedResidualNet,
    Squeeze,
    round_filters,
    scale_to_one,
)
from mela_jax.models.registry import KerasLayer, KerasWeights, Network

STEM_FILTERS = 16
SQUEEZE = Squeeze(lambda _, gated: round_filters(gated * 0.25), relu, hard_sigmoid)

SMALL = (
    Block(1, 16, 3, 2, relu, SQUEEZE),
    Block(72 / 16, 24, 3, 2, relu),
    Block(88 / 24, 24, 3, 1, relu),
    Block(4, 40, 5, 2, hard_swish, SQUEEZE),
    Block(6, 40, 5, 1, hard_swish, SQUEEZE),
    Block(6, 40, 5, 1, hard_swish, SQUEEZE),
    Block(3, 48, 5, 1, hard_swish, SQUEEZE),
    Block(3, 48, 5, 1, hard_swish, SQUEEZE),
    Block(6, 96, 5, 2, hard_swish, SQUEEZE),
    Block(6, 96, 5, 1, hard_swish, SQUEEZE),
    Block(6, 96, 5, 1, hard_swish, SQUEEZE),
)

LARGE = (
    Block(1, 16, 3, 1, relu),
    Block(4, 24, 3, 2, relu),
    Block(3, 24, 3, 1, relu),
    Block(3, 40, 5, 2, relu, SQUEEZE),
    Block(3, 40, 5, 1, relu, SQUEEZE),
    Block(3, 40, 5, 1, relu, SQUEEZE),
    Block(6, 80, 3, 2, hard_swish),
    Block(2.5, 80, 3, 1, hard_swish),
    Block(2.3, 80, 3, 1, hard_swish),
    Block(2.3, 80, 3, 1, hard_swish),
    Block(6, 112, 3, 1, hard_swish, SQUEEZE),
    Block(6, 112, 3, 1, hard_swish, SQUEEZE),
    Block(6, 160, 5, 2, hard_swish, SQUEEZE),
    Block(6, 160, 5, 1, hard_swish, SQUEEZE),
    Block(6, 160, 5, 1, hard_swish, SQUEEZE),
)


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
        has = {
            "expand": block.expansion != 1,
            "squeeze": block.squeeze_excite is not None,
        }
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


def _minimalistic(blocks: tuple[Block, ...]) -> tuple[Block, ...]:
    return tuple(
        block._replace(kernel_size=3, activation=relu, squeeze_excite=None)
        for block in blocks
    )


def _integer(blocks: tuple[Block, ...], *, squeeze: bool) -> tuple[Block, ...]:
    """Put ReLU6, which int8 has for nothing, in the place of hard-swish."""
    return tuple(
        block._replace(
            activation=relu6 if block.activation is hard_swish else relu,
            squeeze_excite=block.squeeze_excite if squeeze else None,
        )
        for block in blocks
    )


def _network(
    blocks: tuple[Block, ...],
    *,
    file: str,
    digest: str,
    width: float = 1.0,
    gate: bool = False,
) -> Network:
    blocks = tuple(b._replace(filters=round_filters(b.filters * width)) for b in blocks)
    gates = {
        layer.name
        for layer in _keras_layers(
            tuple(b._replace(squeeze_excite=SQUEEZE) for b in blocks)
        )
        if "squeeze_excite" in layer.name
    }
    layers = tuple(_keras_layers(blocks))
    names = {layer.name for layer in layers}
    return Network(
        functools.partial(
            InvertedResidualNet,
            blocks,
            normalise=scale_to_one,
            activation=blocks[-1].activation,
            stem_filters=STEM_FILTERS,
            top_filters=round_filters(6 * blocks[-1].filters),
            gate=Gate if gate else None,
        ),
        weights=KerasWeights(
            layers,
            "tensorflow/keras-applications/mobilenet_v3/"
            f"weights_mobilenet_v3_{file}_float_no_top_v2.h5",
            digest,
            # The gates of the file have no place where the network has none.
            ignored=frozenset({"conv_2", "logits"} | (gates - names)),
            new_parts=("gate",),
        ),
        int8=Int8((*_narrow_depthwise(blocks), "body/gate"), ROUNDING),
    )


NETWORKS = {
    "mobilenet_v3_small": _network(
        SMALL, file="small_224_1.0", digest="d3e8ec802a04aa4fc771ee12a9a9b836"
    ),
    "mobilenet_v3_small_075": _network(
        SMALL,
        file="small_224_0.75",
        digest="ebdb5cc8e0b497cd13a7c275d475c819",
        width=0.75,
    ),
    "mobilenet_v3_small_minimalistic": _network(
        _minimalistic(SMALL),
        file="small_minimalistic_224_1.0",
        digest="cde8136e733e811080d9fcd8a252f7e4",
    ),
    # For an int8 file; they start from the weights of the network with hard-swish.
    "mobilenet_v3_small_relu6": _network(
        _integer(SMALL, squeeze=True),
        file="small_224_1.0",
        digest="d3e8ec802a04aa4fc771ee12a9a9b836",
    ),
    "mobilenet_v3_small_relu6_no_se": _network(
        _integer(SMALL, squeeze=False),
        file="small_224_1.0",
        digest="d3e8ec802a04aa4fc771ee12a9a9b836",
    ),
    "mobilenet_v3_large": _network(
        LARGE, file="large_224_1.0", digest="07fb09a5933dd0c8eaafa16978110389"
    ),
    "mobilenet_v3_large_minimalistic": _network(
        _minimalistic(LARGE),
        file="large_minimalistic_224_1.0",
        digest="ec5221f64a2f6d1ef965a614bdae7973",
    ),
    # The student of the phone app DermoHelper.
    "mobilenet_v3_large_gate": _network(
        LARGE,
        file="large_224_1.0",
        digest="07fb09a5933dd0c8eaafa16978110389",
        gate=True,
    ),
}
