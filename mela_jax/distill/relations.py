"""Relational distillation: how the images of a batch lie to each other.

Park et al., "Relational Knowledge Distillation", CVPR 2019 (arXiv:1904.05068), as used
by SSD-KD (Wang et al. 2022, "SSD-KD", doi:10.1016/j.media.2022.102693). Both losses
compare all images of a batch, so they must be given the whole batch: features
float[N, F] of the student and float[N, G] of the teacher, into which no gradient flows.
"""

import jax
import jax.numpy as jnp
import optax


def distance_loss(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Return how much the distances between images differ, float32[].

    The mean over all N x N pairs, the zero diagonal included, of the Huber loss (delta
    1) between the Euclidean distances, each network's divided by the mean of its
    positive ones. The student's mean is differentiated, too.
    """
    target = _scaled_distances(jax.lax.stop_gradient(teacher))
    return optax.losses.huber_loss(_scaled_distances(student), target).mean()


def angle_loss(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Return how much the angles of triplets of images differ, float32[].

    The mean over all N^3 triplets (a, b, c) of the Huber loss (delta 1) between the
    cosines <e_ab, e_ac>, e_ab being the unit vector from image a to image b, or zero
    where both are the same point.
    """
    target = _cosines(jax.lax.stop_gradient(teacher))
    return optax.losses.huber_loss(_cosines(student), target).mean()


def _scaled_distances(x: jax.Array) -> jax.Array:
    squared = _squared_distances(_gram(x))
    apart = squared > 0
    # The root has no gradient at 0: it is taken only where there is a distance.
    distance = jnp.where(apart, jnp.sqrt(jnp.where(apart, squared, 1.0)), 0.0)
    mean = distance.sum() / jnp.maximum(apart.sum(), 1)
    return distance / jnp.where(mean > 0, mean, 1.0)


def _cosines(x: jax.Array) -> jax.Array:
    """Return float32[N, N, N], the cosine at a between b and c."""
    gram = _gram(x)
    squared = _squared_distances(gram)
    apart = squared > 0
    inverse = jnp.where(apart, jax.lax.rsqrt(jnp.where(apart, squared, 1.0)), 0.0)
    # <x_b - x_a, x_c - x_a> from inner products alone: N^3 numbers, not N^2 F.
    inner = (
        gram[None] - gram[:, :, None] - gram[:, None] + jnp.diag(gram)[:, None, None]
    )
    return inner * inverse[:, :, None] * inverse[:, None]


def _gram(x: jax.Array) -> jax.Array:
    """Return the inner products float32[N, N] of rows, about their mean."""
    x = x.astype(jnp.float32)
    # Distances and angles do not know of the origin, but rounding does.
    x = x - jax.lax.stop_gradient(x.mean(axis=0))
    return jnp.matmul(x, x.T, precision=jax.lax.Precision.HIGHEST)


def _squared_distances(gram: jax.Array) -> jax.Array:
    norms = jnp.diag(gram)
    squared = norms[:, None] + norms[None] - 2.0 * gram
    # Two equal rows come out as rounding, of either sign, and not as 0.
    rounding = 4.0 * jnp.finfo(jnp.float32).eps * (norms[:, None] + norms[None])
    return jnp.where(squared > jax.lax.stop_gradient(rounding), squared, 0.0)
