"""Attention modules that go into a body or over its last map.

Each maps [B, h, w, C] to the same shape and dtype; gates and sums are float32.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mela_jax.models.layers import Conv


class Gate(nn.Module):
    """The gate of MAG-KD: one number in (0, 1) for each place.

    1x1 convolution to `width` channels, ReLU, 1x1 convolution to one, sigmoid. A body
    that multiplies its last map by it lets the loss of the logits train it.
    """

    width: int = 128
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [B, h, w, C] to [B, h, w, 1]."""
        conv = functools.partial(Conv, use_bias=True, dtype=self.dtype)
        y = jax.nn.relu(conv(self.width, name="reduce")(x))
        return jax.nn.sigmoid(conv(1, name="expand")(y))


class SpatialGate(nn.Module):
    """CBAM's gate over places, from the channels' maximum and mean.

    Woo et al., "CBAM: Convolutional Block Attention Module", ECCV 2018
    (arXiv:1807.06521).
    """

    kernel_size: int = 7
    use_bias: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return [B, h, w, C] gated."""
        wide = x.astype(jnp.float32)
        both = [f(wide, axis=-1, keepdims=True) for f in (jnp.max, jnp.mean)]
        k = self.kernel_size
        conv = Conv(1, (k, k), use_bias=self.use_bias, name="conv")
        gate = jax.nn.sigmoid(conv(jnp.concatenate(both, axis=-1)))
        return x * gate.astype(x.dtype)


class CBAM(nn.Module):
    """CBAM with the input added: a gate over channels, then one over places."""

    reduction: int = 16
    kernel_size: int = 7
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return [B, h, w, C] gated, plus the input."""
        wide, channels = x.astype(jnp.float32), x.shape[-1]
        reduce = nn.Dense(channels // self.reduction, use_bias=False, name="reduce")
        expand = nn.Dense(channels, use_bias=False, name="expand")
        gate = jax.nn.sigmoid(
            sum(
                expand(jax.nn.relu(reduce(pooled)))
                for pooled in (jnp.max(wide, (1, 2)), jnp.mean(wide, (1, 2)))
            )
        )
        y = x * gate[:, None, None].astype(x.dtype)
        spatial = SpatialGate(self.kernel_size, use_bias=True, name="spatial")
        return x + spatial(y)


class SGE(nn.Module):
    """Spatial group-wise enhancement: in each group of channels a gate over places.

    Li, Hu & Yang 2019 (arXiv:1905.09646). A place's gate tells how like the group's
    mean it is, standardised over the places. The bias starts at 1, as in the original:
    at 0, each module halves its map.
    """

    groups: int = 8
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return [B, h, w, C] gated; C divides into the groups."""
        batch, h, w, channels = x.shape
        wide = x.astype(jnp.float32).reshape(batch, h * w, self.groups, -1)
        likeness = jnp.sum(wide * jnp.mean(wide, axis=1, keepdims=True), axis=-1)
        centred = likeness - jnp.mean(likeness, axis=1, keepdims=True)
        # The unbiased deviation; of a single place it is 0.
        variance = jnp.sum(centred**2, axis=1, keepdims=True) / max(h * w - 1, 1)
        standard = centred / (jnp.sqrt(variance + 1e-20) + 1e-5)
        weight = self.param("weight", nn.initializers.zeros, (self.groups,))
        bias = self.param("bias", nn.initializers.ones, (self.groups,))
        gate = jax.nn.sigmoid(standard * weight + bias)
        return (wide * gate[..., None]).reshape(x.shape).astype(x.dtype)


class S2(nn.Module):
    """S2-MLP attention: shifted copies of the map, weighted for each channel.

    Yu et al., "S2-MLPv2", 2021 (arXiv:2108.01072). The weights come from the copies'
    mean over the places; the paper's sum would tie them to the size of the map.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [B, h, w, C] to the same shape."""
        channels = x.shape[-1]
        dense = functools.partial(nn.Dense, dtype=self.dtype)
        first, second, third = jnp.split(
            dense(3 * channels, name="split")(x), 3, axis=-1
        )
        down, up, right, left = (1, 0), (-1, 0), (0, 1), (0, -1)
        parts = jnp.stack(
            [
                _shift_quarters(first, (down, up, right, left)),
                _shift_quarters(second, (right, left, down, up)),
                third,
            ],
            axis=1,
        )
        pooled = jnp.mean(parts.astype(jnp.float32).sum(axis=1), axis=(1, 2))
        dense = functools.partial(nn.Dense, use_bias=False)
        y = jax.nn.gelu(dense(channels, name="mix")(pooled), approximate=False)
        weights = dense(3 * channels, name="weigh")(y).reshape(-1, 3, channels)
        weights = jax.nn.softmax(weights, axis=1)[:, :, None, None]
        y = jnp.sum(parts * weights.astype(parts.dtype), axis=1)
        return nn.Dense(channels, dtype=self.dtype, name="merge")(y)


def _shift_quarters(x: jax.Array, shifts: tuple[tuple[int, int], ...]) -> jax.Array:
    """Move each quarter of the channels by so many rows and columns.

    The edge that a shift leaves keeps its value.
    """
    return jnp.concatenate(
        [
            _shift(part, *shift)
            for part, shift in zip(jnp.array_split(x, 4, axis=-1), shifts, strict=True)
        ],
        axis=-1,
    )


def _shift(x: jax.Array, rows: int, columns: int) -> jax.Array:
    """Move [B, h, w, C] down by `rows` and right by `columns`, each -1, 0 or 1."""
    h, w = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    return padded[:, 1 - rows : 1 - rows + h, 1 - columns : 1 - columns + w]
