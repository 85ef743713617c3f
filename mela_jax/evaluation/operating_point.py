"""One threshold, chosen on validation, and what it does.

An image is flagged when its score is at or above the threshold.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mela_jax.errors import UserError
from mela_jax.evaluation.scores import check_binary


@dataclass(frozen=True)
class Confusion:
    """Counts of images at one threshold.

    Attributes:
        tp: melanomas flagged.
        fp: other images flagged.
        tn: other images let pass.
        fn: melanomas missed.
    """

    tp: int
    fp: int
    tn: int
    fn: int

    @property
    def flags_everyone(self) -> bool:
        """Whether no image is let pass: the trivial all-positive rule."""
        return self.tn + self.fn == 0


def choose_threshold(
    labels: npt.ArrayLike, scores: npt.ArrayLike, *, target: float = 0.95
) -> float:
    """Return the highest observed score that still reaches the target sensitivity.

    Sensitivity is a step function that falls only just above a melanoma's score, so
    the answer is the k-th highest score among the melanomas, k being the smallest
    count with k / positives >= target. Tied images are flagged together.

    Args:
        labels: [N] of 0 and 1, from validation: never choose on the test set.
        scores: [N] in [0, 1].
        target: wanted sensitivity, in (0, 1].

    Returns:
        The threshold t; `score >= t` has sensitivity >= target on these data, and no
        higher observed score has.

    Raises:
        UserError: the target is outside (0, 1], there is no melanoma, or the labels or
            scores are unfit (see `check_binary`).
    """
    if not 0.0 < target <= 1.0:
        raise UserError(
            f"target sensitivity {target} is not in (0, 1]; 0.95 means 95 %"
        )
    label, score = check_binary(labels, scores)
    positive_scores = np.sort(score[label == 1])[::-1]
    num_positives = positive_scores.size
    if num_positives == 0:
        raise UserError(
            f"none of the {label.size} validation images is a melanoma, so no "
            "threshold can be chosen; use a validation split with melanomas in it"
        )
    # k / n is compared instead of k with target * n: 0.07 * 100 exceeds 7 in binary.
    reachable = np.arange(1, num_positives + 1) / num_positives
    return float(positive_scores[np.searchsorted(reachable, target, side="left")])


def confusion(
    labels: npt.ArrayLike, scores: npt.ArrayLike, threshold: float
) -> Confusion:
    """Count hits and misses of `score >= threshold`.

    Args:
        labels: [N] of 0 and 1.
        scores: [N] in [0, 1].
        threshold: the frozen operating point.

    Raises:
        UserError: labels or scores are unfit (see `check_binary`).
    """
    label, score = check_binary(labels, scores)
    flagged = score >= threshold
    melanoma = label == 1
    return Confusion(
        tp=int(np.sum(flagged & melanoma)),
        fp=int(np.sum(flagged & ~melanoma)),
        tn=int(np.sum(~flagged & ~melanoma)),
        fn=int(np.sum(~flagged & melanoma)),
    )
