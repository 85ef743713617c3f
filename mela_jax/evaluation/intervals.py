"""Closed-form intervals and tests: proportions, ROC-AUC, paired decisions.

Two-sided intervals hold 95 %. Images of one lesion resemble each other, so whatever
takes them as independent has a sibling here that counts by lesion.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import numpy.typing as npt
from scipy.stats import beta, norm, rankdata
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from mela_jax.evaluation.scores import check_binary, require_both_classes

CONFIDENCE = 0.95
_Z = float(norm.ppf((1 + CONFIDENCE) / 2))

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


class Interval(TypedDict):
    """A figure with its 95 % interval; value is None where it is undefined."""

    value: float | None
    low: float
    high: float


class Difference(TypedDict):
    """A paired difference, a minus b, with its 95 % interval and its p-value."""

    difference: float
    low: float
    high: float
    p: float


def wilson(successes: float, n: int) -> Interval:
    """Return a proportion with its Wilson score interval (Wilson 1927).

    With n = 0 the proportion is undefined and nothing is known of it: value None,
    low 0, high 1.

    Args:
        successes: count in [0, n]; need not be whole where trials are clusters.
        n: number of trials, >= 0.

    Returns:
        The proportion and its 95 % interval, all in [0, 1].

    Raises:
        ValueError: successes is not in [0, n].
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes in {n} trials")
    if n == 0:
        return {"value": None, "low": 0.0, "high": 1.0}
    low, high = proportion_confint(successes, n, alpha=1 - CONFIDENCE, method="wilson")
    value = successes / n
    # With no success, or nothing but successes, one limit is the value itself, and
    # rounding can carry it to the wrong side of the value or outside [0, 1].
    return {
        "value": value,
        "low": min(max(float(low), 0.0), value),
        "high": max(min(float(high), 1.0), value),
    }


def clopper_pearson_lower(successes: int, n: int, *, delta: float) -> float:
    """Return the one-sided lower Clopper-Pearson bound (Clopper and Pearson 1934).

    The bound lies above the true proportion with probability delta at most, whatever
    that proportion is.

    Args:
        successes: count in [0, n].
        n: number of trials, >= 1.
        delta: allowed probability of error, in (0, 1).

    Raises:
        ValueError: successes is not in [0, n], or n is 0.
    """
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"{successes} successes in {n} trials")
    if successes == 0:
        return 0.0
    return float(beta.ppf(delta, successes, n - successes + 1))


@dataclass(frozen=True)
class _Components:
    """DeLong's structural components of one or two scores on the same images.

    Attributes:
        area: float64 [K], ROC-AUC of each score.
        positive: float64 [K, m], each melanoma's share of the others that it outranks.
        negative: float64 [K, n], for each other image the share of melanomas above it.
    """

    area: FloatArray
    positive: FloatArray
    negative: FloatArray


def _components(label: IntArray, scores: Sequence[FloatArray]) -> _Components:
    """Compute the components by midranks, in N log N (Sun and Xu 2014)."""
    m, n = int(label.sum()), int((1 - label).sum())
    positives, negatives = [], []
    for score in scores:
        x, y = score[label == 1], score[label == 0]
        together = rankdata(np.concatenate([x, y]))
        positives.append((together[:m] - rankdata(x)) / n)
        negatives.append(1 - (together[m:] - rankdata(y)) / m)
    positive, negative = np.stack(positives), np.stack(negatives)
    return _Components(positive.mean(axis=1), positive, negative)


