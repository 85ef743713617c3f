"""95 % intervals: Wilson for proportions, lesion-clustered bootstrap for areas.

Images of one lesion resemble each other, so the bootstrap draws lesions, not images
(Field and Welsh 2007, doi:10.1111/j.1467-9868.2007.00593.x).
"""

import logging
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TypedDict

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score, roc_auc_score
from statsmodels.stats.proportion import proportion_confint

from mela_jax.errors import UserError
from mela_jax.evaluation.scores import check_binary, require_both_classes

CONFIDENCE = 0.95

# Weights held at once, in array elements (32 MiB as int64): bounds the memory whatever
# the number of images.
_CHUNK_ELEMENTS = 1 << 22

_log = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


class Interval(TypedDict):
    """A figure with its 95 % interval; value is None where it is undefined."""

    value: float | None
    low: float
    high: float


class AreaIntervals(TypedDict):
    """ROC-AUC and PR-AUC with intervals, and how many replicates stand behind them."""

    roc_auc: Interval
    pr_auc: Interval
    replicates: int
    dropped: int


class Difference(TypedDict):
    """A paired difference, a minus b, with its 95 % interval."""

    difference: float
    low: float
    high: float
    replicates: int


class PairedDifferences(TypedDict):
    """Paired differences, a minus b, on the same images."""

    roc_auc: Difference
    specificity: Difference
    sensitivity: Difference


