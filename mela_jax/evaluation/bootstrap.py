"""The lesion-clustered bootstrap: many figures from one set of resampled lesions.

Images of one lesion resemble each other, so the bootstrap draws lesions, not images
(Field and Welsh 2007, doi:10.1111/j.1467-9868.2007.00593.x). Everything is computed
for a chunk of replicates at a time: each is a row of weights on the sorted scores.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from mela_jax.errors import UserError
from mela_jax.evaluation.intervals import (
    CONFIDENCE,
    FloatArray,
    IntArray,
    Interval,
    auc_difference,
    mcnemar_p,
)
from mela_jax.evaluation.scores import check_binary, require_both_classes

# Weights held at once, in array elements (16 MiB as float64): bounds the memory
# whatever the number of images, and stays near the processor's cache.
_CHUNK_ELEMENTS = 1 << 21

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Figures:
    """What each of R weightings of the same scores gives; NaN where undefined.

    Attributes:
        roc_auc: float64 [R].
        pr_auc: float64 [R], average precision.
        partial_auc: float64 [R], area above `partial_from`; see `curve_figures`.
        specificity_at: float64 [R, S], specificity at each wanted sensitivity.
        sums: float64 [R, C], weighted sums of the columns.
    """

    roc_auc: FloatArray
    pr_auc: FloatArray
    partial_auc: FloatArray
    specificity_at: FloatArray
    sums: FloatArray


@dataclass(frozen=True)
class Resampled:
    """Figures of the data as they are, and of every usable replicate.

    Attributes:
        observed: one row.
        replicates: a row for each replicate that holds both classes.
        dropped: replicates left out because they hold one class only.
    """

    observed: Figures
    replicates: Figures
    dropped: int

    @property
    def num_replicates(self) -> int:
        """Number of replicates behind every interval."""
        return int(self.replicates.roc_auc.size)


class PairedFigure(TypedDict):
    """A paired difference, a minus b: bootstrap interval and p-value of a test."""

    difference: float
    low: float
    high: float
    replicates: int
    p: float
    test: str


class PairedDifferences(TypedDict):
    """Paired differences, a minus b, on the same images."""

    roc_auc: PairedFigure
    specificity: PairedFigure
    sensitivity: PairedFigure


def curve_figures(
    labels: npt.ArrayLike,
    scores: npt.ArrayLike,
    weights: npt.ArrayLike,
    *,
    columns: npt.ArrayLike | None = None,
    sensitivities: Sequence[float] = (),
    partial_from: float = 0.8,
) -> Figures:
    """Compute the figures of the ROC and precision-recall curves for many weightings.

    Ties count one half in ROC-AUC (the trapezoid), and enter together in average
    precision: sum over distinct scores, from the highest, of (gain in recall) x
    (precision there). Both equal scikit-learn's with `sample_weight`. The partial area
    lies between the ROC curve and the line of sensitivity `partial_from`: the integral
    of specificity over sensitivity from there to 1, at most 1 - partial_from (the
    measure of the ISIC 2024 challenge). Specificity at a wanted sensitivity is that of
    the highest score that reaches it.

    Args:
        labels: [N] of 0 and 1.
        scores: [N] in [0, 1].
        weights: [R, N] whole numbers >= 0; one row per replicate.
        columns: float [N, C] to sum under the weights; None: none.
        sensitivities: S wanted sensitivities in (0, 1].
        partial_from: sensitivity in [0, 1) above which the partial area is taken.

    Returns:
        The figures; all but the sums are NaN for a row that leaves one class without
        weight.
    """
    label, score = check_binary(labels, scores)
    weight = np.asarray(weights, dtype=np.float64)
    if columns is None:
        columns = np.empty((label.size, 0))
    sums = weight @ np.asarray(columns, dtype=np.float64)
    order = np.argsort(-score, kind="stable")
    positive = (label[order] == 1).astype(np.float64)
    descending = score[order]
    ends = np.append(np.flatnonzero(np.diff(descending)), score.size - 1)
    weight = weight[:, order]
    # From (0, 0): curves begin where nobody is flagged.
    tps = _cumulated(weight * positive, ends)
    fps = _cumulated(weight * (1 - positive), ends)
    num_positives, num_negatives = tps[:, -1:], fps[:, -1:]
    with np.errstate(divide="ignore", invalid="ignore"):
        tp_gain, fp_gain = np.diff(tps, axis=1), np.diff(fps, axis=1)
        pairs = (num_positives * num_negatives)[:, 0]
        roc = np.sum(fp_gain * (tps[:, 1:] - tp_gain / 2), axis=1) / pairs
        # Leading scores without weight have 0/0 precision and gain no recall.
        flagged = tps[:, 1:] + fps[:, 1:]
        precision = np.where(flagged > 0, tps[:, 1:] / flagged, 0.0)
        average = np.sum(tp_gain * precision, axis=1) / num_positives[:, 0]
        partial = _partial_area(tps / num_positives, fps / num_negatives, partial_from)
        at = _first_reaching(tps, sensitivities)
        specificity = 1 - np.take_along_axis(fps, at, axis=1) / num_negatives
    one_class = pairs == 0
    for figure in (roc, average, partial, specificity):
        figure[one_class] = np.nan
    return Figures(roc, average, partial, specificity, sums)


def bootstrap(
    labels: npt.ArrayLike,
    lesion_ids: Sequence[str],
    scores: npt.ArrayLike,
    *,
    num_bootstrap: int,
    seed: int,
    columns: npt.ArrayLike | None = None,
    sensitivities: Sequence[float] = (),
    partial_from: float = 0.8,
) -> Resampled:
    """Resample lesions and return every figure, observed and replicated.

    Each replicate draws as many lesions as there are, with replacement, and takes all
    images of a drawn lesion. Replicates that hold only one class are dropped and
    counted. The lesions drawn depend on their names and the seed alone, so that the
    replicates of two models on the same images are paired, row by row.

    Args:
        labels: [N] of 0 and 1, both present.
        lesion_ids: N names.
        scores: [N] in [0, 1].
        num_bootstrap: replicates to draw, >= 1.
        seed: of the resampling; the same seed gives the same replicates.
        columns: see `curve_figures`.
        sensitivities: see `curve_figures`.
        partial_from: see `curve_figures`.

    Raises:
        UserError: one class only, unfit labels or scores, num_bootstrap < 1, or no
            replicate with both classes.
    """
    label, score = check_binary(labels, scores)
    require_both_classes(label, "bootstrap")

    def figures(weight: IntArray) -> Figures:
        return curve_figures(
            label,
            score,
            weight,
            columns=columns,
            sensitivities=sensitivities,
            partial_from=partial_from,
        )

    observed = figures(np.ones((1, label.size), dtype=np.int64))
    rows = [
        figures(weight)
        for weight in resample_lesions(
            lesion_ids, num_bootstrap=num_bootstrap, seed=seed
        )
    ]
    kept = _kept(np.isfinite(np.concatenate([row.roc_auc for row in rows])))
    replicates = Figures(
        **{
            field.name: np.concatenate([getattr(row, field.name) for row in rows])[kept]
            for field in fields(Figures)
        }
    )
    return Resampled(observed, replicates, dropped=int((~kept).sum()))


def percentile_interval(observed: float, replicates: FloatArray) -> Interval:
    """Return a figure with the central 95 % of its replicates.

    Replicates in which the figure is undefined (NaN) are left out; where all are, or
    the figure itself is, nothing is known: value None or the figure, low 0, high 1.

    Args:
        observed: the figure, in [0, 1] or NaN.
        replicates: float64 [R].
    """
    value = float(observed) if np.isfinite(observed) else None
    usable = replicates[np.isfinite(replicates)]
    if value is None or usable.size == 0:
        return {"value": value, "low": 0.0, "high": 1.0}
    low, high = _limits(usable)
    return {"value": value, "low": low, "high": high}


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
        For each figure the difference, its percentile interval, the number of
        replicates used, and p: DeLong's test for ROC-AUC (Obuchowski's where images
        repeat a lesion), McNemar's for the decisions (Yang's clustered one where
        images repeat a lesion).

    Raises:
        UserError: as `bootstrap`.
    """
    label, score_a = check_binary(labels, scores_a)
    _, score_b = check_binary(labels, scores_b)
    require_both_classes(label, "paired comparison")
    flags_a, flags_b = score_a >= threshold_a, score_b >= threshold_b
    # +1 where only a is right, -1 where only b is: a weighted mean of it over one
    # class is the difference of the two rates.
    right_a, right_b = flags_a == (label == 1), flags_b == (label == 1)
    gain = right_a.astype(np.float64) - right_b
    columns = np.column_stack([gain * label, gain * (1 - label), label, 1 - label])
    drawn_a, drawn_b = (
        bootstrap(
            label,
            lesion_ids,
            score,
            num_bootstrap=num_bootstrap,
            seed=seed,
            columns=columns,
        )
        for score in (score_a, score_b)
    )

    def figure(
        observed: FloatArray, replicates: FloatArray, p: float, test: str
    ) -> PairedFigure:
        low, high = _limits(replicates)
        return {
            "difference": float(observed[0]),
            "low": low,
            "high": high,
            "replicates": drawn_a.num_replicates,
            "p": p,
            "test": test,
        }

    clustered = len(set(lesion_ids)) < label.size
    decisions = "McNemar, clustered (Yang)" if clustered else "McNemar, exact"

    def rate(column: int, value: int) -> PairedFigure:
        held = label == value
        held_lesions = [x for x, h in zip(lesion_ids, held, strict=True) if h]
        before, after = drawn_a.observed.sums, drawn_a.replicates.sums
        return figure(
            before[:, column] / before[:, column + 2],
            after[:, column] / after[:, column + 2],
            mcnemar_p(right_a[held], right_b[held], held_lesions),
            decisions,
        )

    return {
        "roc_auc": figure(
            drawn_a.observed.roc_auc - drawn_b.observed.roc_auc,
            drawn_a.replicates.roc_auc - drawn_b.replicates.roc_auc,
            auc_difference(label, score_a, score_b, lesion_ids)["p"],
            "DeLong, clustered (Obuchowski)" if clustered else "DeLong",
        ),
        "specificity": rate(1, 0),
        "sensitivity": rate(0, 1),
    }