def _covariance(
    parts: _Components, label: IntArray, lesion: IntArray | None
) -> FloatArray:
    """Return the covariance float64 [K, K] of the areas.

    Without lesions DeLong's; with them Obuchowski's, in which images of a lesion may
    depend on each other (Obuchowski 1997, Biometrics 53:567).
    """
    m, n = parts.positive.shape[1], parts.negative.shape[1]
    x = parts.positive - parts.area[:, None]
    y = parts.negative - parts.area[:, None]
    if lesion is None:
        return x @ x.T / (m * (m - 1)) + y @ y.T / (n * (n - 1))
    names, of_image = np.unique(lesion, return_inverse=True)
    of_positive, of_negative = of_image[label == 1], of_image[label == 0]
    size = len(names)
    by_x = np.stack([np.bincount(of_positive, row, size) for row in x])
    by_y = np.stack([np.bincount(of_negative, row, size) for row in y])
    with_x, with_y = len(np.unique(of_positive)), len(np.unique(of_negative))
    cross = by_x @ by_y.T
    return (
        by_x @ by_x.T * with_x / ((with_x - 1) * m**2)
        + by_y @ by_y.T * with_y / ((with_y - 1) * n**2)
        + (cross + cross.T) * size / ((size - 1) * m * n)
    )


def _lesions(lesion_ids: Sequence[str] | None) -> IntArray | None:
    """Number the lesions, or return None where every image shows its own."""
    if lesion_ids is None or len(set(lesion_ids)) == len(lesion_ids):
        return None
    return np.unique(np.asarray(lesion_ids), return_inverse=True)[1]


def _enough(label: IntArray, lesion: IntArray | None) -> bool:
    """Tell whether each class has the two units that a variance needs."""
    groups = np.arange(label.size) if lesion is None else lesion
    return all(len(np.unique(groups[label == value])) > 1 for value in (0, 1))


def auc_interval(
    labels: npt.ArrayLike,
    scores: npt.ArrayLike,
    lesion_ids: Sequence[str] | None = None,
) -> Interval:
    """Return ROC-AUC with the interval of DeLong, or of Obuchowski by lesion.

    DeLong, DeLong and Clarke-Pearson 1988, Biometrics 44:837; for clustered images
    Obuchowski 1997, Biometrics 53:567. Area plus and minus 1.96 standard errors, cut
    to [0, 1]. With one unit in a class the interval is [0, 1]: nothing is known.

    Args:
        labels: [N] of 0 and 1, both present.
        scores: [N] in [0, 1].
        lesion_ids: N names; None takes every image as independent, which is DeLong's.

    Raises:
        UserError: one class only, or unfit labels or scores.
    """
    label, score = check_binary(labels, scores)
    require_both_classes(label, "ROC-AUC")
    lesion = _lesions(lesion_ids)
    parts = _components(label, [score])
    area = float(parts.area[0])
    if not _enough(label, lesion):
        return {"value": area, "low": 0.0, "high": 1.0}
    half = _Z * float(np.sqrt(max(_covariance(parts, label, lesion)[0, 0], 0.0)))
    return {"value": area, "low": max(area - half, 0.0), "high": min(area + half, 1.0)}


def macro_auc_interval(
    truth: npt.NDArray[np.int64],
    scores: FloatArray,
    lesion_ids: Sequence[str] | None = None,
) -> Interval:
    """Return the mean of the classes' one-against-the-rest areas with its interval.

    Classes without an image have no area and are left out of the mean.

    Each class has DeLong's structural components; what they move the mean by is summed
    image by image, and over the images of a lesion, and the sums of squares make the
    variance (the same linearisation as DeLong's and Obuchowski's, which for two classes
    with complementary scores it equals where no lesion repeats). With one unit in a
    class the interval is [0, 1]: nothing is known.

    Args:
        truth: int64 [N], index of the true class; two or more occur.
        scores: float64 [N, K].
        lesion_ids: N names; None takes every image as independent.
    """
    lesion = _lesions(lesion_ids)
    units = np.arange(truth.size) if lesion is None else lesion
    present = np.unique(truth)
    areas = np.empty(len(present))
    moved = np.zeros(truth.size)
    enough = True
    for i, k in enumerate(present):
        label = (truth == k).astype(np.int64)
        parts = _components(label, [scores[:, k]])
        areas[i] = parts.area[0]
        enough = enough and _enough(label, lesion)
        for side, part in ((1, parts.positive[0]), (0, parts.negative[0])):
            held = label == side
            groups = len(np.unique(units[held]))
            scale = np.sqrt(groups / max(groups - 1, 1)) / held.sum()
            moved[held] += (part - areas[i]) * scale / len(present)
    value = float(areas.mean())
    if not enough:
        return {"value": value, "low": 0.0, "high": 1.0}
    by_lesion = np.bincount(np.unique(units, return_inverse=True)[1], moved)
    half = _Z * float(np.sqrt(np.sum(by_lesion**2)))
    return {
        "value": value,
        "low": max(value - half, 0.0),
        "high": min(value + half, 1.0),
    }


