"""What lies in the last maps: how channels go together, and where a gate looks.

No gradient flows into the teacher's.
"""

import jax
import jax.numpy as jnp
import numpy as np


def channel_loss(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Return how much the channels' inner products differ, float32[].

    The root of the mean over N x C x C of (G_s - G_t)^2, where G = F F^T / (C h w) is
    the Gram matrix of an image's map F as C x (h w); so SSD-KD has it (Wang et al.
    2022, doi:10.1016/j.media.2022.102693). As |F_s F_s^T - F_t F_t^T|^2 = |F_s^T F_s|^2
    + |F_t^T F_t|^2 - 2 |F_s^T F_t|^2, no matrix of C x C is made.

    Args:
      student: float[N, h, w, C], all images of the batch.
      teacher: likewise.

    Raises:
      ValueError: the maps differ in shape.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"maps {student.shape} and {teacher.shape} differ in shape")
    ours, theirs = (
        x.astype(jnp.float32).reshape(x.shape[0], -1, x.shape[-1])
        for x in (student, jax.lax.stop_gradient(teacher))
    )

    def squares(a: jax.Array, b: jax.Array) -> jax.Array:
        products = jnp.einsum("nic,njc->nij", a, b, precision="highest")
        return jnp.sum(jnp.square(products), axis=(1, 2))

    difference = (
        squares(ours, ours) + squares(theirs, theirs) - 2.0 * squares(ours, theirs)
    )
    places, channels = ours.shape[1:]
    mean = jnp.mean(jnp.maximum(difference, 0.0))
    scale = places * channels
    # The root has no gradient at 0.
    return jnp.sqrt(mean / channels**2 / scale**2 + 1e-12)


def attention_loss(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Return the mean squared difference of two gates, float32[N].

    The teacher's [N, H, W, 1] becomes the student's size [N, h, w, 1] by the mean over
    areas, of which cells at the edge of an area have a part.
    """
    target = jax.lax.stop_gradient(teacher).astype(jnp.float32)
    rows, columns = (
        jnp.asarray(_area_means(size, to))
        for size, to in zip(teacher.shape[1:3], student.shape[1:3], strict=True)
    )
    target = jnp.einsum("hH,wW,nHWc->nhwc", rows, columns, target)
    difference = jnp.square(student.astype(jnp.float32) - target)
    return difference.mean(axis=(1, 2, 3))


def _area_means(size: int, to: int) -> np.ndarray:
    """Return float32[to, size]: each row averages its share of a line of `size`."""
    edges = np.arange(to + 1) * size / to
    cells = np.arange(size)
    share = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
    return (np.maximum(share, 0) * to / size).astype(np.float32)
