"""Convolutions, squeeze-and-excitation and inverted residuals as Flax layers.

The names of their modules are those of the parameters in every checkpoint, and those by
which `eight_bits` knows the parts of a network.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from mela_jax.models import convolution
from mela_jax.models.dropout import drop_rows
from mela_jax.models.eight_bits import Rounding
from mela_jax.models.head import Head
from mela_jax.models.normalization import BatchNorm
from mela_jax.models.outputs import LAST_MAP

ArrayFn = Callable[[jax.Array], jax.Array]


class Conv(nn.Conv):
    """Flax's convolution, 1x1 by default, by the lowerings of `convolution`.

    Attributes:
      fixed_bias: keep the bias from training, for a batch norm that follows subtracts
        it again: its gradient is zero, and costs a pass over the output.
    """

    kernel_size: Sequence[int] = (1, 1)
    use_bias: bool = False
    kernel_init: Any = nn.initializers.glorot_uniform()
    conv_general_dilated: Any = convolution.conv_general_dilated
    fixed_bias: bool = False

    @nn.nowrap
    def param(self, name: str, *args: Any, **options: Any) -> Any:
        """Make a parameter, as Flax's does."""
        value = super().param(name, *args, **options)
        is_fixed = self.fixed_bias and name == "bias"
        return jax.lax.stop_gradient(value) if is_fixed else value


# For depthwise convolutions: He et al. 2015. The fan in is k * k, as each channel sees
# only itself; a fan that counts all channels would start so small that batch norm's
# epsilon drowns the signal.
DEPTHWISE_INIT = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")


def norm_layer(module: Any, *, train: bool, **options: Any) -> Callable[..., BatchNorm]:
    """Return `BatchNorm` with the dtype and the mapped axis of the module around it."""
    return functools.partial(
        BatchNorm,
        use_running_average=not train,
        axis_name=module.bn_axis_name,
        dtype=module.dtype,
        **options,
    )


def layer_norm(dtype: Any, *, name: str) -> nn.LayerNorm:
    """Return a layer normalisation over the channels that is exact in float32."""
    return nn.LayerNorm(epsilon=1e-6, dtype=dtype, use_fast_variance=False, name=name)


# Means and standard deviations of ImageNet's channels, of images in [0, 1].
_MEANS = (0.485, 0.456, 0.406)
_DEVIATIONS = (0.229, 0.224, 0.225)
# Means of the blue, green and red channel, of images in [0, 255].
_BGR_MEANS = (103.939, 116.779, 123.68)


def scale_to_unit(image: jax.Array) -> jax.Array:
    """Map RGB in [0, 255] to [0, 1]."""
    return image / 255.0


def scale_to_one(image: jax.Array) -> jax.Array:
    """Map RGB in [0, 255] to [-1, 1]."""
    return image / 127.5 - 1.0


def scale_to_imagenet(image: jax.Array) -> jax.Array:
    """Map RGB in [0, 255] to mean 0 and deviation 1 over ImageNet."""
    means, deviations = (jnp.asarray(v, jnp.float32) for v in (_MEANS, _DEVIATIONS))
    return (image / 255.0 - means) / deviations


def scale_to_caffe(image: jax.Array) -> jax.Array:
    """Map RGB in [0, 255] to BGR less the means over ImageNet."""
    return image[..., ::-1] - jnp.asarray(_BGR_MEANS, jnp.float32)


