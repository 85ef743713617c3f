"""MobileNet, number for number that of keras.applications.

Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision
Applications", 2017 (arXiv:1704.04861). Before a stride of 2 Keras pads below and to the
right only, so that an odd extent loses its last row.
"""

from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn import relu6

from mela_jax.models.layers import DEPTHWISE_INIT, Conv, norm_layer, scale_to_one
from mela_jax.models.outputs import LAST_MAP
from mela_jax.models.registry import KerasLayer, KerasWeights, Network

STEM_FILTERS = 32
# Channels and stride of each block.
BLOCKS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *[(512, 1)] * 5,
    (1024, 2),
    (1024, 1),
)


class MobileNet(nn.Module):
    """The body: image to a map of 1024 channels at 1/32 of the size."""

    dtype: Any = jnp.float32
    bn_axis_name: str | None = None

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """Map float RGB [B, H, W, 3] in [0, 255] to a map of each stride's end."""
        norm, dtype = norm_layer(self, train=train), self.dtype
        x = scale_to_one(image.astype(jnp.float32))
        x = Conv(STEM_FILTERS, (3, 3), strides=2, dtype=dtype, name="stem_conv")(x)
        x = relu6(norm(name="stem_bn")(x))
        maps, stride = {}, 2
        for index, (filters, strides) in enumerate(BLOCKS):
            name = f"block_{index:02d}"
            x = Conv(
                x.shape[-1],
                (3, 3),
                strides=strides,
                padding=((0, 1), (0, 1)) if strides == 2 else "SAME",
                feature_group_count=x.shape[-1],
                kernel_init=DEPTHWISE_INIT,
                dtype=dtype,
                name=f"{name}_depthwise",
            )(x)
            x = relu6(norm(name=f"{name}_depthwise_bn")(x))
            x = Conv(filters, dtype=dtype, name=f"{name}_conv")(x)
            x = relu6(norm(name=f"{name}_bn")(x))
            stride *= strides
            maps[f"stride_{stride}" if stride < 32 else LAST_MAP] = x
        del maps["stride_2"]
        return maps


def _keras_layers() -> Iterator[KerasLayer]:
    """Yield the layers with weights of Keras's MobileNet, in Keras's order."""
    yield KerasLayer("conv1", "conv2d", ("stem_conv",))
    yield KerasLayer("conv1_bn", "batch_normalization", ("stem_bn",))
    for index in range(len(BLOCKS)):
        for keras, kind, module in (
            ("dw_{}", "depthwise_conv2d", "depthwise"),
            ("dw_{}_bn", "batch_normalization", "depthwise_bn"),
            ("pw_{}", "conv2d", "conv"),
            ("pw_{}_bn", "batch_normalization", "bn"),
        ):
            name = f"conv_{keras.format(index + 1)}"
            yield KerasLayer(name, kind, (f"block_{index:02d}_{module}",))


NETWORKS = {
    "mobilenet": Network(
        MobileNet,
        weights=KerasWeights(
            tuple(_keras_layers()),
            "tensorflow/keras-applications/mobilenet/mobilenet_1_0_224_tf_no_top.h5",
            digest=None,
            ignored=frozenset({"conv_preds"}),
        ),
    )
}
