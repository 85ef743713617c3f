"""One threshold, chosen on validation, and what it does.

An image is flagged when its score is at or above the threshold. Two policies choose
it: `choose_threshold` reaches the target on validation, `guarantee_threshold` reaches
it with confidence for new patients of the same kind. Either may miss some number of
the melanomas of validation, those with the lowest scores; the threshold is the score of
the next one.

Labels [N] are 1 for melanoma and 0 for all else, and scores [N] lie in [0, 1]; whatever
takes them raises UserError where they are unfit, see `check_binary`. Thresholds are
chosen on those of validation, never on the test set's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import confusion_matrix

from mela_jax.errors import UserError
from mela_jax.evaluation.classes import FloatArray, IntArray
from mela_jax.evaluation.intervals import clopper_pearson_lower
from mela_jax.evaluation.scores import check_binary

POLICIES = ("empirical", "guaranteed")


@dataclass(frozen=True)
class Confusion:
    """Counts of images at one threshold; melanomas are the positive class."""

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
    the answer is the score of a melanoma. Tied images are flagged together.
    Raises UserError where the target is outside (0, 1] or there is no melanoma.
    """
    if not 0.0 < target <= 1.0:
        raise UserError(
            f"target sensitivity {target} is not in (0, 1]; 0.95 means 95 %"
        )
    score = _melanoma_scores(labels, scores)[1]
    return float(np.sort(score)[misses_allowed(score.size, target=target)])


def misses_allowed(melanomas: int, *, target: float) -> int:
    """Return how many of >= 1 melanomas may be missed at a sensitivity in (0, 1]."""
    # k / n is compared instead of k with target * n: 0.07 * 100 exceeds 7 in binary.
    reachable = np.arange(1, melanomas + 1) / melanomas
    return melanomas - 1 - int(np.searchsorted(reachable, target, side="left"))


@dataclass(frozen=True)
class Guarantee:
    """What validation lets us promise of the sensitivity, and at which threshold.

    Attributes:
        target: wanted sensitivity.
        delta: probability with which the promise may be broken.
        units: melanoma lesions of validation that were counted.
        allowed_misses: how many of them the threshold may miss; -1 where there are too
            few lesions to allow even none, and then the next two are None.
        threshold: the largest threshold whose lower bound reaches the target.
        lower_bound: one-sided Clopper-Pearson bound on sensitivity there.
        most: highest sensitivity that these lesions could guarantee, with no miss:
            delta ** (1 / units).
        units_needed: melanoma lesions needed for the target, if none is missed.
    """

    target: float
    delta: float
    units: int
    allowed_misses: int
    threshold: float | None
    lower_bound: float | None
    most: float
    units_needed: int

    def required_threshold(self) -> float:
        """Return the threshold.

        Raises:
            UserError: validation has too few melanoma lesions for one.
        """
        if self.threshold is not None:
            return self.threshold
        raise UserError(
            f"validation has {self.units} melanoma lesions, too few to guarantee "
            f"{100 * self.target:g} % sensitivity at {100 * (1 - self.delta):g} % "
            f"confidence: {self.units_needed} are needed, "
            f"{self.units_needed - self.units} more; what these could guarantee is "
            f"{100 * self.most:.1f} %. Add melanomas, lower the target, or take the "
            "empirical policy"
        )


def guarantee_threshold(
    labels: npt.ArrayLike,
    scores: npt.ArrayLike,
    lesion_ids: Sequence[str] | None = None,
    *,
    target: float = 0.95,
    delta: float = 0.1,
) -> Guarantee:
    """Return the largest threshold that keeps the target with confidence 1 - delta.

    Thresholds are tested from the lowest melanoma score upwards, each with the exact
    binomial test of "sensitivity is below the target", until one fails: learn then
    test over a fixed sequence (Angelopoulos et al. 2021, arXiv:2110.01052), which costs
    no correction for the many tests. Passing the test is the same as the one-sided
    Clopper-Pearson bound reaching the target. Over draws of validation sets, the
    threshold has a true sensitivity below the target with probability delta at most,
    whatever the distribution of the scores.

    The test needs independent units. Images of one lesion are not, so each melanoma
    lesion is one unit with its **lowest** score: it counts as missed when any of its
    images is. The promise is then for a new lesion, whichever of its images is taken.
    Without `lesion_ids` every image is taken as a lesion of its own.
    Raises UserError where target or delta is not in (0, 1) or there is no melanoma.
    """
    needed = lesions_needed(target=target, delta=delta)
    held, score = _melanoma_scores(labels, scores)
    names = held if lesion_ids is None else np.asarray(lesion_ids)[held]
    lowest = np.sort(score[lowest_of_each(names, score)])
    units = int(lowest.size)
    misses, bound = misses_guaranteed(units, target=target, delta=delta)
    return Guarantee(
        target=target,
        delta=delta,
        units=units,
        allowed_misses=misses,
        threshold=None if misses < 0 else float(lowest[misses]),
        lower_bound=bound,
        most=float(delta ** (1 / units)),
        units_needed=needed,
    )


def lowest_of_each(lesions: npt.NDArray[Any], score: FloatArray) -> IntArray:
    """Return the index of the lowest score of each lesion, lesions in order [L]."""
    order = np.lexsort((score, lesions))
    return order[np.unique(lesions[order], return_index=True)[1]]


def misses_guaranteed(
    units: int, *, target: float, delta: float
) -> tuple[int, float | None]:
    """Return how many of `units` melanoma lesions a guaranteed threshold may miss.

    The largest number whose lower bound on sensitivity reaches the target, and that
    bound; -1 and None where even no miss is too many.
    """
    misses, bound = -1, None
    while misses + 1 < units:
        next_bound = clopper_pearson_lower(units - misses - 1, units, delta=delta)
        # The bound of 45 hits in 45 is 0.1 ** (1 / 45); rounding must not lose a tie.
        if next_bound < target - 1e-12:
            break
        misses, bound = misses + 1, next_bound
    return misses, bound


def lesions_needed(*, target: float, delta: float) -> int:
    """Return how many melanoma lesions a guarantee takes if none of them is missed.

    The smallest n with target ** n <= delta: 45 for 95 % at 90 % confidence.
    Raises UserError where target or delta is not in (0, 1).
    """
    for name, value in (("target sensitivity", target), ("delta", delta)):
        if not 0.0 < value < 1.0:
            raise UserError(f"{name} {value} is not in (0, 1) for a guarantee")
    needed = max(1, math.floor(math.log(delta) / math.log(target)) - 1)
    while target**needed > delta * (1 + 1e-12):
        needed += 1
    return needed


def confusion(
    labels: npt.ArrayLike, scores: npt.ArrayLike, threshold: float
) -> Confusion:
    """Count hits and misses of `score >= threshold`."""
    label, score = check_binary(labels, scores)
    # Row: the label; column: the decision.
    (tn, fp), (fn, tp) = confusion_matrix(label, score >= threshold, labels=[0, 1])
    return Confusion(tp=int(tp), fp=int(fp), tn=int(tn), fn=int(fn))


def _melanoma_scores(
    labels: npt.ArrayLike, scores: npt.ArrayLike
) -> tuple[IntArray, FloatArray]:
    """Return which images are melanomas [M], and their scores [M]; there is one."""
    label, score = check_binary(labels, scores)
    held = np.flatnonzero(label)
    if not held.size:
        raise UserError(
            f"none of the {label.size} validation images is a melanoma, so no "
            "threshold can be chosen; use a validation split with melanomas in it"
        )
    return held, score[held]
