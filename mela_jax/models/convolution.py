"""Convolutions and pooling that are fast on a CPU and on a GPU.

XLA lowers a depthwise convolution to a naive loop on a CPU, one to two orders of
magnitude slower than the memory traffic it needs, and on a GPU to cuDNN's grouped one,
which took 4 to 16 times as long on an H100 without autotuning (docs/gpu.md). Here both
get k*k shifted multiply-adds, which XLA fuses into one loop, with a gradient of their
own. On a CPU, where XLA also transposes both operands of the kernel gradient of a 1x1
convolution, that one becomes the matrix product that it is. All else, a TPU and an
exported graph get the one `lax` convolution.
"""

import contextlib
import contextvars
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

Pads = tuple[tuple[int, int], tuple[int, int]]

_PLAIN: contextvars.ContextVar[bool] = contextvars.ContextVar("plain", default=False)


@contextlib.contextmanager
def plain_convolutions() -> Iterator[None]:
    """Trace every convolution as one `lax` convolution, on any platform.

    An exported graph, and the count of its operations, must not depend on the machine.
    """
    token = _PLAIN.set(True)
    try:
        yield
    finally:
        _PLAIN.reset(token)


def _platform() -> str:
    """Return "cpu", "gpu" or "tpu", or "plain" inside `plain_convolutions`."""
    return "plain" if _PLAIN.get() else jax.default_backend()


