"""The views of `mela_jax.data.views`, rendered in JAX, inside a training step.

The parameters of every view are still drawn on the host, from the seed, the epoch and
the image; only the arithmetic on pixels moves. So one and the same run sees the same
views either way, up to float rounding, on any number of devices.
"""

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates


def augment_batch(
    images: jax.Array, transforms: jax.Array, colours: jax.Array, *, size: int
) -> jax.Array:
    """Render the views of a batch: one bilinear warp, one affine map of the colours.

    Args:
      images: uint8[B / V, S, S, 3], RGB; each has V views, one after the other.
      transforms: float32[B, 2, 3], from `draw_views`.
      colours: float32[B, 3, 4], from `draw_views`.
      size: side of the views in pixels, the `size_out` of `draw_views`.

    Returns:
      float32[B, size, size, 3], RGB in [0, 255].
    """
    y, x = jnp.mgrid[:size, :size].astype(jnp.float32)

    def view(image: jax.Array, transform: jax.Array, colour: jax.Array) -> jax.Array:
        to_x, to_y = transform
        places = [a * x + b * y + c for a, b, c in (to_y, to_x)]
        # SciPy's "reflect" is OpenCV's: the border's pixel comes twice.
        warp = jax.vmap(
            lambda channel: map_coordinates(channel, places, order=1, mode="reflect"),
            in_axes=-1,
            out_axes=-1,
        )
        # The whole product in float32: by default a TPU multiplies in bfloat16 and a
        # GPU in TF32, which would cost up to a grey level.
        changed = jnp.einsum(
            "hwc,kc->hwk",
            warp(image.astype(jnp.float32)),
            colour[:, :3],
            precision=jax.lax.Precision.HIGHEST,
        )
        return jnp.clip(changed + colour[:, 3], 0.0, 255.0)

    images = jnp.repeat(images, len(transforms) // len(images), axis=0)
    return jax.vmap(view)(images, transforms, colours)
