"""MobileNetV3-Small and -Large, number for number those of keras.applications.

Howard et al., "Searching for MobileNetV3", ICCV 2019 (arXiv:1905.02244). Width 1.0,
not "minimalistic". Keras pads by hand before a stride-2 depthwise convolution
(`correct_pad`: k//2 on both sides of an odd extent, one less at the start of an
even one). For stride 2 that is TensorFlow's SAME at every size, so SAME is used
throughout and an exported graph holds no padding operation.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mela_jax.models.convolution import DepthwiseConv, PointwiseConv
from mela_jax.models.eight_bits import Activation, Int8, Rounding
from mela_jax.models.normalization import BatchNorm
from mela_jax.models.outputs import LAST_MAP
from mela_jax.models.registry import Network
from mela_jax.models.weights import (
    KERAS_URL,
    Download,
    KerasLayer,
    KerasWeights,
    conv_and_norm,
    depthwise_and_norm,
)

BN_EPSILON = 1e-3
# Keras writes 0.999, made for millions of steps: after the few thousand of a
# fine-tuning run it would still hold mostly the initial statistics.
BN_MOMENTUM = 0.99
STEM_FILTERS = 16


@dataclasses.dataclass(frozen=True)
class Block:
    """One inverted residual block.

    `expansion` multiplies the block's input channels (1: no expanding convolution);
    the product is rounded by `round_filters`.
    """

    expansion: float
    filters: int
    kernel_size: int
    strides: int
    squeeze_excite: bool
    hard_swish: bool


SMALL = (
    Block(1, 16, 3, 2, squeeze_excite=True, hard_swish=False),
    Block(72 / 16, 24, 3, 2, squeeze_excite=False, hard_swish=False),
    Block(88 / 24, 24, 3, 1, squeeze_excite=False, hard_swish=False),
    Block(4, 40, 5, 2, squeeze_excite=True, hard_swish=True),
    Block(6, 40, 5, 1, squeeze_excite=True, hard_swish=True),
    Block(6, 40, 5, 1, squeeze_excite=True, hard_swish=True),
    Block(3, 48, 5, 1, squeeze_excite=True, hard_swish=True),
    Block(3, 48, 5, 1, squeeze_excite=True, hard_swish=True),
    Block(6, 96, 5, 2, squeeze_excite=True, hard_swish=True),
    Block(6, 96, 5, 1, squeeze_excite=True, hard_swish=True),
    Block(6, 96, 5, 1, squeeze_excite=True, hard_swish=True),
)

LARGE = (
    Block(1, 16, 3, 1, squeeze_excite=False, hard_swish=False),
    Block(4, 24, 3, 2, squeeze_excite=False, hard_swish=False),
    Block(3, 24, 3, 1, squeeze_excite=False, hard_swish=False),
    Block(3, 40, 5, 2, squeeze_excite=True, hard_swish=False),
    Block(3, 40, 5, 1, squeeze_excite=True, hard_swish=False),
    Block(3, 40, 5, 1, squeeze_excite=True, hard_swish=False),
    Block(6, 80, 3, 2, squeeze_excite=False, hard_swish=True),
    Block(2.5, 80, 3, 1, squeeze_excite=False, hard_swish=True),
    Block(2.3, 80, 3, 1, squeeze_excite=False, hard_swish=True),
    Block(2.3, 80, 3, 1, squeeze_excite=False, hard_swish=True),
    Block(6, 112, 3, 1, squeeze_excite=True, hard_swish=True),
    Block(6, 112, 3, 1, squeeze_excite=True, hard_swish=True),
    Block(6, 160, 5, 2, squeeze_excite=True, hard_swish=True),
    Block(6, 160, 5, 1, squeeze_excite=True, hard_swish=True),
    Block(6, 160, 5, 1, squeeze_excite=True, hard_swish=True),
)


def round_filters(filters: float) -> int:
    """Round a channel count to a multiple of 8, at most 10 % down."""
    rounded = max(8, int(filters + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * filters else rounded


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from all channels' means.

    Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018 (arXiv:1709.01507), with
    the gate relu6(x + 3) / 6 of MobileNetV3.
    """

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return [B, h, w, C] gated."""
        filters = x.shape[-1]
        gate = jnp.mean(x.astype(jnp.float32), axis=(1, 2), keepdims=True)
        conv = functools.partial(PointwiseConv, use_bias=True, dtype=self.dtype)
        gate = jax.nn.relu(conv(round_filters(filters * 0.25), name="reduce")(gate))
        gate = jax.nn.hard_sigmoid(conv(filters, name="expand")(gate))
        return x * gate


class InvertedResidual(nn.Module):
    """Expand, filter each channel, gate, project; add the input where shapes allow."""

    block: Block
    dtype: Any
    bn_axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map [B, h, w, C] to [B, ceil(h/s), ceil(w/s), filters]."""
        conv = functools.partial(PointwiseConv, use_bias=False, dtype=self.dtype)
        norm = functools.partial(
            BatchNorm,
            use_running_average=not train,
            epsilon=BN_EPSILON,
            momentum=BN_MOMENTUM,
            axis_name=self.bn_axis_name,
            dtype=self.dtype,
        )
        block, inputs = self.block, x
        activation: Callable[[jax.Array], jax.Array] = (
            jax.nn.hard_swish if block.hard_swish else jax.nn.relu
        )
        if block.expansion != 1:
            filters = round_filters(x.shape[-1] * block.expansion)
            x = conv(filters, name="expand_conv")(x)
            x = activation(norm(name="expand_bn")(x))
        x = DepthwiseConv(
            block.kernel_size,
            strides=block.strides,
            dtype=self.dtype,
            name="depthwise",
        )(x)
        x = activation(norm(name="depthwise_bn")(x))
        if block.squeeze_excite:
            x = SqueezeExcite(dtype=self.dtype, name="squeeze_excite")(x)
        x = norm(name="project_bn")(conv(block.filters, name="project_conv")(x))
        if block.strides == 1 and inputs.shape[-1] == block.filters:
            x = x + inputs
        return x


