"""Hard losses: how far logits are from their label, per example and without reduction.

All take logits float[B, K] (any real numbers) and labels int[B], and return float32[B],
finite for any finite logits. With K = 1 there are two classes all the same: labels are
1 for melanoma and 0 for the rest, and the one logit is the log-odds of 1. Otherwise
labels are class indices. `C` is the number of classes: 2 for K = 1, else K; weights are
float[C], by class, None for 1.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax

from mela_jax.errors import UserError

HardLoss = Callable[[jax.Array, jax.Array], jax.Array]
Weights = Sequence[float] | None


def cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    weights: Weights = None,
    smoothing: float = 0.0,
) -> jax.Array:
    """Return the cross-entropy, -log p of the label's class.

    With label smoothing e in [0, 1) the target is 1 - e on the label and e / C on every
    class besides, the label's included (Szegedy et al. 2016, arXiv:1512.00567, section
    7). A class's weight multiplies its part of the target, as in PyTorch.

    >>> round(float(cross_entropy(jnp.array([[0.0]]), jnp.array([1]))[0]), 4)
    0.6931
    """
    logits, labels = _checked(logits, labels)
    if logits.shape[1] == 1:
        z = logits[:, 0]
        # -log sigmoid(z) = softplus(-z). One softplus, where optax takes two.
        loss = jax.nn.softplus(jnp.where(labels == 1, -z, z))
    else:
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    loss = _weighted(loss, labels, weights)
    if not smoothing:
        return loss
    if logits.shape[1] == 1:
        both = [jax.nn.log_sigmoid(-logits), jax.nn.log_sigmoid(logits)]
        log_p = jnp.concatenate(both, axis=1)
    else:
        log_p = jax.nn.log_softmax(logits)
    spread = -(log_p if not weights else log_p * jnp.asarray(weights, jnp.float32))
    return (1.0 - smoothing) * loss + smoothing * spread.mean(axis=1)


def focal(
    logits: jax.Array, labels: jax.Array, *, gamma: float, weights: Weights = None
) -> jax.Array:
    """Return the focal loss, w (1 - p)^gamma * -log p, p the probability of the label.

    p is the unweighted probability, gamma >= 0; 0 gives the cross-entropy. Lin et al.
    2017, "Focal Loss for Dense Object Detection", doi:10.1109/ICCV.2017.324, equations
    4 and 5: their alpha is `weights` = (1 - alpha, alpha) with K = 1.

    >>> z, y = jnp.array([[0.0]]), jnp.array([1])
    >>> round(float(focal(z, y, gamma=2.0)[0]), 4)
    0.1733
    """
    logits, labels = _checked(logits, labels)
    if logits.shape[1] == 1:
        odds = jnp.where(labels == 1, logits[:, 0], -logits[:, 0])
    else:
        odds = label_log_odds(logits, labels)
    # log(1 - p) = -softplus(odds): neither logarithm overflows, and no power is taken
    # of something rounded to 0. optax has 1 - p in float32, off where p is near 1.
    loss = jnp.exp(-gamma * jax.nn.softplus(odds)) * jax.nn.softplus(-odds)
    return _weighted(loss, labels, weights)


def ldam(
    logits: jax.Array,
    labels: jax.Array,
    *,
    counts: Sequence[int],
    margin: float,
    scale: float,
    weights: Weights = None,
) -> jax.Array:
    """Return the cross-entropy of logits from which the label's has a margin to gain.

    The cross-entropy of `scale` times the logits, less the label's margin: m_c in
    proportion to n_c^(-1/4), the largest being `margin`. Cao et al., "Learning
    Imbalanced Datasets with Label-Distribution-Aware Margin Loss", NeurIPS 2019
    (arXiv:1906.07413).

    Args:
      logits: float[B, K].
      labels: int[B].
      counts: n_c > 0, the training images of each of the C classes.
      margin: 0 or more.
      scale: above 0.
      weights: of the classes.

    >>> z, y = jnp.array([[0.0, 0.0]]), jnp.array([1])
    >>> round(float(ldam(z, y, counts=(16, 1), margin=0.5, scale=30.0)[0]), 4)
    15.0
    """
    logits, labels = _checked(logits, labels)
    if logits.shape[1] == 1:
        logits = jnp.concatenate([jnp.zeros_like(logits), logits], axis=1)
    shares = np.asarray(counts, np.float64) ** -0.25
    margins = jnp.asarray(margin * shares / shares.max(), jnp.float32)
    is_label = jax.nn.one_hot(labels, logits.shape[1])
    loss = optax.softmax_cross_entropy_with_integer_labels(
        scale * (logits - is_label * margins), labels
    )
    return _weighted(loss, labels, weights)


def label_log_odds(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the log-odds of the label's class, float[B], of float[B, K] with K > 1."""
    is_label = jax.nn.one_hot(labels, logits.shape[1], dtype=bool)
    of_label = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    return of_label - jax.nn.logsumexp(logits, axis=1, where=~is_label)


