"""Hard losses: how far a logit is from its label, per example and without reduction.

All take logits float[B] (any real number) and labels {0, 1}[B], and return
float32[B], finite for any finite logit.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

HardLoss = Callable[[jax.Array, jax.Array], jax.Array]


def bce(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the binary cross-entropy, -log p of the label's class.

    >>> round(float(bce(jnp.array(0.0), jnp.array(1))), 4)
    0.6931
    """
    logits, labels = _as_float(logits, labels)
    # -log sigmoid(z) = softplus(-z), which neither overflows nor loses small values.
    return jax.nn.softplus(jnp.where(labels == 1, -logits, logits))


def weighted_bce(
    logits: jax.Array, labels: jax.Array, *, positive_weight: float
) -> jax.Array:
    """Return the cross-entropy with the positives' multiplied by `positive_weight`.

    >>> round(float(weighted_bce(jnp.array(0.0), jnp.array(1), positive_weight=3.0)), 4)
    2.0794
    """
    logits, labels = _as_float(logits, labels)
    return jnp.where(labels == 1, positive_weight, 1.0) * bce(logits, labels)


def focal(
    logits: jax.Array,
    labels: jax.Array,
    *,
    gamma: float,
    alpha: float | None = None,
) -> jax.Array:
    """Return the focal loss, (1 - p)^gamma * -log p, p the probability of the label.

    The modulation uses the unweighted probability; `alpha` multiplies the loss of
    positives and 1 - `alpha` that of negatives, outside of it. gamma = 0 without alpha
    is the cross-entropy. Lin et al. 2017, "Focal Loss for Dense Object Detection",
    doi:10.1109/ICCV.2017.324, equations 4 and 5.

    >>> round(float(focal(jnp.array(0.0), jnp.array(1), gamma=2.0)), 4)
    0.1733
    """
    logits, labels = _as_float(logits, labels)
    cross_entropy = bce(logits, labels)
    # log(1 - p) in the same stable form; exp of it never overflows.
    log_miss = -jax.nn.softplus(jnp.where(labels == 1, logits, -logits))
    loss = jnp.exp(gamma * log_miss) * cross_entropy
    if alpha is None:
        return loss
    return jnp.where(labels == 1, alpha, 1.0 - alpha) * loss


def positive_weight(num_positives: int, num_negatives: int) -> float:
    """Return negatives / positives: the weight that gives both classes the same sum."""
    return num_negatives / num_positives


def make_hard_loss(
    name: str,
    *,
    num_positives: int,
    num_negatives: int,
    focal_gamma: float,
    focal_alpha: float | None,
) -> HardLoss:
    """Return the loss called `name`, with its numbers filled in.

    Args:
      name: "bce", "weighted_bce" or "focal".
      num_positives: melanomas in the training split, at least 1.
      num_negatives: other images in the training split.
      focal_gamma: exponent of the focal loss, >= 0.
      focal_alpha: weight of positives in the focal loss, in (0, 1), or None.
    """
    weight = positive_weight(num_positives, num_negatives)
    losses: dict[str, HardLoss] = {
        "bce": bce,
        "weighted_bce": lambda z, y: weighted_bce(z, y, positive_weight=weight),
        "focal": lambda z, y: focal(z, y, gamma=focal_gamma, alpha=focal_alpha),
    }
    return losses[name]


def _as_float(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    if jnp.shape(logits) != jnp.shape(labels):
        # Broadcasting [B, 1] against [B] would average over B * B pairs in silence.
        raise ValueError(
            f"logits {jnp.shape(logits)} and labels {jnp.shape(labels)} differ in shape"
        )
    return jnp.asarray(logits, jnp.float32), jnp.asarray(labels, jnp.float32)
