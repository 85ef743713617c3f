"""Closed-form intervals and tests: proportions, ROC-AUC, paired decisions.

Two-sided intervals hold 95 %. Images of one lesion resemble each other, so whatever
takes them as independent has a sibling here that counts by lesion.

Labels [N] are 1 for melanoma and 0 for all else, scores [N] lie in [0, 1], and
`lesion_ids` are N names; None takes every image as independent. Of the areas, those
that take labels raise UserError where these are unfit or of one class only.
"""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import numpy.typing as npt
from scipy.stats import norm, rankdata
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from mela_jax.evaluation.classes import BoolArray, FloatArray, IntArray
from mela_jax.evaluation.scores import check_binary, require_both_classes

CONFIDENCE = 0.95
_Z = float(norm.ppf((1 + CONFIDENCE) / 2))


class Interval(TypedDict):
    """A figure with its 95 % interval; value is None where it is undefined."""

    value: float | None
    low: float
    high: float


def unknown_interval(value: float | None = None) -> Interval:
    """Return all of [0, 1]: nothing is known of where the true figure lies."""
    return {"value": value, "low": 0.0, "high": 1.0}


def wilson(successes: float, n: int) -> Interval:
    """Return successes / n with its Wilson score interval (Wilson 1927).

    Successes need not be whole where trials are clusters. With n = 0 the proportion is
    undefined: an `unknown_interval`. ValueError where successes is not in [0, n].
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes in {n} trials")
    if n == 0:
        return unknown_interval()
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

    The bound lies above the true proportion with probability delta in (0, 1) at most,
    whatever that proportion is. ValueError where successes is not in [0, n] or n is 0.
    """
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"{successes} successes in {n} trials")
    # statsmodels gives half of alpha to each side; only the lower one is asked for.
    return float(proportion_confint(successes, n, alpha=2 * delta, method="beta")[0])


