"""DenseNet121 as in keras.applications, and DenseNet161 as in torchvision.

Huang et al., "Densely Connected Convolutional Networks", CVPR 2017 (arXiv:1608.06993).
The two frameworks differ in batch norm's epsilon alone.
"""

import functools
import re
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mela_jax.models.convolution import max_pool
from mela_jax.models.layers import Conv, norm_layer, scale_to_imagenet
from mela_jax.models.outputs import LAST_MAP
from mela_jax.models.registry import KerasLayer, KerasWeights, Key, Network, StateDict

# Channels of the 1x1 convolution of a layer, in units of those it adds.
BOTTLENECK = 4


class DenseNet(nn.Module):
    """A body: blocks of layers that each add channels to all before them.

    Attributes:
      depths: numbers of layers of the four blocks.
      growth: channels that a layer adds; the stem has twice as many.
      epsilon: of batch norm.
    """

    depths: tuple[int, ...]
    growth: int
    epsilon: float
    dtype: Any = jnp.float32
    bn_axis_name: str | None = None

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """Map float RGB [B, H, W, 3] in [0, 255] to a map of each block's end."""
        conv = functools.partial(Conv, dtype=self.dtype)
        norm = norm_layer(self, train=train, epsilon=self.epsilon)
        x = scale_to_imagenet(image.astype(jnp.float32))
        x = conv(
            2 * self.growth,
            kernel_size=(7, 7),
            strides=2,
            padding=3,
            name="stem_conv",
        )(x)
        x = jax.nn.relu(norm(name="stem_bn")(x))
        x = max_pool(x, window=3, strides=2, padding=1)
        maps = {}
        for block, depth in enumerate(self.depths):
            for layer in range(depth):
                name = f"block_{block + 1}_layer_{layer + 1:02d}"
                y = jax.nn.relu(norm(name=f"{name}_bn_1")(x))
                y = conv(BOTTLENECK * self.growth, name=f"{name}_conv_1")(y)
                y = jax.nn.relu(norm(name=f"{name}_bn_2")(y))
                y = conv(self.growth, kernel_size=(3, 3), name=f"{name}_conv_2")(y)
                x = jnp.concatenate([x, y], axis=-1)
            if block < 3:
                maps[f"stride_{4 * 2**block}"] = x
                name = f"transition_{block + 1}"
                x = jax.nn.relu(norm(name=f"{name}_bn")(x))
                x = conv(x.shape[-1] // 2, name=f"{name}_conv")(x)
                x = nn.avg_pool(x, (2, 2), (2, 2))
        return {**maps, LAST_MAP: jax.nn.relu(norm(name="top_bn")(x))}


def _keras_layers(depths: tuple[int, ...]) -> Iterator[KerasLayer]:
    """Yield the layers with weights of a Keras DenseNet, in Keras's order."""
    kinds = {"conv": "conv2d", "bn": "batch_normalization"}

    def layer(name: str, path: str) -> KerasLayer:
        part = "bn" if path.split("_")[-2:].count("bn") else "conv"
        return KerasLayer(name, kinds[part], (path,))

    yield layer("conv1_conv", "stem_conv")
    yield layer("conv1_bn", "stem_bn")
    for block, depth in enumerate(depths, start=1):
        for number in range(1, depth + 1):
            for name, path in (
                ("0_bn", "bn_1"),
                ("1_conv", "conv_1"),
                ("1_bn", "bn_2"),
                ("2_conv", "conv_2"),
            ):
                yield layer(
                    f"conv{block + 1}_block{number}_{name}",
                    f"block_{block}_layer_{number:02d}_{path}",
                )
        if block < 4:
            for part in ("bn", "conv"):
                yield layer(f"pool{block + 1}_{part}", f"transition_{block}_{part}")
    yield layer("bn", "top_bn")


_TORCH_LAYER = re.compile(r"features\.denseblock(\d)\.denselayer(\d+)\.(norm|conv)(\d)")
_TORCH_TRANSITION = re.compile(r"features\.transition(\d)\.(norm|conv)")
_TORCH_ENDS = {"conv0": "stem_conv", "norm0": "stem_bn", "norm5": "top_bn"}
_TORCH_PARTS = {"norm": "bn", "conv": "conv"}


def _torch_path(name: str) -> Key | None:
    """Translate the name of a torchvision module."""
    if found := _TORCH_LAYER.fullmatch(name):
        block, layer, part, number = found.groups()
        prefix = f"block_{block}_layer_{int(layer):02d}"
        return (f"{prefix}_{_TORCH_PARTS[part]}_{number}",)
    if found := _TORCH_TRANSITION.fullmatch(name):
        return (f"transition_{found[1]}_{_TORCH_PARTS[found[2]]}",)
    end = _TORCH_ENDS.get(name.removeprefix("features."))
    return None if end is None else (end,)


_DEPTHS = (6, 12, 24, 16)
NETWORKS = {
    "densenet121": Network(
        functools.partial(DenseNet, _DEPTHS, growth=32, epsilon=1.001e-5),
        weights=KerasWeights(
            tuple(_keras_layers(_DEPTHS)),
            "tensorflow/keras-applications/densenet/"
            "densenet121_weights_tf_dim_ordering_tf_kernels_notop.h5",
            "30ee3e1110167f948a6b9946edeeb738",
        ),
    ),
    "densenet161": Network(
        functools.partial(DenseNet, (6, 12, 36, 24), growth=48, epsilon=1e-5),
        weights=StateDict(
            "torchvision.models.densenet161", _torch_path, ignored=("classifier.",)
        ),
    ),
}