def _checked(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    if jnp.ndim(logits) != 2 or jnp.shape(logits)[:1] != jnp.shape(labels):
        # Broadcasting [B] against [B, 1] would average over B * B pairs in silence.
        raise ValueError(
            f"logits {jnp.shape(logits)} and labels {jnp.shape(labels)}: they must be"
            " [B, K] and [B]"
        )
    return jnp.asarray(logits, jnp.float32), jnp.asarray(labels, jnp.int32)


def _weighted(loss: jax.Array, labels: jax.Array, weights: Weights) -> jax.Array:
    return loss * jnp.asarray(weights, jnp.float32)[labels] if weights else loss


def _focal_and_ldam(s: Any, counts: Sequence[int], weights: Weights) -> HardLoss:
    # The margins are for rare classes: there weights would count twice.
    one = LOSSES["focal"](s, counts, weights)
    other = LOSSES["ldam"](s, counts, None)
    return lambda logits, labels: 0.5 * (one(logits, labels) + other(logits, labels))


# Name in the configuration -> (config.teacher or config.student, the training images of
# each class, weights) -> the loss.
LOSSES: Mapping[str, Callable[[Any, Sequence[int], Weights], HardLoss]] = {
    "cross_entropy": lambda s, _, weights: partial(
        cross_entropy, smoothing=s.label_smoothing, weights=weights
    ),
    "focal": lambda s, _, weights: partial(focal, gamma=s.focal_gamma, weights=weights),
    "ldam": lambda s, counts, weights: partial(
        ldam, counts=counts, margin=s.ldam_margin, scale=s.ldam_scale, weights=weights
    ),
    "focal_ldam": _focal_and_ldam,
}


def class_weights(
    kind: str, counts: npt.NDArray[np.int64], *, melanoma: int, multiplier: float
) -> tuple[float, ...] | None:
    """Return the weight of each class, or None where all are 1.

    The kinds "balanced" and "balanced_batch" weight in proportion to 1 / count, where
    `counts` int[C] are the training images of each class. The weight of `melanoma`, an
    index, is multiplied. The mean over the training images is 1, so that the size of
    the loss stays what it is without weights: N / (C n_c) where the multiplier is 1.

    Raises:
      UserError: a class that is to be weighted by its count has no image.
    """
    if kind == "none" and multiplier == 1:
        return None
    weights = np.ones(len(counts))
    if kind != "none":
        if not counts.all():
            raise UserError(
                f"class_weights={kind}: {np.count_nonzero(counts == 0)} of the"
                f" {len(counts)} classes have no training image; take"
                " class_weights=none, or config.labels=diagnoses"
            )
        weights = 1.0 / counts
    weights[melanoma] *= multiplier
    return tuple((weights * counts.sum() / (weights * counts).sum()).tolist())


@dataclasses.dataclass(frozen=True)
class LabelLoss:
    """A hard loss with its numbers filled in, weights included, and how it is averaged.

    With `by_weight` the sum over a batch is divided by the sum of its weights, as in
    PyTorch's weighted mean, rather than by the number of its images.
    """

    rows: HardLoss
    weights: Weights = None
    by_weight: bool = False

    def __call__(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """Return the loss of every row, float32[B]; their mean is that of the batch.

        Where `by_weight`, it must be the whole batch, not one device's share.
        """
        loss = self.rows(logits, labels)
        if not self.by_weight or self.weights is None:
            return loss
        return loss / jnp.asarray(self.weights, jnp.float32)[labels].mean()


def make_hard_loss(
    settings: Any, *, counts: npt.NDArray[np.int64], melanoma: int
) -> LabelLoss:
    """Return the loss that config.teacher or config.student, `settings`, asks for.

    `counts` int[C] are the training images of each class, `melanoma` its index.

    Raises:
      UserError: see `class_weights`.
    """
    s = settings
    weights = class_weights(
        s.class_weights, counts, melanoma=melanoma, multiplier=s.melanoma_weight
    )
    if s.focal_alpha != -1:
        weights = (1.0 - s.focal_alpha, s.focal_alpha)
    if "ldam" in s.loss and not counts.all():
        raise UserError(
            f"loss={s.loss}: {np.count_nonzero(counts == 0)} of the {len(counts)}"
            " classes have no training image, and so no margin; take another loss, or"
            " config.labels=diagnoses"
        )
    rows = LOSSES[s.loss](s, tuple(counts.tolist()), weights)
    return LabelLoss(rows, weights, s.class_weights == "balanced_batch")