def auc_difference(
    labels: npt.ArrayLike,
    scores_a: npt.ArrayLike,
    scores_b: npt.ArrayLike,
    lesion_ids: Sequence[str] | None = None,
) -> Difference:
    """Return the paired difference of two ROC-AUCs, a minus b, with DeLong's test.

    By lesion, Obuchowski's covariance takes the place of DeLong's; see `auc_interval`.
    Two equal rankings differ by exactly 0 with p = 1.

    Args:
        labels: [N] of 0 and 1, both present.
        scores_a: [N] in [0, 1].
        scores_b: [N] in [0, 1], of the same images.
        lesion_ids: N names; None takes every image as independent.

    Raises:
        UserError: one class only, or unfit labels or scores.
    """
    label, score_a = check_binary(labels, scores_a)
    _, score_b = check_binary(labels, scores_b)
    require_both_classes(label, "ROC-AUC")
    lesion = _lesions(lesion_ids)
    parts = _components(label, [score_a, score_b])
    gain = float(parts.area[0] - parts.area[1])
    if not _enough(label, lesion):
        return {"difference": gain, "low": -1.0, "high": 1.0, "p": 1.0}
    contrast = np.asarray([1.0, -1.0])
    variance = float(contrast @ _covariance(parts, label, lesion) @ contrast)
    # Rounding leaves 1e-19 where the two rankings are one and the same.
    error = float(np.sqrt(variance)) if variance > 1e-16 else 0.0
    if error == 0:
        return {"difference": gain, "low": gain, "high": gain, "p": float(gain == 0)}
    return {
        "difference": gain,
        "low": max(gain - _Z * error, -1.0),
        "high": min(gain + _Z * error, 1.0),
        "p": float(2 * norm.sf(abs(gain) / error)),
    }


def mcnemar_p(
    right_a: npt.NDArray[np.bool_],
    right_b: npt.NDArray[np.bool_],
    lesion_ids: Sequence[str] | None = None,
) -> float:
    """Return the p-value of McNemar's test on paired decisions.

    Where every image is a lesion of its own, the exact binomial test on the discordant
    pairs (McNemar 1947). Where images repeat a lesion, the clustered test of Yang, Sun
    and Hardin 2010 (Statistics in Medicine 29:1177): with d the surplus of pairs in
    which only a is right over those in which only b is, lesion by lesion,
    (sum d)^2 / sum d^2 is chi-squared with one degree of freedom.

    Args:
        right_a: [N], whether a decides rightly.
        right_b: [N], whether b does, on the same images.
        lesion_ids: N names, or None.

    Returns:
        p in [0, 1]; 1 where no pair is discordant.
    """
    only_a, only_b = right_a & ~right_b, right_b & ~right_a
    lesion = _lesions(lesion_ids)
    if lesion is None:
        table = [[0, int(only_a.sum())], [int(only_b.sum()), 0]]
        return min(1.0, float(mcnemar(table, exact=True).pvalue))
    surplus = np.bincount(lesion, only_a.astype(float) - only_b)
    total = float(np.sum(surplus**2))
    if total == 0:
        return 1.0
    return float(2 * norm.sf(abs(float(surplus.sum())) / np.sqrt(total)))
