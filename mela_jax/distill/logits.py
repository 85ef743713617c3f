"""Distillation from the teacher's logits: tempered, binary, and kept honest."""

import jax
import jax.numpy as jnp
import numpy as np

from mela_jax.errors import UserError


def binary_kd(
    student_logits: jax.Array, teacher_logits: jax.Array, *, temperature: float
) -> jax.Array:
    """Return T^2 * KL(sigmoid(z_t / T) || sigmoid(z_s / T)), per example.

    There is one logit, so the softened distribution is a Bernoulli's: a softmax over
    an axis of length one would be 1 for both and the loss would vanish. T^2 keeps the
    size of the gradient as T grows (Hinton et al. 2015, arXiv:1503.02531, section 2.1).

    Args:
      student_logits: float[B], any finite value.
      teacher_logits: float[B], logits, not probabilities; no gradient flows into them.
      temperature: T > 0.

    Returns:
      float32[B], >= 0 (up to rounding) and finite for logits of +-1e4 and more.

    >>> float(binary_kd(jnp.array([2.0]), jnp.array([2.0]), temperature=2.0)[0])
    0.0
    """
    if jnp.shape(student_logits) != jnp.shape(teacher_logits):
        raise ValueError(
            f"student logits {jnp.shape(student_logits)} and teacher logits"
            f" {jnp.shape(teacher_logits)} differ in shape"
        )
    z_s = jnp.asarray(student_logits, jnp.float32) / temperature
    z_t = jax.lax.stop_gradient(jnp.asarray(teacher_logits, jnp.float32)) / temperature
    p_t = jax.nn.sigmoid(z_t)
    # KL = p (log p - log q) + (1 - p) (log(1-p) - log(1-q)), with log sigmoid(z) =
    # -softplus(-z): differences of finite numbers, weighted by p in [0, 1].
    positive = jax.nn.softplus(-z_s) - jax.nn.softplus(-z_t)
    negative = jax.nn.softplus(z_s) - jax.nn.softplus(z_t)
    kl = p_t * positive + jax.nn.sigmoid(-z_t) * negative
    return temperature**2 * kl


def total_loss(
    hard: jax.Array | float, soft: jax.Array | float, *, alpha: float
) -> jax.Array:
    """Return (1 - alpha) * hard + alpha * soft.

    `alpha` is the share of the **soft** loss: 0 is training without a teacher. Some
    papers write it the other way round, alpha * hard + (1 - alpha) * soft.
    """
    return jnp.asarray((1.0 - alpha) * hard + alpha * soft)


def check_are_logits(outputs: np.ndarray, *, source: str) -> None:
    """Refuse soft targets that are probabilities.

    Tempering a probability flattens it to almost nothing, and nothing shows it. Logits
    of a trained classifier leave [0, 1] on some image of any sizeable set.

    Args:
      outputs: float[N], the teacher's outputs on many images.
      source: where they come from, for the message.

    Raises:
      UserError: when all outputs lie in [0, 1], or one is not finite.
    """
    outputs = np.asarray(outputs)
    if not np.isfinite(outputs).all():
        raise UserError(f"{source}: the teacher's outputs are not all finite")
    if outputs.min() >= 0.0 and outputs.max() <= 1.0:
        raise UserError(
            f"{source}: all {outputs.size} outputs of the teacher lie in [0, 1], so"
            " they are probabilities, not logits; distillation needs logits"
        )