def round_filters(filters: float) -> int:
    """Round a channel count to a multiple of 8, at most 10 % down."""
    rounded = max(8, int(filters + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * filters else rounded


class Squeeze(NamedTuple):
    """A kind of squeeze-and-excitation.

    Attributes:
      width: of the block's input channels and of the gated ones, the channels between.
      activation: of the first convolution.
      gate: of the second.
    """

    width: Callable[[int, int], int]
    activation: ArrayFn
    gate: ArrayFn


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from all channels' means.

    Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018 (arXiv:1709.01507).
    `width` is that of the layer between.
    """

    kind: Squeeze
    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return [B, h, w, C] gated."""
        gate = jnp.mean(x.astype(jnp.float32), axis=(1, 2), keepdims=True)
        conv = functools.partial(Conv, use_bias=True, dtype=self.dtype)
        gate = self.kind.activation(conv(self.width, name="reduce")(gate))
        return x * self.kind.gate(conv(x.shape[-1], name="expand")(gate))


class Block(NamedTuple):
    """One inverted residual block: its input's channels times `expansion`, rounded.

    In training an image skips what the block would add to it with the probability
    `drop`: stochastic depth, Huang et al. 2016 (arXiv:1603.09382).
    """

    expansion: float
    filters: int
    kernel_size: int
    strides: int
    activation: ArrayFn
    squeeze_excite: Squeeze | None = None
    drop: float = 0.0


class InvertedResidual(nn.Module):
    """Expand, filter each channel, gate, project; add the input where shapes allow.

    Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018
    (arXiv:1801.04381). Without expansion there is no expanding convolution.
    """

    block: Block
    dtype: Any
    bn_axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map [B, h, w, C] to [B, ceil(h/s), ceil(w/s), filters]."""
        norm = norm_layer(self, train=train)
        block, inputs, dtype = self.block, x, self.dtype
        if block.expansion != 1:
            filters = round_filters(x.shape[-1] * block.expansion)
            x = Conv(filters, dtype=dtype, name="expand_conv")(x)
            x = block.activation(norm(name="expand_bn")(x))
        x = Conv(
            x.shape[-1],
            (block.kernel_size, block.kernel_size),
            strides=block.strides,
            feature_group_count=x.shape[-1],
            kernel_init=DEPTHWISE_INIT,
            dtype=dtype,
            name="depthwise",
        )(x)
        x = block.activation(norm(name="depthwise_bn")(x))
        if kind := block.squeeze_excite:
            width = kind.width(inputs.shape[-1], x.shape[-1])
            x = SqueezeExcite(kind, width, dtype, name="squeeze_excite")(x)
        x = Conv(block.filters, dtype=dtype, name="project_conv")(x)
        x = norm(name="project_bn")(x)
        if block.strides == 1 and inputs.shape[-1] == block.filters:
            if train and block.drop:
                x = drop_rows(
                    x, self.make_rng("dropout"), block.drop, axis=self.bn_axis_name
                )
            x = x + inputs
        return x


class InvertedResidualNet(nn.Module):
    """A body: 3x3 stem, inverted residuals, 1x1 top to a map at 1/32 of the size.

    `normalise` maps float32 RGB in [0, 255] to what the stem takes; `activation` is
    that of stem and top; `attention` has modules (`models.attention`) for what the
    blocks of these numbers return; `gate` makes one for the last map, which is
    multiplied by it and joined by the map "attention" [B, h, w, 1]. Parameters and
    statistics stay float32 whatever `dtype`; the batch's statistics are averaged over
    the mapped axis `bn_axis_name`, if any.
    """

    blocks: tuple[Block, ...]
    normalise: ArrayFn
    activation: ArrayFn
    stem_filters: int
    top_filters: int
    attention: Mapping[int, tuple[Callable[..., nn.Module], ...]] = FrozenDict()
    gate: Callable[..., nn.Module] | None = None
    dtype: Any = jnp.float32
    bn_axis_name: str | None = None

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """Map float RGB [B, H, W, 3] in [0, 255] to maps.

        Each is what the last block at its stride returns, the last one excepted.
        """
        norm = norm_layer(self, train=train)
        x = self.normalise(image.astype(jnp.float32))
        x = Conv(
            self.stem_filters, (3, 3), strides=2, dtype=self.dtype, name="stem_conv"
        )(x)
        x = self.activation(norm(name="stem_bn")(x))
        maps, stride = {}, 2
        for index, block in enumerate(self.blocks):
            x = InvertedResidual(
                block, self.dtype, self.bn_axis_name, name=f"block_{index:02d}"
            )(x, train=train)
            for number, make in enumerate(self.attention.get(index, ())):
                name = f"attention_{index:02d}_{number}"
                x = make(dtype=self.dtype, name=name)(x)
            stride *= block.strides
            if stride > 2:
                maps[f"stride_{stride}"] = x
        x = Conv(self.top_filters, dtype=self.dtype, name="top_conv")(x)
        x = self.activation(norm(name="top_bn")(x))
        if self.gate is not None:
            maps["attention"] = self.gate(dtype=self.dtype, name="gate")(x)
            x = x * maps["attention"]
        # Of a stride of 32 too.
        del maps[f"stride_{stride}"]
        return {**maps, LAST_MAP: x}


def _is_fused(activation: ArrayFn) -> bool:
    """Say whether TFLite makes the activation a part of the convolution."""
    return activation in (jax.nn.relu, jax.nn.relu6)


def _enters_rounded(module: nn.Module) -> bool:
    around: Any = module.parent
    if isinstance(module, SqueezeExcite):
        return _is_fused(around.block.activation)
    if isinstance(module, Head):
        return _is_fused(around.body.activation)
    return isinstance(module, InvertedResidual)


def _relu_after(module: nn.Module) -> bool:
    around: Any = module.parent
    if module.name == "project_bn":
        return False
    if isinstance(around, InvertedResidual):
        around = around.block
    return _is_fused(around.activation)


ROUNDING = Rounding(_enters_rounded, _relu_after)