def wilson(successes: int, n: int) -> Interval:
    """Return a proportion with its Wilson score interval (Wilson 1927).

    With n = 0 the proportion is undefined and nothing is known of it: value None,
    low 0, high 1.

    Args:
        successes: count in [0, n].
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


def weighted_areas(
    labels: npt.ArrayLike, scores: npt.ArrayLike, weights: npt.ArrayLike
) -> tuple[FloatArray, FloatArray]:
    """Compute ROC-AUC and average precision for many weightings of the same scores.

    Ties count one half in ROC-AUC (the trapezoid), and enter together in average
    precision: sum over distinct scores, from the highest, of (gain in recall) x
    (precision there). Both equal scikit-learn's with `sample_weight`.

    Args:
        labels: [N] of 0 and 1.
        scores: [N] in [0, 1].
        weights: [R, N], >= 0; one row per replicate.

    Returns:
        ROC-AUC float64 [R] and average precision float64 [R]; both NaN for a row that
        leaves one class without weight.
    """
    label, score = check_binary(labels, scores)
    order = np.argsort(-score, kind="stable")
    positive = label[order] == 1
    descending = score[order]
    ends = np.append(np.flatnonzero(np.diff(descending)), score.size - 1)
    weight = np.asarray(weights)[:, order]
    tps = np.cumsum(weight * positive, axis=1)[:, ends].astype(np.float64)
    fps = np.cumsum(weight * ~positive, axis=1)[:, ends].astype(np.float64)
    num_positives, num_negatives = tps[:, -1], fps[:, -1]
    tp_gain = np.diff(tps, axis=1, prepend=0.0)
    fp_gain = np.diff(fps, axis=1, prepend=0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        pairs = num_positives * num_negatives
        roc = np.sum(fp_gain * (tps - tp_gain / 2), axis=1) / pairs
        # Leading scores without weight have 0/0 precision and gain no recall.
        precision = np.where(tps > 0, tps / (tps + fps), 0.0)
        average = np.sum(tp_gain * precision, axis=1) / num_positives
    one_class = pairs == 0
    roc[one_class] = np.nan
    average[one_class] = np.nan
    return roc, average


def clustered_bootstrap(
    labels: npt.ArrayLike,
    lesion_ids: Sequence[str],
    scores: npt.ArrayLike,
    *,
    num_bootstrap: int,
    seed: int,
) -> AreaIntervals:
    """Return ROC-AUC and PR-AUC with percentile intervals, resampling lesions.

    PR-AUC is average precision (no interpolation). Each replicate draws as many
    lesions as there are, with replacement, and takes all images of a drawn lesion.
    Replicates that hold only one class have no area: they are dropped and counted.
    Perfect separation gives an interval of width zero, which understates the doubt.

    Args:
        labels: [N] of 0 and 1, both present.
        lesion_ids: N names.
        scores: [N] in [0, 1].
        num_bootstrap: replicates to draw, >= 1.
        seed: of the resampling; the same seed gives the same interval.

    Raises:
        UserError: one class only, unfit labels or scores, num_bootstrap < 1, or no
            replicate with both classes.
    """
    label, score = check_binary(labels, scores)
    require_both_classes(label, "bootstrap")
    rows = [
        weighted_areas(label, score, weight)
        for weight in _resample(lesion_ids, num_bootstrap=num_bootstrap, seed=seed)
    ]
    roc = np.concatenate([row[0] for row in rows])
    average = np.concatenate([row[1] for row in rows])
    kept = _kept(np.isfinite(roc))
    return {
        "roc_auc": {
            "value": float(roc_auc_score(label, score)),
            **_limits(roc[kept]),
        },
        "pr_auc": {
            "value": float(average_precision_score(label, score)),
            **_limits(average[kept]),
        },
        "replicates": int(kept.sum()),
        "dropped": int((~kept).sum()),
    }


def paired_difference(
    labels: npt.ArrayLike,
    lesion_ids: Sequence[str],
    scores_a: npt.ArrayLike,
    scores_b: npt.ArrayLike,
    *,
    threshold_a: float,
    threshold_b: float,
    num_bootstrap: int,
    seed: int,
) -> PairedDifferences:
    """Return what model a gains over model b on the same images, a minus b.

    Both models are scored on the same resampled lesions, so what makes a test set
    easy or hard cancels. Specificity and sensitivity are each at the model's own
    frozen threshold; a gain in one means little if it is paid for in the other.

    Args:
        labels: [N] of 0 and 1, both present.
        lesion_ids: N names.
        scores_a: [N] in [0, 1], in the order of `labels`.
        scores_b: [N] in [0, 1], in the order of `labels`.
        threshold_a: operating point of a.
        threshold_b: operating point of b.
        num_bootstrap: replicates to draw, >= 1.
        seed: of the resampling.

    Returns:
        For each figure the difference, its percentile interval, and the number of
        replicates used; see `clustered_bootstrap` for those that are dropped.

    Raises:
        UserError: as `clustered_bootstrap`.
    """
    label, score_a = check_binary(labels, scores_a)
    _, score_b = check_binary(labels, scores_b)
    require_both_classes(label, "paired comparison")
    # +1 where only a flags, -1 where only b does: a weighted mean of it over one class
    # is the difference of the two rates.
    flag_gain = (score_a >= threshold_a).astype(np.int64) - (score_b >= threshold_b)
    positive_gain, negative_gain = flag_gain * label, -flag_gain * (1 - label)
    observed = np.ones((1, label.size), dtype=np.int64)
    roc_rows, specificity_rows, sensitivity_rows = [], [], []
    for weight in chain(
        [observed], _resample(lesion_ids, num_bootstrap=num_bootstrap, seed=seed)
    ):
        roc_rows.append(
            weighted_areas(label, score_a, weight)[0]
            - weighted_areas(label, score_b, weight)[0]
        )
        with np.errstate(invalid="ignore"):
            specificity_rows.append((weight @ negative_gain) / (weight @ (1 - label)))
            sensitivity_rows.append((weight @ positive_gain) / (weight @ label))
    roc = np.concatenate(roc_rows)
    kept = _kept(np.isfinite(roc[1:]))

    def difference(rows: FloatArray) -> Difference:
        return {
            "difference": float(rows[0]),
            **_limits(rows[1:][kept]),
            "replicates": int(kept.sum()),
        }

    return {
        "roc_auc": difference(roc),
        "specificity": difference(np.concatenate(specificity_rows)),
        "sensitivity": difference(np.concatenate(sensitivity_rows)),
    }


class _Limits(TypedDict):
    low: float
    high: float


def _limits(replicates: FloatArray) -> _Limits:
    """Return the central 95 % of the replicates."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return {"low": float(low), "high": float(high)}


def _kept(usable: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return the mask of usable replicates; log how many are lost."""
    dropped = int((~usable).sum())
    if not usable.any():
        raise UserError(
            f"none of {usable.size} bootstrap replicates holds both classes; draw more "
            "replicates or use a split with more lesions of each class"
        )
    if dropped:
        _log.warning(
            "%d of %d bootstrap replicates hold only one class and were dropped",
            dropped,
            usable.size,
        )
    return usable


def _resample(
    lesion_ids: Sequence[str], *, num_bootstrap: int, seed: int
) -> Iterator[IntArray]:
    """Yield weights int64 [r, N] of the images, some replicates at a time.

    An image weighs as often as its lesion was drawn.
    """
    if num_bootstrap < 1:
        raise UserError(f"num_bootstrap is {num_bootstrap}; draw at least 1 replicate")
    _, lesion_of_image = np.unique(np.asarray(lesion_ids), return_inverse=True)
    num_lesions = int(lesion_of_image.max()) + 1
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK_ELEMENTS // len(lesion_ids))
    for start in range(0, num_bootstrap, rows):
        size = min(rows, num_bootstrap - start)
        drawn = rng.integers(num_lesions, size=(size, num_lesions))
        drawn += num_lesions * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * num_lesions)
        yield counts.reshape(size, num_lesions)[:, lesion_of_image]
