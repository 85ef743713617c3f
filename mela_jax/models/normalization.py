"""Batch normalisation that reads its input as few times as it can.

Ioffe & Szegedy, "Batch Normalization", ICML 2015 (arXiv:1502.03167). The arithmetic is
that of `flax.linen.BatchNorm`; what differs is the gradient. Written out, it takes two
sums over the batch and one multiply-add of the input and its cotangent; automatic
differentiation takes more passes over memory, where a small network spends most of its
time on a CPU.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


class BatchNorm(nn.Module):
    """Normalise each channel; variables and attributes are those of `nn.BatchNorm`.

    Parameters "scale" and "bias", statistics "mean" and "var" (collection
    "batch_stats"), are float32[C]; `dtype` is that of the result, everything inside is
    float32; batch statistics are averaged over the mapped axis `axis_name`, if any.
    With `use_scale` False, "scale" is 1 and no parameter.
    """

    use_running_average: bool
    momentum: float = 0.99
    epsilon: float = 1e-3
    axis_name: str | None = None
    dtype: Any = jnp.float32
    use_scale: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map float[B, H, W, C] to `dtype`[B, H, W, C]."""
        shape = (x.shape[-1],)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        scale = jnp.ones(shape, jnp.float32)
        if self.use_scale:
            scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        if self.use_running_average:
            gain = scale * lax.rsqrt(var.value + self.epsilon)
            y = x.astype(jnp.float32) * gain + (bias - mean.value * gain)
            return y.astype(self.dtype)
        # Under `init` there is no mapped axis yet.
        axis = None if self.is_initializing() else self.axis_name
        y, batch_mean, batch_var = _normalise(x, scale, bias, self.epsilon, axis)
        if not self.is_initializing():
            for stored, new in ((mean, batch_mean), (var, batch_var)):
                stored.value = self.momentum * stored.value + (1 - self.momentum) * new
        return y.astype(self.dtype)


def _sums(a: jax.Array, b: jax.Array) -> jax.Array:
    """Sum float32[B, H, W, C] `a` and `b` over all but the channels: float32[2, C].

    Two plain sums: XLA on the CPU has a fast kernel for each of them, and none for a
    reduction with two operands.
    """
    return jnp.stack([a.sum((0, 1, 2)), b.sum((0, 1, 2))])


def _average(sums: jax.Array, x: jax.Array, axis: str | None) -> jax.Array:
    """Divide sums float32[2, C] over `x` by their count, over the mapped axis too."""
    means = sums * (x.shape[-1] / x.size)
    return means if axis is None else lax.pmean(means, axis)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _normalise(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, axis: str | None
) -> Any:
    """Return (float32[B, H, W, C] normalised, mean float32[C], variance float32[C])."""
    return _normalise_fwd(x, scale, bias, epsilon, axis)[0]


def _normalise_fwd(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, axis: str | None
) -> Any:
    wide = x.astype(jnp.float32)
    mean, mean_of_squares = _average(_sums(wide, wide * wide), x, axis)
    # Rounding may leave a constant channel slightly below zero.
    var = jnp.maximum(mean_of_squares - mean * mean, 0.0)
    inverse = lax.rsqrt(var + epsilon)
    gain = scale * inverse
    y = wide * gain + (bias - mean * gain)
    return (y, mean, var), (x, scale, mean, inverse)


def _normalise_bwd(
    epsilon: float, axis: str | None, residuals: Any, cotangents: Any
) -> Any:
    # The stored statistics are no part of the loss: only y's cotangent counts.
    x, scale, mean, inverse = residuals
    g = cotangents[0]
    wide = x.astype(jnp.float32)
    sums = _sums(g, g * wide)
    # This device's share: the training step averages gradients over the devices.
    grad_bias = sums[0]
    grad_scale = inverse * (sums[1] - mean * sums[0])
    means = _average(jnp.stack([grad_bias, grad_scale]), x, axis)
    # dx = scale / std * (g - E[g] - x_hat E[g x_hat]), as one multiply-add in g and x.
    gain = scale * inverse
    slope = -gain * inverse * means[1]
    grad_x = g * gain + wide * slope - (gain * means[0] + slope * mean)
    return grad_x.astype(x.dtype), grad_scale, grad_bias


_normalise.defvjp(_normalise_fwd, _normalise_bwd)