def conv_general_dilated(
    x: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> jax.Array:
    """Stand in for `lax.conv_general_dilated` in the convolutions of Flax.

    From float[B, H, W, C] and a kernel float[k, k, C / groups, D] of the same dtype to
    float[B, H', W', D]. `options` are those of `lax`, both dilations among them.
    """
    # SAME stays a word here: an explicit padding becomes a PAD operation of its own in
    # an exported graph.
    plain = functools.partial(
        lax.conv_general_dilated, x, kernel, strides, padding, **options
    )
    (k, width, _, filters), step = kernel.shape, strides[0]
    dilations = (*options["lhs_dilation"], *options["rhs_dilation"])
    is_regular = k == width and strides == (step, step) and max(dilations) == 1
    is_depthwise = options["feature_group_count"] == x.shape[-1] == filters
    fast = ("cpu", "gpu") if is_depthwise else ("cpu",)
    if _platform() not in fast or not is_regular:
        return plain()
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    (top, bottom), (left, right) = padding
    if is_depthwise:
        return _shifted_conv(x, kernel, step, ((top, bottom), (left, right)))
    if k > 1 or any((top, bottom, left, right)):
        return plain()
    if step > 1:
        x = x[:, ::step, ::step]
    # Two dimensions, not einsum: with the batch kept apart, the kernel gradient is
    # transposed after all.
    product = x.reshape(-1, x.shape[-1]) @ kernel[0, 0]
    return product.reshape(*x.shape[:3], filters)


def max_pool(x: jax.Array, *, window: int, strides: int, padding: int) -> jax.Array:
    """Take the maximum over square windows of float[B, H, W, C].

    Where a window holds its maximum more than once, the gradient goes to the first, on
    every platform. `padding` rows and columns of minus infinity are on every side.
    """
    pads = ((padding, padding), (padding, padding))
    if _platform() != "cpu":
        return nn.max_pool(x, (window, window), (strides, strides), pads)
    return _shifted_max(x, window, strides, pads)


def _taps(padded: jax.Array, k: int, strides: int) -> Iterator[jax.Array]:
    """Yield the k*k strided slices of [..., H, W, C] that a window's places see."""
    *lead, h, w, channels = padded.shape
    rows, columns = ((n - k) // strides * strides + 1 for n in (h, w))
    for i, j in itertools.product(range(k), repeat=2):
        yield lax.slice(
            padded,
            (0,) * len(lead) + (i, j, 0),
            (*lead, i + rows, j + columns, channels),
            (1,) * len(lead) + (strides, strides, 1),
        )


def _pad(x: jax.Array, pads: Pads, value: float = 0.0) -> jax.Array:
    return jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=value)


def _spread(g: jax.Array, strides: int, starts: Any, sizes: Any) -> jax.Array:
    """Put [B, h, w, C] into zeros [B, *sizes, C], `strides` apart, from `starts` on."""
    config = [(0, 0, 0)]
    for num, start, size in zip(g.shape[1:3], starts, sizes, strict=True):
        end = size - start - ((num - 1) * strides + 1)
        config.append((start, end, strides - 1))
    return lax.pad(g, jnp.zeros((), g.dtype), [*config, (0, 0, 0)])


def _correlate(padded: jax.Array, kernel: jax.Array, strides: int) -> jax.Array:
    """Sum the k*k shifted slices of `padded`, each times its weight per channel."""
    k = kernel.shape[0]
    # bfloat16 products are summed in float32, as a convolution does.
    total = jnp.zeros((), jnp.float32)
    for index, tap in enumerate(_taps(padded, k, strides)):
        weight = kernel[*divmod(index, k), 0]
        total = total + tap.astype(jnp.float32) * weight.astype(jnp.float32)
    return total.astype(padded.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _shifted_conv(
    x: jax.Array, kernel: jax.Array, strides: int, pads: Pads
) -> jax.Array:
    return _correlate(_pad(x, pads), kernel, strides)


def _shifted_conv_fwd(x: jax.Array, kernel: jax.Array, strides: int, pads: Pads) -> Any:
    return _shifted_conv(x, kernel, strides, pads), (x, kernel)


def _shifted_conv_bwd(strides: int, pads: Pads, residuals: Any, g: jax.Array) -> Any:
    x, kernel = residuals
    k = kernel.shape[0]
    # Input gradient: the same sum over the spread cotangent, with the kernel turned by
    # 180 degrees.
    starts = [k - 1 - low for low, _ in pads]
    spread_g = _spread(g, strides, starts, [n + k - 1 for n in x.shape[1:3]])
    dx = _correlate(spread_g, kernel[::-1, ::-1], 1)
    scanned = _platform() == "cpu"
    kernel_gradient = _scanned_kernel_gradient if scanned else _kernel_gradient
    return dx, kernel_gradient(_pad(x, pads), g, strides, k).astype(kernel.dtype)


def _kernel_gradient(
    padded: jax.Array, g: jax.Array, strides: int, k: int
) -> jax.Array:
    """Correlate input and cotangent, a reduction over the whole batch for each tap."""
    cotangent = g.astype(jnp.float32)
    total = [
        jnp.sum(tap.astype(jnp.float32) * cotangent, axis=(0, 1, 2))
        for tap in _taps(padded, k, strides)
    ]
    return jnp.stack(total).reshape(k, k, 1, -1)


def _scanned_kernel_gradient(
    padded: jax.Array, g: jax.Array, strides: int, k: int
) -> jax.Array:
    """Correlate input and cotangent, image by image, all taps in one pass.

    A reduction for each tap reads both arrays from memory k*k times, which a CPU
    cannot afford. A scan keeps one image in the cache, and a reduction with k*k
    operands becomes a single loop over it.
    """

    def add(total: tuple[jax.Array, ...], more: tuple[jax.Array, ...]) -> Any:
        return tuple(a + b for a, b in zip(total, more, strict=True))

    def add_image(total: tuple[jax.Array, ...], pair: tuple[jax.Array, ...]) -> Any:
        image, cotangent = (a.astype(jnp.float32) for a in pair)
        products = tuple(tap * cotangent for tap in _taps(image, k, strides))
        zeros = (jnp.zeros((), jnp.float32),) * (k * k)
        return add(total, lax.reduce(products, zeros, add, (0, 1))), None

    start = (jnp.zeros(g.shape[-1], jnp.float32),) * (k * k)
    total, _ = lax.scan(add_image, start, (padded, g))
    return jnp.stack(total).reshape(k, k, 1, -1)


_shifted_conv.defvjp(_shifted_conv_fwd, _shifted_conv_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _shifted_max(x: jax.Array, window: int, strides: int, pads: Pads) -> jax.Array:
    return functools.reduce(
        jnp.maximum, _taps(_pad(x, pads, -jnp.inf), window, strides)
    )


def _shifted_max_fwd(x: jax.Array, window: int, strides: int, pads: Pads) -> Any:
    y = _shifted_max(x, window, strides, pads)
    return y, (x, y)


def _shifted_max_bwd(
    window: int, strides: int, pads: Pads, residuals: Any, g: jax.Array
) -> tuple[jax.Array]:
    x, y = residuals
    taken = jnp.zeros(y.shape, bool)
    total = jnp.zeros((), g.dtype)
    for index, tap in enumerate(_taps(_pad(x, pads, -jnp.inf), window, strides)):
        first = (tap == y) & ~taken
        taken = taken | first
        # Put the cotangents back where the tap read.
        place = divmod(index, window)
        starts = [at - low for at, (low, _) in zip(place, pads, strict=True)]
        part = jnp.where(first, g, jnp.zeros((), g.dtype))
        total = total + _spread(part, strides, starts, x.shape[1:3])
    return (total,)


_shifted_max.defvjp(_shifted_max_fwd, _shifted_max_bwd)
