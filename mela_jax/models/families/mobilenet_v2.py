"""MobileNetV2, number for number that of keras.applications.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018
(arXiv:1801.04381). As in MobileNetV3, Keras's padding by hand is SAME at every size,
and batch norm's momentum is 0.99 where Keras has 0.999.
"""

import functools
from collections.abc import Iterator

from jax.nn import relu6

from mela_jax.models.eight_bits import Int8
from mela_jax.models.layers import (
    ROUNDING,
    Block,
    InvertedResidualNet,
    scale_to_one,
)
from mela_jax.models.registry import KerasLayer, KerasWeights, Network

# Expansion, channels, blocks, stride of the first block.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
BLOCKS = tuple(
    Block(expansion, filters, 3, strides if index == 0 else 1, relu6)
    for expansion, filters, repeats, strides in STAGES
    for index in range(repeats)
)

_KERAS_PARTS = (
    ("expand", "conv2d", "expand_conv"),
    ("expand_BN", "batch_normalization", "expand_bn"),
    ("depthwise", "depthwise_conv2d", "depthwise"),
    ("depthwise_BN", "batch_normalization", "depthwise_bn"),
    ("project", "conv2d", "project_conv"),
    ("project_BN", "batch_normalization", "project_bn"),
)


def _keras_layers() -> Iterator[KerasLayer]:
    """Yield the layers with weights of Keras's MobileNetV2, in Keras's order."""
    yield KerasLayer("Conv1", "conv2d", ("stem_conv",))
    yield KerasLayer("bn_Conv1", "batch_normalization", ("stem_bn",))
    for index in range(len(BLOCKS)):
        prefix = f"block_{index}_" if index else "expanded_conv_"
        for name, kind, module in _KERAS_PARTS if index else _KERAS_PARTS[2:]:
            yield KerasLayer(prefix + name, kind, (f"block_{index:02d}", module))
    yield KerasLayer("Conv_1", "conv2d", ("top_conv",))
    yield KerasLayer("Conv_1_bn", "batch_normalization", ("top_bn",))


NETWORKS = {
    "mobilenet_v2": Network(
        functools.partial(
            InvertedResidualNet,
            BLOCKS,
            normalise=scale_to_one,
            activation=relu6,
            stem_filters=32,
            top_filters=1280,
        ),
        weights=KerasWeights(
            tuple(_keras_layers()),
            "tensorflow/keras-applications/mobilenet_v2/mobilenet_v2_weights_tf_dim_"
            "ordering_tf_kernels_1.0_224_no_top.h5",
            digest=None,
        ),
        int8=Int8(rounding=ROUNDING),
    )
}
