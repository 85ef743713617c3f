"""Random masks that depend on an image's place in the batch, not on its device."""

import jax
import jax.numpy as jnp


def keep_mask(
    key: jax.Array, shape: tuple[int, ...], keep: float, batch_axis_name: str | None
) -> jax.Array:
    """Draw a dropout mask, bool[B, F], whose rows depend on their place in the batch.

    `nn.Dropout` would draw from one key a device, and so the masks, and the loss,
    would depend on the number of devices.
    """
    rows = jnp.arange(shape[0])
    if batch_axis_name is not None:
        rows = jax.lax.axis_index(batch_axis_name) * shape[0] + rows
    keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)
    return jax.vmap(lambda k: jax.random.bernoulli(k, keep, shape[1:]))(keys)


def drop_rows(
    x: jax.Array, key: jax.Array, rate: float, *, axis: str | None
) -> jax.Array:
    """Set float[B, h, w, C] to zero for a share `rate` of the images, scale the rest.

    `axis` is the mapped axis over which the batch is spread, or None.
    """
    keep = keep_mask(key, (x.shape[0], 1, 1, 1), 1.0 - rate, axis)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype))