class MobileNetV3(nn.Module):
    """The body: image to a feature map at 1/32 of the size (Small 576, Large 960).

    Attributes:
      blocks: `SMALL` or `LARGE`.
      dtype: compute dtype; parameters and statistics stay float32.
      bn_axis_name: mapped axis over which batch statistics are averaged, or None.
    """

    blocks: tuple[Block, ...]
    dtype: Any = jnp.float32
    bn_axis_name: str | None = None

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """Map float RGB [B, H, W, 3] in [0, 255] to maps.

        Each is what the last block at its stride returns, the last one excepted.
        """
        norm = functools.partial(
            BatchNorm,
            use_running_average=not train,
            epsilon=BN_EPSILON,
            momentum=BN_MOMENTUM,
            axis_name=self.bn_axis_name,
            dtype=self.dtype,
        )
        x = image.astype(jnp.float32) / 127.5 - 1.0
        x = nn.Conv(
            STEM_FILTERS,
            (3, 3),
            strides=2,
            padding="SAME",
            use_bias=False,
            kernel_init=nn.initializers.glorot_uniform(),
            dtype=self.dtype,
            name="stem_conv",
        )(x)
        x = jax.nn.hard_swish(norm(name="stem_bn")(x))
        maps, stride = {}, 2
        for index, block in enumerate(self.blocks):
            x = InvertedResidual(
                block,
                dtype=self.dtype,
                bn_axis_name=self.bn_axis_name,
                name=f"block_{index:02d}",
            )(x, train=train)
            stride *= block.strides
            if stride > 2:
                maps[f"stride_{stride}"] = x
        filters = round_filters(x.shape[-1] * 6)
        x = PointwiseConv(filters, use_bias=False, dtype=self.dtype, name="top_conv")(x)
        maps[LAST_MAP] = jax.nn.hard_swish(norm(name="top_bn")(x))
        return maps


def _keras_layers(blocks: tuple[Block, ...]) -> tuple[KerasLayer, ...]:
    """List the layers with weights of a Keras MobileNetV3, in Keras's order."""
    layers = conv_and_norm("conv", "conv_bn", ("stem",))
    for index, block in enumerate(blocks):
        prefix = f"expanded_conv_{index}_" if index else "expanded_conv_"
        module = f"block_{index:02d}"
        if block.expansion != 1:
            layers += conv_and_norm(
                f"{prefix}expand", f"{prefix}expand_bn", (module, "expand")
            )
        layers += depthwise_and_norm(
            f"{prefix}depthwise", f"{prefix}depthwise_bn", (module, "depthwise")
        )
        if block.squeeze_excite:
            squeeze = f"{prefix}squeeze_excite_conv"
            layers += (
                KerasLayer(squeeze, "conv2d", (module, "squeeze_excite", "reduce")),
                KerasLayer(
                    f"{squeeze}_1", "conv2d", (module, "squeeze_excite", "expand")
                ),
            )
        layers += conv_and_norm(
            f"{prefix}project", f"{prefix}project_bn", (module, "project")
        )
    return layers + conv_and_norm("conv_1", "conv_1_bn", ("top",))


def _narrow_depthwise(blocks: tuple[Block, ...]) -> tuple[str, ...]:
    """List the depthwise convolutions that an int8 file keeps in float.

    Up to 120 channels one between two hard-swishes, which are float in any case, is no
    slower in float, and saves two conversions.
    """
    inputs = (STEM_FILTERS, *(block.filters for block in blocks))
    return tuple(
        f"body/block_{index:02d}/depthwise"
        for index, block in enumerate(blocks)
        if block.hard_swish and round_filters(inputs[index] * block.expansion) <= 120
    )


def _enters_rounded(module: nn.Module) -> bool:
    parent = module.parent
    if isinstance(module, SqueezeExcite) and isinstance(parent, InvertedResidual):
        return not parent.block.hard_swish
    return isinstance(module, InvertedResidual)


def _activation_after(module: nn.Module) -> Activation:
    parent = module.parent
    if isinstance(parent, SqueezeExcite):
        return "relu" if module.name == "reduce" else "hard_sigmoid"
    if isinstance(parent, InvertedResidual) and module.name != "project_bn":
        return "other" if parent.block.hard_swish else "relu"
    return "other"


def _network(blocks: tuple[Block, ...], *, size: str, md5: str) -> Network:
    return Network(
        functools.partial(MobileNetV3, blocks),
        weights=KerasWeights(
            _keras_layers(blocks),
            ignored=frozenset({"conv_2", "logits"}),
            download=Download(
                f"{KERAS_URL}/mobilenet_v3/"
                f"weights_mobilenet_v3_{size}_224_1.0_float_no_top_v2.h5",
                md5,
            ),
        ),
        int8=Int8(
            float_parts=_narrow_depthwise(blocks),
            rounding=Rounding(_enters_rounded, _activation_after),
        ),
    )


NETWORKS = {
    "mobilenet_v3_small": _network(
        SMALL, size="small", md5="d3e8ec802a04aa4fc771ee12a9a9b836"
    ),
    "mobilenet_v3_large": _network(
        LARGE, size="large", md5="07fb09a5933dd0c8eaafa16978110389"
    ),
}