def _components(
    label: IntArray, scores: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Compute DeLong's components of K scores [K, N] by midranks (Sun and Xu 2014).

    Returns ROC-AUC [K]; by how much each melanoma's share of the others that it
    outranks exceeds it [K, m]; and likewise for each other image the share of
    melanomas above it [K, n].
    """
    x, y = scores[:, label == 1], scores[:, label == 0]
    m, n = x.shape[1], y.shape[1]
    together = rankdata(np.concatenate([x, y], axis=1), axis=1)
    positive = (together[:, :m] - rankdata(x, axis=1)) / n
    negative = 1 - (together[:, m:] - rankdata(y, axis=1)) / m
    area = positive.mean(axis=1)
    return area, positive - area[:, None], negative - area[:, None]


def _covariance(
    x: FloatArray, y: FloatArray, label: IntArray, lesion: IntArray | None
) -> FloatArray:
    """Return the covariance float64 [K, K] of areas with components x and y.

    Without lesions DeLong's; with them Obuchowski's, in which images of a lesion may
    depend on each other (Obuchowski 1997, Biometrics 53:567).
    """
    m, n = x.shape[1], y.shape[1]
    if lesion is None:
        return x @ x.T / (m * (m - 1)) + y @ y.T / (n * (n - 1))
    of_positive, of_negative = lesion[label == 1], lesion[label == 0]
    size = int(lesion.max()) + 1
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


def _has_two_of_each(label: IntArray, lesion: IntArray | None) -> bool:
    """Tell whether each class has the two units that a variance needs."""
    units = np.arange(label.size) if lesion is None else lesion
    return all(len(np.unique(units[label == value])) > 1 for value in (0, 1))


def _normal_interval(area: float, variance: float) -> Interval:
    """Return an area with its interval from the normal distribution, in [0, 1]."""
    half = _Z * float(np.sqrt(max(variance, 0.0)))
    return {"value": area, "low": max(area - half, 0.0), "high": min(area + half, 1.0)}


def auc_interval(
    labels: npt.ArrayLike,
    scores: npt.ArrayLike,
    lesion_ids: Sequence[str] | None = None,
) -> Interval:
    """Return ROC-AUC with the interval of DeLong, or of Obuchowski by lesion.

    DeLong, DeLong and Clarke-Pearson 1988, Biometrics 44:837; for clustered images
    Obuchowski 1997, Biometrics 53:567. Area plus and minus 1.96 standard errors, cut
    to [0, 1]; an `unknown_interval` where a class has one unit only.
    """
    label, score = check_binary(labels, scores)
    require_both_classes(label, "ROC-AUC")
    lesion = _lesions(lesion_ids)
    area, x, y = _components(label, score[None])
    if not _has_two_of_each(label, lesion):
        return unknown_interval(float(area[0]))
    return _normal_interval(float(area[0]), _covariance(x, y, label, lesion)[0, 0])


def macro_auc_interval(
    truth: IntArray,
    scores: FloatArray,
    lesion_ids: Sequence[str] | None = None,
) -> Interval:
    """Return the mean of the classes' one-against-the-rest areas with its interval.

    Classes without an image have no area and are left out of the mean; true classes are
    given by their index, int64 [N], and scores are float64 [N, K].

    Each class has DeLong's structural components; what they move the mean by is summed
    image by image, and over the images of a lesion, and the sums of squares make the
    variance (the same linearisation as DeLong's and Obuchowski's, which for two classes
    with complementary scores it equals where no lesion repeats). An `unknown_interval`
    where a class has one unit only.
    """
    lesion = _lesions(lesion_ids)
    units = np.arange(truth.size) if lesion is None else lesion
    present = np.unique(truth)
    areas = np.empty(len(present))
    moved = np.zeros(truth.size)
    known = True
    for i, k in enumerate(present):
        label = (truth == k).astype(np.int64)
        area, x, y = _components(label, scores[None, :, k])
        areas[i] = area[0]
        known = known and _has_two_of_each(label, lesion)
        for side, part in ((1, x[0]), (0, y[0])):
            held = label == side
            groups = len(np.unique(units[held]))
            scale = np.sqrt(groups / max(groups - 1, 1)) / held.sum()
            moved[held] += part * scale / len(present)
    value = float(areas.mean())
    if not known:
        return unknown_interval(value)
    return _normal_interval(value, float(np.sum(np.bincount(units, moved) ** 2)))


def auc_difference_p(
    labels: npt.ArrayLike,
    scores_a: npt.ArrayLike,
    scores_b: npt.ArrayLike,
    lesion_ids: Sequence[str] | None = None,
) -> float:
    """Return the p-value of DeLong's test that two scores have the same ROC-AUC.

    By lesion, Obuchowski's covariance takes the place of DeLong's; see `auc_interval`.
    1 for two equal rankings, and where a class has one unit only.
    """
    label, score_a = check_binary(labels, scores_a)
    _, score_b = check_binary(labels, scores_b)
    require_both_classes(label, "ROC-AUC")
    lesion = _lesions(lesion_ids)
    area, x, y = _components(label, np.stack([score_a, score_b]))
    gain = float(area[0] - area[1])
    if not _has_two_of_each(label, lesion):
        return 1.0
    contrast = np.asarray([1.0, -1.0])
    variance = float(contrast @ _covariance(x, y, label, lesion) @ contrast)
    # Rounding leaves 1e-19 where the two rankings are one and the same.
    if variance <= 1e-16:
        return float(gain == 0)
    return float(2 * norm.sf(abs(gain) / np.sqrt(variance)))


def mcnemar_p(
    right_a: BoolArray,
    right_b: BoolArray,
    lesion_ids: Sequence[str] | None = None,
) -> float:
    """Return the p-value of McNemar's test on which decisions are right, bool [N] each.

    Where every image is a lesion of its own, the exact binomial test on the discordant
    pairs (McNemar 1947). Where images repeat a lesion, the clustered test of Yang, Sun
    and Hardin 2010 (Statistics in Medicine 29:1177): with d the surplus of pairs in
    which only a is right over those in which only b is, lesion by lesion,
    (sum d)^2 / sum d^2 is chi-squared with one degree of freedom. 1 where no pair is
    discordant.
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
