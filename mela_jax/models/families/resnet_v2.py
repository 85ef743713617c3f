"""ResNet152V2, number for number that of keras.applications.

He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016 (arXiv:1603.05027).
As in Keras: the stem's convolution has a bias and no batch norm; batch norm and ReLU
come before a block; its projection takes what they return, an identity shortcut the raw
input; a stage's stride is in its last block, where a 1x1 max pooling is the shortcut.
"""

import functools
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mela_jax.models.convolution import max_pool
from mela_jax.models.layers import Conv, norm_layer, scale_to_one
from mela_jax.models.outputs import LAST_MAP
from mela_jax.models.registry import KerasLayer, KerasWeights, Network

BN_EPSILON = 1.001e-5
FILTERS = (64, 128, 256, 512)


class PreBottleneck(nn.Module):
    """Normalise, then reduce, filter, restore to 4 x filters; add the input.

    `strides` is that of the 3x3 convolution and of the shortcut.
    """

    filters: int
    strides: int
    project: bool
    dtype: Any
    bn_axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map [B, h, w, C] to [B, ceil(h/s), ceil(w/s), 4 * filters]."""
        conv = functools.partial(Conv, dtype=self.dtype)
        norm = norm_layer(self, train=train, epsilon=BN_EPSILON)
        before = jax.nn.relu(norm(name="bn_0")(x))
        if self.project:
            shortcut = conv(4 * self.filters, use_bias=True, name="conv_0")(before)
        else:
            shortcut = x[:, :: self.strides, :: self.strides]
        x = jax.nn.relu(norm(name="bn_1")(conv(self.filters, name="conv_1")(before)))
        x = conv(
            self.filters,
            kernel_size=(3, 3),
            strides=self.strides,
            padding=1,
            name="conv_2",
        )(x)
        x = jax.nn.relu(norm(name="bn_2")(x))
        return shortcut + conv(4 * self.filters, use_bias=True, name="conv_3")(x)


class ResNetV2(nn.Module):
    """The body: image to a feature map of 2048 channels at 1/32 of the size."""

    depths: tuple[int, ...]
    dtype: Any = jnp.float32
    bn_axis_name: str | None = None

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """Map float RGB [B, H, W, 3] in [0, 255] to a map of each stride's end."""
        x = scale_to_one(image.astype(jnp.float32))
        x = Conv(
            64,
            kernel_size=(7, 7),
            strides=2,
            padding=3,
            use_bias=True,
            dtype=self.dtype,
            name="stem_conv",
        )(x)
        # Keras pads with zeros, and no ReLU is before: minus infinity is not the same.
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        x = max_pool(x, window=3, strides=2, padding=0)
        maps, stride = {}, 4
        for stage, num_blocks in enumerate(self.depths):
            for block in range(num_blocks):
                is_last = block == num_blocks - 1
                x = PreBottleneck(
                    FILTERS[stage],
                    strides=2 if is_last and stage < 3 else 1,
                    project=block == 0,
                    dtype=self.dtype,
                    bn_axis_name=self.bn_axis_name,
                    name=f"stage_{stage + 1}_block_{block + 1}",
                )(x, train=train)
                stride *= 2 if is_last and stage < 3 else 1
                maps[f"stride_{stride}"] = x
        x = norm_layer(self, train=train, epsilon=BN_EPSILON, name="top_bn")()(x)
        del maps[f"stride_{stride}"]
        return {**maps, LAST_MAP: jax.nn.relu(x)}


def _keras_layers(depths: tuple[int, ...]) -> Iterator[KerasLayer]:
    """Yield the layers with weights of a Keras ResNetV2, in Keras's order."""
    kinds = {"conv": "conv2d", "bn": "batch_normalization"}
    yield KerasLayer("conv1_conv", "conv2d", ("stem_conv",))
    for stage, num_blocks in enumerate(depths, start=1):
        for block in range(1, num_blocks + 1):
            # By depth: the projection comes beside the last convolution.
            last = ("0_conv", "3_conv") if block == 1 else ("3_conv",)
            for name in ("preact_bn", "1_conv", "1_bn", "2_conv", "2_bn", *last):
                number, part = name.replace("preact", "0").split("_")
                path = (f"stage_{stage}_block_{block}", f"{part}_{number}")
                name = f"conv{stage + 1}_block{block}_{name}"
                yield KerasLayer(name, kinds[part], path)
    yield KerasLayer("post_bn", "batch_normalization", ("top_bn",))


_DEPTHS = (3, 8, 36, 3)
NETWORKS = {
    "resnet152_v2": Network(
        functools.partial(ResNetV2, _DEPTHS),
        weights=KerasWeights(
            tuple(_keras_layers(_DEPTHS)),
            "tensorflow/keras-applications/resnet/"
            "resnet152v2_weights_tf_dim_ordering_tf_kernels_notop.h5",
            "ed17cf2e0169df9d443503ef94b23b33",
        ),
    )
}
