"""The lesion-clustered bootstrap: many figures from one set of resampled lesions.

Images of one lesion resemble each other, so the bootstrap draws lesions, not images
(Field and Welsh 2007, doi:10.1111/j.1467-9868.2007.00593.x). Everything is computed
for a chunk of replicates at a time: each is a row of weights on the sorted scores.
"""

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mela_jax.errors import UserError
from mela_jax.evaluation.intervals import (
    CONFIDENCE,
    FloatArray,
    IntArray,
    Interval,
    unknown_interval,
)
from mela_jax.evaluation.scores import Predictions, require_both_classes

# Weights held at once, in array elements (16 MiB as float64): bounds the memory
# whatever the number of images, and stays near the processor's cache.
_CHUNK_ELEMENTS = 1 << 21

_log = logging.getLogger(__name__)


@functools.cache
def _warn_of_dropped(dropped: int, drawn: int) -> None:
    """Say it once, though a report draws the same replicates for many figures."""
    _log.warning(
        "%d of %d bootstrap replicates hold only one class and were dropped",
        dropped,
        drawn,
    )


@dataclass(frozen=True)
class Resampled:
    """Figures of the data as they are, and of every replicate with both classes.

    Both by the names of `curve_figures` and of the columns that were summed; replicates
    are float64 [R], NaN where undefined.
    """

    observed: Mapping[str, float]
    replicates: Mapping[str, FloatArray]

    @property
    def num_replicates(self) -> int:
        """Number of replicates behind every interval."""
        return int(self.replicates["roc_auc"].size)


def specificity_at(sensitivity: float) -> str:
    """Return the name of a figure: specificity at a wanted sensitivity."""
    return f"specificity at {sensitivity}"


def curve_figures(
    label: IntArray,
    score: FloatArray,
    weights: npt.NDArray[Any],
    *,
    sensitivities: Sequence[float] = (),
    partial_from: float = 0.8,
) -> dict[str, FloatArray]:
    """Compute the figures of the ROC and precision-recall curves for many weightings.

    Args:
        label: int64 [N] of 0 and 1.
        score: float64 [N] in [0, 1].
        weights: [R, N] whole numbers >= 0; one row per replicate.
        sensitivities: wanted ones, in (0, 1].
        partial_from: sensitivity in [0, 1) above which the partial area is taken.

    Returns:
        Figures float64 [R], those of curves NaN in rows that leave a class without
        weight. "roc_auc", ties counting one half, and "pr_auc", average precision,
        equal scikit-learn's with `sample_weight`. "partial_auc": the integral of
        specificity over sensitivity from `partial_from` to 1, at most 1 - partial_from
        (the measure of the ISIC 2024 challenge). `specificity_at(s)`: at the highest
        score that reaches the sensitivity s. "images": the sum of the weights.
    """
    weight = np.asarray(weights, dtype=np.float64)
    images = weight.sum(axis=1)
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
    curves = {"roc_auc": roc, "pr_auc": average, "partial_auc": partial}
    curves |= {
        specificity_at(s): each
        for s, each in zip(sensitivities, specificity.T, strict=True)
    }
    for figure in curves.values():
        figure[pairs == 0] = np.nan
    return {**curves, "images": images}


def bootstrap(
    split: Predictions,
    *,
    num_bootstrap: int,
    seed: int,
    columns: Mapping[str, FloatArray] | None = None,
    **curves: Any,
) -> Resampled:
    """Resample lesions and return every figure, observed and replicated.

    Each replicate draws as many lesions as there are, with replacement, and takes all
    images of a drawn lesion. The lesions drawn depend on their names and the seed
    alone, so that the replicates of two models on the same images are paired.

    Args:
        split: scores of both classes.
        num_bootstrap: replicates to draw, >= 1.
        seed: of the resampling.
        columns: name -> float64 [N]; their sums over the images drawn are figures too.
        **curves: `sensitivities` and `partial_from` of `curve_figures`.

    Raises:
        UserError: one class only, num_bootstrap < 1, or no replicate with both classes.
    """
    require_both_classes(split.label, "bootstrap")
    names = list(columns or {})
    # One product for all of them: far faster than one for each.
    matrix = np.empty((split.label.size, 0))
    if columns:
        matrix = np.column_stack(list(columns.values()))

    def figures(weight: npt.NDArray[Any]) -> dict[str, FloatArray]:
        found = curve_figures(split.label, split.score, weight, **curves)
        sums = weight.astype(np.float64) @ matrix
        return found | dict(zip(names, sums.T, strict=True))

    chunks = resample_lesions(split.lesion_id, num_bootstrap=num_bootstrap, seed=seed)
    observed = figures(np.ones((1, split.label.size)))
    replicates = concatenate([figures(weight) for weight in chunks])
    usable = np.isfinite(replicates["roc_auc"])
    dropped = int((~usable).sum())
    if dropped == usable.size:
        raise UserError(
            f"none of {usable.size} bootstrap replicates holds both classes; draw more "
            "replicates or use a split with more lesions of each class"
        )
    if dropped:
        _warn_of_dropped(dropped, usable.size)
    return Resampled(
        {name: float(figure[0]) for name, figure in observed.items()},
        {name: figure[usable] for name, figure in replicates.items()},
    )


def concatenate(parts: Sequence[Mapping[str, FloatArray]]) -> dict[str, FloatArray]:
    """Join the figures of several chunks of replicates, name by name."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def percentile_interval(observed: float, replicates: FloatArray) -> Interval:
    """Return a figure with the central 95 % of its replicates float64 [R].

    Replicates in which the figure is undefined (NaN) are left out; where all are, or
    the figure itself is, it is an `unknown_interval`.
    """
    value = float(observed) if np.isfinite(observed) else None
    usable = replicates[np.isfinite(replicates)]
    if value is None or usable.size == 0:
        return unknown_interval(value)
    low, high = percentile_limits(usable)
    return {"value": value, "low": low, "high": high}


def percentile_limits(replicates: FloatArray) -> tuple[float, float]:
    """Return the ends of the central 95 % of the replicates float64 [R]."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return float(low), float(high)


def resample_lesions(
    lesion_ids: Sequence[str], *, num_bootstrap: int, seed: int | Sequence[int]
) -> Iterator[IntArray]:
    """Yield weights int64 [r, N] of the images, some replicates at a time.

    An image weighs as often as its lesion was drawn. UserError for num_bootstrap < 1.
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
