"""Distillation from the teachers' logits: tempered, and kept honest."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mela_jax.errors import UserError
from mela_jax.losses import label_log_odds


def tempered_kl(
    student_logits: jax.Array, teacher_logits: jax.Array, *, temperature: float
) -> jax.Array:
    """Return T^2 * KL(p || q), float32[B], p and q softened by the temperature T > 0.

    With K classes p = softmax(z_t / T) and q = softmax(z_s / T). With one logit the
    softened distribution is a Bernoulli's: a softmax over an axis of length one would
    be 1 for both and the loss would vanish. T^2 keeps the size of the gradient as T
    grows (Hinton et al. 2015, arXiv:1503.02531, section 2.1). It is >= 0 (up to
    rounding) and finite for logits of +-1e4 and more.

    Args:
      student_logits: float[B, K].
      teacher_logits: float[B, K], logits, not probabilities; no gradient flows into
        them.
      temperature: T.

    >>> z = jnp.array([[2.0]])
    >>> float(tempered_kl(z, z, temperature=2.0)[0])
    0.0
    """
    shapes = jnp.shape(student_logits), jnp.shape(teacher_logits)
    if shapes[0] != shapes[1] or len(shapes[0]) != 2:
        raise ValueError(
            f"student logits {shapes[0]} and teacher logits {shapes[1]}: both must be"
            " [B, K]"
        )
    z_s = jnp.asarray(student_logits, jnp.float32) / temperature
    z_t = jax.lax.stop_gradient(jnp.asarray(teacher_logits, jnp.float32)) / temperature
    if shapes[0][1] > 1:
        return temperature**2 * optax.losses.kl_divergence_with_log_targets(
            jax.nn.log_softmax(z_s), jax.nn.log_softmax(z_t)
        )
    z_s, z_t = z_s[:, 0], z_t[:, 0]
    # KL = p (log p - log q) + (1 - p) (log(1-p) - log(1-q)), with log sigmoid(z) =
    # -softplus(-z): differences of finite numbers, weighted by p in [0, 1].
    positive = jax.nn.softplus(-z_s) - jax.nn.softplus(-z_t)
    negative = jax.nn.softplus(z_s) - jax.nn.softplus(z_t)
    kl = jax.nn.sigmoid(z_t) * positive + jax.nn.sigmoid(-z_t) * negative
    return temperature**2 * kl


def decoupled_kl(
    student_logits: jax.Array,
    teacher_logits: jax.Array,
    labels: jax.Array,
    *,
    temperature: float,
    target_weight: float,
    others_weight: float,
) -> jax.Array:
    """Return the two parts of the tempered KL divergence, weighted, float32[B].

    `target_weight` is that of the divergence between the two distributions over "the
    label's class or another", `others_weight` that over the other classes alone, which
    plain distillation weighs by what the teacher leaves them; both times T^2. Zhao et
    al., "Decoupled Knowledge Distillation", CVPR 2022 (arXiv:2203.08679).

    Args:
      student_logits: float[B, K], K > 1.
      teacher_logits: float[B, K], into which no gradient flows.
      labels: int[B].
      temperature: T > 0.
      target_weight: alpha in the paper, there 1.
      others_weight: beta in the paper, there 1 to 8.
    """
    is_label = jax.nn.one_hot(labels, student_logits.shape[1], dtype=bool)
    z_s = jnp.asarray(student_logits, jnp.float32) / temperature
    z_t = jax.lax.stop_gradient(jnp.asarray(teacher_logits, jnp.float32)) / temperature

    # tempered_kl of a Bernoulli's log-odds, already divided by the temperature.
    odds_s, odds_t = (label_log_odds(z, labels)[:, None] for z in (z_s, z_t))
    target = tempered_kl(odds_s, odds_t, temperature=1.0)
    log_q, log_p = (
        jax.nn.log_softmax(jnp.where(is_label, -jnp.inf, z)) for z in (z_s, z_t)
    )
    difference = jnp.where(is_label, 0.0, log_p) - jnp.where(is_label, 0.0, log_q)
    others = jnp.sum(jnp.exp(log_p) * difference, axis=1)
    return temperature**2 * (target_weight * target + others_weight * others)


def average_teachers(
    logits: Sequence[jax.Array],
    *,
    weights: Sequence[float],
    temperature: float,
    average: str,
) -> jax.Array:
    """Return the logits float32[B, K] of one teacher that says what several say.

    The weights are >= 0 and add up to 1. By `average`, either the logits of the result
    are the weighted mean of the teachers' float[B, K] ("logits"), or its probabilities
    softened by the temperature are ("probabilities"). A single teacher's come back as
    they are.

    Raises:
      ValueError: the weights do not add up to 1.
    """
    if len(weights) != len(logits) or abs(sum(weights) - 1) > 1e-6:
        raise ValueError(f"weights {weights} of {len(logits)} teachers")
    if len(logits) == 1:
        return logits[0]
    z = jnp.stack([jnp.asarray(each, jnp.float32) for each in logits])
    w = jnp.asarray(weights, jnp.float32)[:, None, None]
    if average == "logits":
        return (w * z).sum(axis=0)

    def mean(log_p: jax.Array) -> jax.Array:
        return jax.nn.logsumexp(log_p, axis=0, b=w)

    if z.shape[2] > 1:
        return temperature * mean(jax.nn.log_softmax(z / temperature))
    sure, unsure = (mean(jax.nn.log_sigmoid(s * z / temperature)) for s in (1, -1))
    return temperature * (sure - unsure)


def check_are_logits(outputs: np.ndarray, *, source: str) -> None:
    """Refuse soft targets float[N, K] that are probabilities; `source` names them.

    Tempering a probability flattens it to almost nothing, and nothing shows it. Logits
    of a trained classifier leave [0, 1] on some image of any sizeable set.

    Raises:
      UserError: all outputs lie in [0, 1], or one is not finite.
    """
    if not np.isfinite(outputs).all():
        raise UserError(f"{source}: the teacher's outputs are not all finite")
    if outputs.min() >= 0.0 and outputs.max() <= 1.0:
        raise UserError(
            f"{source}: all {outputs.size} outputs of the teacher lie in [0, 1], so"
            " they are probabilities, not logits; distillation needs logits"
        )
