"""Convolutions that are fast on a CPU and plain everywhere else.

XLA's CPU backend lowers a depthwise convolution to a naive loop, one to two orders
of magnitude slower than the memory traffic it needs, and transposes both operands of
the kernel gradient of a 1x1 convolution. Here a CPU gets the depthwise one as k*k
shifted multiply-adds, which XLA fuses into one vectorised loop, with a gradient of its
own, and the 1x1 one as the matrix product that it is. A GPU, a TPU and an exported
graph get the one `lax` convolution, which their compilers recognise.
"""

import contextlib
import contextvars
import functools
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

Padding = Literal["SAME"] | tuple[tuple[int, int], tuple[int, int]]

_PLAIN: contextvars.ContextVar[bool] = contextvars.ContextVar("plain", default=False)


@contextlib.contextmanager
def plain_convolutions() -> Iterator[None]:
    """Trace every convolution as one `lax` convolution, on any platform.

    For exporting a graph and for counting its operations: what is traced inside the
    context does not depend on the machine that traces it.
    """
    token = _PLAIN.set(True)
    try:
        yield
    finally:
        _PLAIN.reset(token)


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu" and not _PLAIN.get()


def pointwise_conv(x: jax.Array, kernel: jax.Array, *, strides: int = 1) -> jax.Array:
    """Convolve with a 1x1 kernel.

    Args:
      x: float[B, H, W, C].
      kernel: float[1, 1, C, D], of the dtype of `x`.
      strides: step along H and W.

    Returns:
      float[B, H', W', D] of the dtype of `x`, with H' = ceil(H / strides).
    """
    if not _on_cpu():
        return lax.conv_general_dilated(
            x,
            kernel,
            (strides, strides),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
    if strides > 1:
        x = x[:, ::strides, ::strides]
    # Two dimensions, not einsum: with the batch kept apart, the kernel gradient is
    # transposed after all.
    product = x.reshape(-1, x.shape[-1]) @ kernel[0, 0]
    return product.reshape(*x.shape[:3], kernel.shape[-1])


class PointwiseConv(nn.Module):
    """A 1x1 convolution; its parameters are those of `nn.Conv`.

    Attributes:
      filters: channels out.
      strides: step along height and width.
      use_bias: add a bias per channel.
      dtype: dtype of the computation; the parameters stay float32.
    """

    filters: int
    strides: int = 1
    use_bias: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map float[B, H, W, C] to float[B, H', W', filters]."""
        kernel = self.param(
            "kernel",
            nn.initializers.glorot_uniform(),
            (1, 1, x.shape[-1], self.filters),
            jnp.float32,
        )
        y = pointwise_conv(
            x.astype(self.dtype), kernel.astype(self.dtype), strides=self.strides
        )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.filters,))
            y = y + bias.astype(self.dtype)
        return y


def max_pool(x: jax.Array, *, window: int, strides: int, padding: int) -> jax.Array:
    """Take the maximum over square windows.

    Where a window holds its maximum more than once, the gradient goes to the first, on
    every platform.

    Args:
      x: float[B, H, W, C].
      window: side of the window.
      strides: step of the window.
      padding: rows and columns of minus infinity on every side.

    Returns:
      float[B, H', W', C] of the dtype of `x`.
    """
    pads = ((padding, padding), (padding, padding))
    if not _on_cpu():
        return nn.max_pool(x, (window, window), (strides, strides), pads)
    return _shifted_max(x, window, strides, pads)


def depthwise_conv(
    x: jax.Array, kernel: jax.Array, *, strides: int, padding: Padding
) -> jax.Array:
    """Convolve each channel with its own kernel.

    Args:
      x: float[B, H, W, C].
      kernel: float[k, k, 1, C], of the dtype of `x`.
      strides: step of the window, the same along H and W.
      padding: "SAME" as TensorFlow counts it, or ((top, bottom), (left, right)).

    Returns:
      float[B, H', W', C] of the dtype of `x`.
    """
    pads = _explicit_padding(x.shape, kernel.shape[0], strides, padding)
    if not _on_cpu():
        # Keep the word SAME where it was said: an explicit padding becomes a PAD
        # operation of its own in an exported graph.
        spelled = padding if isinstance(padding, str) else pads
        return _lax_conv(x, kernel, strides, spelled)
    return _shifted_conv(x, kernel, strides, pads)


class DepthwiseConv(nn.Module):
    """A depthwise convolution without bias.

    Attributes:
      kernel_size: side k of the square window, in pixels.
      strides: step of the window.
      padding: "SAME" or ((top, bottom), (left, right)).
      dtype: dtype of the computation; the parameter stays float32.
    """

    kernel_size: int
    strides: int = 1
    padding: Padding = "SAME"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map float[B, H, W, C] to float[B, H', W', C]."""
        k = self.kernel_size
        kernel = self.param(
            "kernel",
            # He et al. 2015. The fan in is k * k, as each channel sees only itself; a
            # fan that counts all channels would start so small that batch norm's
            # epsilon drowns the signal.
            nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal"),
            (k, k, 1, x.shape[-1]),
            jnp.float32,
        )
        return depthwise_conv(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            strides=self.strides,
            padding=self.padding,
        )


def _explicit_padding(
    shape: Sequence[int], k: int, strides: int, padding: Padding
) -> tuple[tuple[int, int], tuple[int, int]]:
    if isinstance(padding, str):
        (top, bottom), (left, right) = lax.padtype_to_pads(
            shape[1:3], (k, k), (strides, strides), padding
        )
        return ((int(top), int(bottom)), (int(left), int(right)))
    return padding


def _lax_conv(x: jax.Array, kernel: jax.Array, strides: int, padding: Any) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        (strides, strides),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _tap(
    padded: jax.Array, i: int, j: int, out_hw: tuple[int, ...], s: int
) -> jax.Array:
    """Slice the pixels of `padded` [..., H, W, C] that tap (i, j) sees."""
    h, w = out_hw
    lead = padded.ndim - 3
    return lax.slice(
        padded,
        (0,) * lead + (i, j, 0),
        padded.shape[:lead]
        + (i + (h - 1) * s + 1, j + (w - 1) * s + 1, padded.shape[-1]),
        (1,) * lead + (s, s, 1),
    )


def _pad(
    x: jax.Array, pads: tuple[tuple[int, int], tuple[int, int]], value: float = 0.0
) -> jax.Array:
    return jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=value)