def _cumulated(weight: FloatArray, ends: IntArray) -> FloatArray:
    """Return cumulative sums at the ends of ties, with a 0 before them, [R, K + 1]."""
    sums = np.cumsum(weight, axis=1)[:, ends]
    return np.concatenate([np.zeros((len(sums), 1)), sums], axis=1)


def _partial_area(tpr: FloatArray, fpr: FloatArray, start: float) -> FloatArray:
    """Integrate 1 - FPR over sensitivities from `start` to 1, straight between points.

    A step that begins below `start` is cut where it crosses the line.
    """
    rise, run = np.diff(tpr, axis=1), np.diff(fpr, axis=1)
    begin = np.maximum(tpr[:, :-1], start)
    share = np.where(rise > 0, (begin - tpr[:, :-1]) / rise, 0.0)
    fpr_begin = fpr[:, :-1] + run * np.clip(share, 0.0, 1.0)
    height = np.maximum(tpr[:, 1:] - begin, 0.0)
    return np.sum(height * (1 - (fpr_begin + fpr[:, 1:]) / 2), axis=1)


def _first_reaching(tps: FloatArray, sensitivities: Sequence[float]) -> IntArray:
    """Return, for each row and sensitivity, the first point that reaches it [R, S]."""
    rows, length = tps.shape
    totals = tps[:, -1]
    wanted = np.asarray(sensitivities, dtype=np.float64)[None]
    count = np.ceil(totals[:, None] * wanted)
    # As counts / total >= wanted: 0.07 * 100 exceeds 7 in binary.
    safe = np.maximum(totals, 1.0)[:, None]
    count = np.where((count - 1) / safe >= wanted, count - 1, count)
    count = np.where(count / safe < wanted, count + 1, count)
    # One search for all rows: counts are whole, so shifting each row beyond the one
    # before it is exact.
    shift = np.arange(rows)[:, None] * (float(totals.max(initial=0.0)) + 2)
    found = np.searchsorted((tps + shift).ravel(), (count + shift).ravel(), "left")
    index = found.reshape(rows, -1) - np.arange(rows)[:, None] * length
    return np.clip(index, 0, length - 1).astype(np.int64)


def _limits(replicates: FloatArray) -> tuple[float, float]:
    """Return the central 95 % of the replicates."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return float(low), float(high)


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


def resample_lesions(
    lesion_ids: Sequence[str], *, num_bootstrap: int, seed: int | Sequence[int]
) -> Iterator[IntArray]:
    """Yield weights int64 [r, N] of the images, some replicates at a time.

    An image weighs as often as its lesion was drawn.

    Args:
        lesion_ids: N names.
        num_bootstrap: replicates to draw in all, >= 1.
        seed: one or several whole numbers >= 0.

    Raises:
        UserError: num_bootstrap < 1.
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
