"""Hard losses: how far logits are from their label, per example and without reduction.

All take logits float[B, K] (any real numbers) and labels int[B], and return float32[B],
finite for any finite logits. With K = 1 there are two classes all the same: labels are
1 for melanoma and 0 for the rest, and the one logit is the log-odds of 1. Otherwise
labels are class indices. `C` is the number of classes: 2 for K = 1, else K.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax

from mela_jax.errors import UserError

HardLoss = Callable[[jax.Array, jax.Array], jax.Array]
Weights = tuple[float, ...] | None


def cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    weights: Sequence[float] | None = None,
    smoothing: float = 0.0,
) -> jax.Array:
    """Return the cross-entropy, -log p of the label's class.

    Args:
      logits: float[B, K].
      labels: int[B].
      weights: float[C], what each class's part is multiplied by; None for 1.
      smoothing: e of label smoothing, in [0, 1): the target is 1 - e on the label and
        e / C on every class besides, the label's included (Szegedy et al. 2016,
        arXiv:1512.00567, section 7). A class's weight multiplies its part of the
        target, as in PyTorch.

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
    loss = loss * jnp.asarray(weights, jnp.float32)[labels] if weights else loss
    if not smoothing:
        return loss
    log_p = _log_probabilities(logits)
    spread = -(log_p if not weights else log_p * jnp.asarray(weights, jnp.float32))
    return (1.0 - smoothing) * loss + smoothing * spread.mean(axis=1)


def focal(
    logits: jax.Array,
    labels: jax.Array,
    *,
    gamma: float,
    weights: Sequence[float] | None = None,
) -> jax.Array:
    """Return the focal loss, w (1 - p)^gamma * -log p, p the probability of the label.

    p is the unweighted probability. gamma = 0 is the cross-entropy. Lin et al. 2017,
    "Focal Loss for Dense Object Detection", doi:10.1109/ICCV.2017.324, equations 4 and
    5: their alpha is `weights` = (1 - alpha, alpha) with K = 1.

    Args:
      logits: float[B, K].
      labels: int[B].
      gamma: exponent, >= 0.
      weights: float[C], w by class; None for 1.

    >>> z, y = jnp.array([[0.0]]), jnp.array([1])
    >>> round(float(focal(z, y, gamma=2.0)[0]), 4)
    0.1733
    """
    logits, labels = _checked(logits, labels)
    if logits.shape[1] == 1:
        odds = jnp.where(labels == 1, logits[:, 0], -logits[:, 0])
    else:
        is_label = jax.nn.one_hot(labels, logits.shape[1], dtype=bool)
        of_label = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
        others = jax.nn.logsumexp(logits, axis=1, where=~is_label)
        odds = of_label - others
    # From the label's log-odds both logarithms are had without overflow, and without a
    # power of what was rounded to 0: log(1 - p) = -softplus(odds).
    loss = jnp.exp(-gamma * jax.nn.softplus(odds)) * jax.nn.softplus(-odds)
    return loss * jnp.asarray(weights, jnp.float32)[labels] if weights else loss


# Name in the configuration -> (weights, label smoothing, gamma) -> the loss.
LOSSES: Mapping[str, Callable[[Weights, float, float], HardLoss]] = {
    "cross_entropy": lambda weights, smoothing, gamma: partial(
        cross_entropy, weights=weights, smoothing=smoothing
    ),
    "focal": lambda weights, smoothing, gamma: partial(
        focal, weights=weights, gamma=gamma
    ),
}


def class_weights(
    kind: str, counts: npt.NDArray[np.int64], *, melanoma: int, multiplier: float
) -> Weights:
    """Return the weight of each class, or None where all are 1.

    Weights are scaled so that their mean over the training images is 1, and the size of
    the loss stays what it is without them.

    Args:
      kind: "none", or "balanced" and "balanced_batch": in proportion to 1 / count, that
        is N / (C n_c) where the multiplier is 1.
      counts: int[C], training images of each class.
      melanoma: index of melanoma.
      multiplier: of melanoma's weight, > 0.

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
    """A hard loss with its numbers filled in, and how it is averaged.

    Attributes:
      rows: (logits float[B, K], labels int[B]) -> float32[B], weights included.
      weights: float[C] by class; None for 1.
      by_weight: divide the sum over a batch by the sum of its weights, as PyTorch's
        weighted mean does, rather than by the number of its images.
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
    name: str,
    *,
    counts: npt.NDArray[np.int64],
    melanoma: int,
    weighting: str,
    melanoma_weight: float,
    label_smoothing: float,
    focal_gamma: float,
    focal_alpha: float | None,
) -> LabelLoss:
    """Return the loss called `name`, with its numbers filled in.

    Args:
      name: a key of `LOSSES`.
      counts: int[C], training images of each class.
      melanoma: index of melanoma among the C classes.
      weighting: "none", "balanced" or "balanced_batch", see `class_weights`; the last
        divides by the weights of the batch, the others by its number of images.
      melanoma_weight: multiplier of melanoma's weight.
      label_smoothing: of the cross-entropy, in [0, 1).
      focal_gamma: exponent of the focal loss, >= 0.
      focal_alpha: with two classes, the weight of melanoma in the focal loss, in
        (0, 1), the rest having 1 - alpha; or None.

    Raises:
      UserError: see `class_weights`.
    """
    weights = class_weights(
        weighting, counts, melanoma=melanoma, multiplier=melanoma_weight
    )
    if focal_alpha is not None:
        weights = (1.0 - focal_alpha, focal_alpha)
    loss = LOSSES[name](weights, label_smoothing, focal_gamma)
    return LabelLoss(loss, weights, weighting == "balanced_batch")


def _log_probabilities(logits: jax.Array) -> jax.Array:
    """Return log p float32[B, C] of logits float32[B, K]."""
    if logits.shape[1] > 1:
        return jax.nn.log_softmax(logits)
    return jnp.concatenate(
        [jax.nn.log_sigmoid(-logits), jax.nn.log_sigmoid(logits)], axis=1
    )


def _checked(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    if jnp.ndim(logits) != 2 or jnp.shape(logits)[:1] != jnp.shape(labels):
        # Broadcasting [B] against [B, 1] would average over B * B pairs in silence.
        raise ValueError(
            f"logits {jnp.shape(logits)} and labels {jnp.shape(labels)}: they must be"
            " [B, K] and [B]"
        )
    return jnp.asarray(logits, jnp.float32), jnp.asarray(labels, jnp.int32)