def _correlate(padded: jax.Array, kernel: jax.Array, strides: int) -> jax.Array:
    """Sum the k*k shifted slices of `padded`, each times its weight per channel."""
    k = kernel.shape[0]
    out_hw = tuple((n - k) // strides + 1 for n in padded.shape[1:3])
    # bfloat16 products are summed in float32, as a convolution does.
    total = jnp.zeros((), jnp.float32)
    for i in range(k):
        for j in range(k):
            tap = _tap(padded, i, j, out_hw, strides).astype(jnp.float32)
            total = total + tap * kernel[i, j, 0].astype(jnp.float32)
    return total.astype(padded.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _shifted_conv(
    x: jax.Array, kernel: jax.Array, strides: int, pads: Any
) -> jax.Array:
    return _correlate(_pad(x, pads), kernel, strides)


def _shifted_fwd(
    x: jax.Array, kernel: jax.Array, strides: int, pads: Any
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _shifted_conv(x, kernel, strides, pads), (x, kernel)


def _shifted_bwd(
    strides: int, pads: Any, residuals: Any, g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    k = kernel.shape[0]
    # Input gradient: the same sum over the cotangent, spread out by the strides and
    # padded, with the kernel turned by 180 degrees.
    config = [(0, 0, 0)]
    for axis, (low, _) in zip((1, 2), pads, strict=True):
        spread = (g.shape[axis] - 1) * strides + 1
        before = k - 1 - low
        after = x.shape[axis] + k - 1 - before - spread
        config.append((before, after, strides - 1))
    config.append((0, 0, 0))
    spread_g = lax.pad(g, jnp.zeros((), g.dtype), config)
    dx = _correlate(spread_g, kernel[::-1, ::-1], 1)
    return dx, _kernel_gradient(_pad(x, pads), g, strides, k).astype(kernel.dtype)


def _kernel_gradient(
    padded: jax.Array, g: jax.Array, strides: int, k: int
) -> jax.Array:
    """Correlate input and cotangent, image by image, all taps in one pass.

    One reduction per tap over the whole batch reads both arrays from memory k*k
    times. A scan keeps one image in the cache, and a reduction with k*k operands
    becomes a single loop over it.
    """

    def add(
        total: tuple[jax.Array, ...], more: tuple[jax.Array, ...]
    ) -> tuple[jax.Array, ...]:
        return tuple(a + b for a, b in zip(total, more, strict=True))

    def add_image(
        total: tuple[jax.Array, ...], pair: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, ...], None]:
        image, cotangent = (a.astype(jnp.float32) for a in pair)
        products = tuple(
            _tap(image, i, j, g.shape[1:3], strides) * cotangent
            for i in range(k)
            for j in range(k)
        )
        zeros = (jnp.zeros((), jnp.float32),) * (k * k)
        return add(total, lax.reduce(products, zeros, add, (0, 1))), None

    start = (jnp.zeros(g.shape[-1], jnp.float32),) * (k * k)
    total, _ = lax.scan(add_image, start, (padded, g))
    return jnp.stack(total).reshape(k, k, 1, -1)


_shifted_conv.defvjp(_shifted_fwd, _shifted_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _shifted_max(x: jax.Array, window: int, strides: int, pads: Any) -> jax.Array:
    return functools.reduce(jnp.maximum, _windows(x, window, strides, pads))


def _windows(x: jax.Array, window: int, strides: int, pads: Any) -> list[jax.Array]:
    """List the pixels of every window, place by place, each [B, H', W', C]."""
    padded = _pad(x, pads, -jnp.inf)
    out_hw = tuple((n - window) // strides + 1 for n in padded.shape[1:3])
    return [
        _tap(padded, i, j, out_hw, strides)
        for i in range(window)
        for j in range(window)
    ]


def _shifted_max_fwd(
    x: jax.Array, window: int, strides: int, pads: Any
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    y = _shifted_max(x, window, strides, pads)
    return y, (x, y)


def _shifted_max_bwd(
    window: int, strides: int, pads: Any, residuals: Any, g: jax.Array
) -> tuple[jax.Array]:
    x, y = residuals
    padded_hw = [n + sum(pad) for n, pad in zip(x.shape[1:3], pads, strict=True)]
    taken = jnp.zeros(y.shape, bool)
    total = jnp.zeros((), g.dtype)
    for index, tap in enumerate(_windows(x, window, strides, pads)):
        first = (tap == y) & ~taken
        taken = taken | first
        # Put the cotangents back where the tap read, `strides` apart.
        config = [(0, 0, 0)]
        for axis, offset in enumerate(divmod(index, window)):
            spread = (g.shape[1 + axis] - 1) * strides + 1
            low = offset - pads[axis][0]
            high = padded_hw[axis] - offset - spread - pads[axis][1]
            config.append((low, high, strides - 1))
        config.append((0, 0, 0))
        zero = jnp.zeros((), g.dtype)
        total = total + lax.pad(jnp.where(first, g, zero), zero, config)
    return (total,)


_shifted_max.defvjp(_shifted_max_fwd, _shifted_max_bwd)
