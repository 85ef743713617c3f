"""Fake quantization: train a network with the rounding that an int8 file will have.

Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", CVPR 2018 (arXiv:1712.05877). What an int8 file of
`export.to_tflite` keeps in eight bits is rounded in the forward pass, and the gradient
passes as if it were not (the straight-through estimator).

- **Weights**: symmetric, one scale per output channel. Batch norm is folded into them:
  it multiplies a channel by one number, which multiplies the channel's scale by the
  same and leaves the rounded integers as they are, so that rounding the kernel and
  rounding the folded kernel are the same thing, whatever the statistics.
- **Activations**: asymmetric, one scale per tensor, over the range of the batch, as the
  export calibrates by the smallest and largest value. A ReLU is part of the convolution
  before it, so that only what it lets through is rounded, and so are the two ends of a
  squeeze-and-excite gate. Hard-swish is one float operation between two rounded
  tensors. What `eight_bits.float_parts` names is left alone.

No state is added: the variables of the network are those without fake quantization.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mela_jax.models import efficientnet_lite, mobilenet_v3
from mela_jax.models.convolution import DepthwiseConv, PointwiseConv
from mela_jax.models.eight_bits import float_parts
from mela_jax.models.head import Classifier, Head
from mela_jax.models.normalization import BatchNorm

_CONVOLUTIONS = (nn.Conv, PointwiseConv, DepthwiseConv)
# int8 without -128, so that the scale is symmetric.
_WEIGHT_LEVELS = 127
_ACTIVATION_LEVELS = 255


def fake_quantize_weights(kernel: jax.Array) -> jax.Array:
    """Round a kernel to int8, one scale for each channel of its last axis.

    Args:
      kernel: float[..., D].
    """
    largest = jnp.max(jnp.abs(kernel), axis=tuple(range(kernel.ndim - 1)))
    scale = jnp.maximum(largest, 1e-12) / _WEIGHT_LEVELS
    return _straight_through(kernel, jnp.round(kernel / scale) * scale)


def fake_quantize_activations(x: jax.Array) -> jax.Array:
    """Round a tensor to int8 over its own range, in which zero has a level of its own.

    Args:
      x: float, any shape. Its range is not differentiated.
    """
    values = jax.lax.stop_gradient(x).astype(jnp.float32)
    # Zero is inside, for the padding of a convolution is made of it.
    low = jnp.minimum(jnp.min(values), 0.0)
    high = jnp.maximum(jnp.max(values), 0.0)
    scale = jnp.maximum(high - low, 1e-12) / _ACTIVATION_LEVELS
    zero = jnp.round(-low / scale)
    level = jnp.clip(jnp.round(values / scale) + zero, 0, _ACTIVATION_LEVELS)
    return _straight_through(x, ((level - zero) * scale).astype(x.dtype))


def make_fake_quantized(network: nn.Module) -> Callable[..., Any]:
    """Return `network.apply` with the rounding of an int8 file.

    Args:
      network: a `Classifier` whose body is a MobileNetV3 or an EfficientNet-Lite.

    Returns:
      A function with the arguments and results of `network.apply`.
    """
    kept = float_parts(network)

    def intercept(
        method: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        module = context.module
        if context.method_name != "__call__":
            return method(*args, **kwargs)
        is_float = "/".join(module.path).startswith(kept)
        if _comes_rounded(module) or (
            isinstance(module, _CONVOLUTIONS) and not is_float
        ):
            args = (fake_quantize_activations(args[0]), *args[1:])
        result = method(*args, **kwargs)
        return result if is_float else _round_result(module, result)

    def apply(variables: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        rounded = {**variables, "params": _round_kernels(variables["params"], kept)}
        with nn.intercept_methods(intercept):
            return network.apply(rounded, *args, **kwargs)

    return apply


def _straight_through(x: jax.Array, rounded: jax.Array) -> jax.Array:
    """Return `rounded`, with the gradient of `x`."""
    return x + jax.lax.stop_gradient(rounded - x)


def _round_kernels(params: Mapping[str, Any], kept: tuple[str, ...]) -> Any:
    """Round the kernels of every convolution that an int8 file has in eight bits."""

    def rounded(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        name = "/".join(entry.key for entry in path)
        if not name.endswith("/kernel") or name.startswith(kept):
            return leaf
        return fake_quantize_weights(leaf)

    return jax.tree_util.tree_map_with_path(rounded, params)


def _comes_rounded(module: nn.Module) -> bool:
    """Say whether what a module takes lies in eight bits, convolutions apart.

    It does where another operation than a convolution takes it too: the addition at the
    end of a block, the gating and the pooling after a ReLU.
    """
    if isinstance(
        module, mobilenet_v3.InvertedResidual | efficientnet_lite.InvertedResidual
    ):
        return module.name != "block_00"
    parent = module.parent
    if isinstance(parent, mobilenet_v3.InvertedResidual):
        is_gate = isinstance(module, mobilenet_v3.SqueezeExcite)
        return is_gate and parent.name != "block_00" and not parent.block.hard_swish
    if isinstance(module, Head) and isinstance(parent, Classifier):
        return isinstance(parent.body, efficientnet_lite.EfficientNetLite)
    return False


def _round_result(module: nn.Module, result: Any) -> Any:
    """Round what leaves a convolution in eight bits and enters no other one."""
    if isinstance(module, BatchNorm) and not _relu_follows(module):
        return fake_quantize_activations(result)
    if module.name == "expand" and isinstance(
        module.parent, mobilenet_v3.SqueezeExcite
    ):
        # relu6(x + 3) of the gate is part of this convolution.
        return fake_quantize_activations(jax.nn.relu6(result + 3.0)) - 3.0
    return result


def _relu_follows(norm: BatchNorm) -> bool:
    """Say whether a batch norm's output goes into a ReLU.

    Such an output is rounded after the ReLU, where it is taken.
    """
    if norm.name == "project_bn":
        return False
    parent = norm.parent
    if isinstance(parent, mobilenet_v3.InvertedResidual):
        return not parent.block.hard_swish
    return isinstance(
        parent, efficientnet_lite.InvertedResidual | efficientnet_lite.EfficientNetLite
    )
