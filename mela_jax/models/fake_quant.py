"""Fake quantization: train a network with the rounding that an int8 file will have.

Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", CVPR 2018 (arXiv:1712.05877). What an int8 file of
`export.to_tflite` keeps in eight bits is rounded in the forward pass, and the gradient
passes as if it were not (the straight-through estimator). No variables are added.

- **Weights**: symmetric, one scale per output channel. Batch norm is folded into them,
  which multiplies a channel and its scale by the same number: rounding the kernel and
  rounding the folded kernel are the same thing, whatever the statistics.
- **Activations**: asymmetric, one scale per tensor, over the range of the batch, as the
  export calibrates by the smallest and largest value. Where these are, the network's
  `eight_bits.Rounding` tells: a ReLU is part of the convolution before it, hard-swish
  is one float operation between two rounded tensors. What `eight_bits.float_parts`
  names is left alone, and of the gates of `eight_bits.DYNAMIC` all but the weights.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mela_jax.models.eight_bits import DYNAMIC, float_parts
from mela_jax.models.head import Head
from mela_jax.models.normalization import BatchNorm

# int8 without -128, so that the scale is symmetric.
_WEIGHT_LEVELS = 127
_ACTIVATION_LEVELS = 255


def fake_quantize_weights(kernel: jax.Array) -> jax.Array:
    """Round a kernel float[..., D] to int8, one scale for each of the D channels."""
    largest = jnp.max(jnp.abs(kernel), axis=tuple(range(kernel.ndim - 1)))
    scale = jnp.maximum(largest, 1e-12) / _WEIGHT_LEVELS
    return _straight_through(kernel, jnp.round(kernel / scale) * scale)


def fake_quantize_activations(x: jax.Array) -> jax.Array:
    """Round a float tensor to int8 over its own range, zero to zero.

    The range is not differentiated.
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
    """Return a `Classifier`'s `apply` with the rounding of an int8 file.

    Raises:
      ValueError: if the network does not say where it is rounded
        (`Network.trains_rounded`).
    """
    rounding = network.int8.rounding
    if rounding is None:
        raise ValueError(f"{type(network.body).__name__} does not say what is rounded")
    kept = float_parts(network)

    def intercept(
        method: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        module = context.module
        gates = isinstance(module, nn.Conv) and DYNAMIC in module.path
        if context.method_name != "__call__" or gates:
            return method(*args, **kwargs)
        is_float = "/".join(module.path).startswith(kept)
        # The head computes in float; what enters it is the body's.
        enters = isinstance(module, Head) or not is_float
        if enters and (isinstance(module, nn.Conv) or rounding.enters(module)):
            args = (fake_quantize_activations(args[0]), *args[1:])
        result = method(*args, **kwargs)
        # What a ReLU lets through is rounded where it enters another convolution, or a
        # module of which `Rounding.enters` tells.
        if is_float or not _ends_convolution(module) or rounding.relu_after(module):
            return result
        return fake_quantize_activations(result)

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


def _ends_convolution(module: nn.Module) -> bool:
    """Say whether no batch norm or bias of a convolution follows on a module."""
    biased = isinstance(module, nn.Conv) and module.use_bias
    return biased or isinstance(module, BatchNorm)
