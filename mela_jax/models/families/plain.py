"""Networks that are one convolution after the other: VGG16 and three small students.

- **VGG16**: Simonyan & Zisserman, ICLR 2015 (arXiv:1409.1556), number for number that
  of keras.applications.
- **DSNet**: the student of "Melanoma detection with knowledge distillation"
  (KD-lesions). Its head takes every place of the last map as a feature:
  `pool = "flatten"`, at 224 pixels.
- **Three blocks**: a student in the manner of Islam et al. 2024 (arXiv:2406.17051),
  whose layers are not published; for `pool = "max"`.
- **TinyStudent**: a student in the manner of Kabir et al. 2024
  (doi:10.1016/j.ibmed.2024.100176), whose layers are not published.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mela_jax.models.convolution import max_pool
from mela_jax.models.eight_bits import Int8, Rounding
from mela_jax.models.head import Head
from mela_jax.models.layers import (
    ArrayFn,
    Conv,
    norm_layer,
    scale_to_caffe,
    scale_to_one,
    scale_to_unit,
)
from mela_jax.models.outputs import LAST_MAP
from mela_jax.models.registry import KerasLayer, KerasWeights, Network


class Layer(NamedTuple):
    """A 3x3 convolution with a ReLU, and whether a 2x2 max pooling follows."""

    filters: int
    strides: int = 1
    pool: bool = False


class PlainNet(nn.Module):
    """A body of 3x3 convolutions.

    Attributes:
      layers: the convolutions.
      normalise: from RGB in [0, 255] to what the first one takes.
      norm: whether batch norm follows on each, in place of a bias.
      padding: "SAME" or "VALID".
    """

    layers: tuple[Layer, ...]
    normalise: ArrayFn
    norm: bool = True
    padding: str = "SAME"
    dtype: Any = jnp.float32
    bn_axis_name: str | None = None

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """Map float RGB [B, H, W, 3] in [0, 255] to a map of each stride's end."""
        norm = norm_layer(self, train=train)
        x = self.normalise(image.astype(jnp.float32))
        maps, stride = {}, 1
        for index, layer in enumerate(self.layers):
            name = f"layer_{index:02d}" if index else "stem"
            x = Conv(
                layer.filters,
                (3, 3),
                strides=layer.strides,
                padding=self.padding,
                use_bias=not self.norm,
                dtype=self.dtype,
                name=f"{name}_conv",
            )(x)
            x = jax.nn.relu(norm(name=f"{name}_bn")(x) if self.norm else x)
            stride *= layer.strides
            if stride > 2:
                maps[f"stride_{stride}"] = x
            if layer.pool:
                x = max_pool(x, window=2, strides=2, padding=0)
                stride *= 2
        maps.pop(f"stride_{stride}", None)
        return {**maps, LAST_MAP: x}


# Every convolution ends in its ReLU, and enters the next one rounded.
ROUNDING = Rounding(
    enters=lambda module: isinstance(module, Head), relu_after=lambda module: True
)


def _vgg16() -> Network:
    groups = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
    layers: list[Layer] = []
    keras = []
    for group, (number, filters) in enumerate(groups, start=1):
        for index in range(1, number + 1):
            path = f"layer_{len(layers):02d}_conv" if layers else "stem_conv"
            name = f"block{group}_conv{index}"
            keras.append(KerasLayer(name, "conv2d", (path,)))
            layers.append(Layer(filters, pool=index == number))
    return Network(
        functools.partial(
            PlainNet, tuple(layers), normalise=scale_to_caffe, norm=False
        ),
        weights=KerasWeights(
            tuple(keras),
            "tensorflow/keras-applications/vgg16/"
            "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
            "6d6bbae143d832006294945121d1f1fc",
        ),
    )


def _student(*layers: Layer, **options: Any) -> Network:
    return Network(
        functools.partial(PlainNet, layers, **options), int8=Int8(rounding=ROUNDING)
    )


NETWORKS = {
    "vgg16": _vgg16(),
    "dsnet": _student(
        Layer(128, pool=True),
        Layer(64, pool=True),
        Layer(32),
        normalise=scale_to_unit,
        norm=False,
        padding="VALID",
    ),
    "three_block": _student(
        *(Layer(filters, pool=p) for filters in (32, 64, 112) for p in (False, True)),
        normalise=scale_to_unit,
    ),
    "tiny_student": _student(
        *(Layer(filters, strides=2) for filters in (32, 64, 128, 216)),
        normalise=scale_to_one,
    ),
}
