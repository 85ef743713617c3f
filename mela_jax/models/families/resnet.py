"""ResNet50 and ResNet101, number for number that of keras.applications.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016
(arXiv:1512.03385). As in Keras: a bottleneck's stride is on its first 1x1
convolution, every convolution has a bias although batch norm follows, epsilon is
1.001e-5, and images are BGR minus the means of ImageNet ("caffe" style).
"""

import functools
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mela_jax.models.convolution import max_pool
from mela_jax.models.layers import Conv, norm_layer, scale_to_caffe
from mela_jax.models.outputs import LAST_MAP
from mela_jax.models.registry import KerasLayer, KerasWeights, Network

BN_EPSILON = 1.001e-5
# Channels of the stages.
FILTERS = (64, 128, 256, 512)


class Bottleneck(nn.Module):
    """Reduce, filter, restore to 4 x filters; add the (projected) input.

    `strides` is that of the first convolution and of the projection.
    """

    filters: int
    strides: int
    project: bool
    dtype: Any
    bn_axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map [B, h, w, C] to [B, ceil(h/s), ceil(w/s), 4 * filters]."""
        conv = functools.partial(Conv, use_bias=True, fixed_bias=True, dtype=self.dtype)
        norm = norm_layer(self, train=train, epsilon=BN_EPSILON)
        shortcut = x
        if self.project:
            shortcut = conv(4 * self.filters, strides=self.strides, name="conv_0")(x)
            shortcut = norm(name="bn_0")(shortcut)
        x = conv(self.filters, strides=self.strides, name="conv_1")(x)
        x = jax.nn.relu(norm(name="bn_1")(x))
        x = conv(self.filters, kernel_size=(3, 3), name="conv_2")(x)
        x = jax.nn.relu(norm(name="bn_2")(x))
        x = norm(name="bn_3")(conv(4 * self.filters, name="conv_3")(x))
        return jax.nn.relu(x + shortcut)


class ResNet(nn.Module):
    """The body: image to a feature map of 2048 channels at 1/32 of the size.

    `depths` are the numbers of blocks of the four stages.
    """

    depths: tuple[int, ...]
    dtype: Any = jnp.float32
    bn_axis_name: str | None = None

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """Map float RGB [B, H, W, 3] in [0, 255] to a map of each stage's end."""
        x = scale_to_caffe(image.astype(jnp.float32))
        x = Conv(
            64,
            kernel_size=(7, 7),
            strides=2,
            padding=3,
            use_bias=True,
            fixed_bias=True,
            dtype=self.dtype,
            name="stem_conv",
        )(x)
        x = norm_layer(self, train=train, epsilon=BN_EPSILON, name="stem_bn")()(x)
        # Keras pads with zeros, max_pool with -inf; after a ReLU that is the same.
        x = max_pool(jax.nn.relu(x), window=3, strides=2, padding=1)
        maps = {}
        for stage, num_blocks in enumerate(self.depths):
            for block in range(num_blocks):
                x = Bottleneck(
                    FILTERS[stage],
                    strides=2 if stage > 0 and block == 0 else 1,
                    project=block == 0,
                    dtype=self.dtype,
                    bn_axis_name=self.bn_axis_name,
                    name=f"stage_{stage + 1}_block_{block + 1}",
                )(x, train=train)
            maps[f"stride_{4 * 2**stage}" if stage < 3 else LAST_MAP] = x
        return maps


def _keras_layers(depths: tuple[int, ...]) -> Iterator[KerasLayer]:
    """Yield the layers with weights of a Keras ResNet, in Keras's order."""
    kinds = {"conv": "conv2d", "bn": "batch_normalization"}
    for part, kind in kinds.items():
        yield KerasLayer(f"conv1_{part}", kind, (f"stem_{part}",))
    for stage, num_blocks in enumerate(depths, start=1):
        for block in range(1, num_blocks + 1):
            # Keras orders layers by depth, not by creation: the projection comes
            # beside the last convolution, and both convolutions before both norms.
            last = (0, 3) if block == 1 else (3,)
            for part, i in [
                *(("conv", 1), ("bn", 1), ("conv", 2), ("bn", 2)),
                *(("conv", i) for i in last),
                *(("bn", i) for i in last),
            ]:
                name = f"conv{stage + 1}_block{block}_{i}_{part}"
                path = (f"stage_{stage}_block_{block}", f"{part}_{i}")
                yield KerasLayer(name, kinds[part], path)


def _network(*depths: int, file: str, digest: str) -> Network:
    return Network(
        functools.partial(ResNet, depths),
        weights=KerasWeights(
            tuple(_keras_layers(depths)),
            f"tensorflow/keras-applications/resnet/{file}_notop.h5",
            digest,
        ),
    )


NETWORKS = {
    "resnet50": _network(
        *(3, 4, 6, 3),
        file="resnet50_weights_tf_dim_ordering_tf_kernels",
        digest="4d473c1dd8becc155b73f8504c6f6626",
    ),
    "resnet101": _network(
        *(3, 4, 23, 3),
        file="resnet101_weights_tf_dim_ordering_tf_kernels",
        digest="88cf7a10940856eca736dc7b7e228a21",
    ),
}
