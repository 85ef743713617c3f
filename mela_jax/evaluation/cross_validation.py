"""One training run judged over its folds, or over its one fixed split.

Every lesion is judged by a model and at a threshold that have not seen it. Two ways
give the threshold of a fold: "own", from that fold's own validation scores; and
"pooled", from the out-of-fold validation scores of all folds, put together, without the
lesions of this fold's test set. The latter rests on more melanomas, but the other
folds' models were trained on some of the lesions that it judges, and it takes scores of
different models as being on one scale. With one fixed split both are the threshold of
the main report.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mela_jax.errors import UserError
from mela_jax.evaluation.bootstrap import (
    concatenate,
    curve_figures,
    resample_lesions,
)
from mela_jax.evaluation.intervals import FloatArray, IntArray
from mela_jax.evaluation.measure import Settings, refuse_shared
from mela_jax.evaluation.operating_point import (
    Confusion,
    choose_threshold,
    guarantee_threshold,
    lowest_of_each,
    misses_allowed,
    misses_guaranteed,
)
from mela_jax.evaluation.rates import RATES
from mela_jax.evaluation.scores import Predictions, pool, require_both_classes

SOURCES = ("own", "pooled")
AREAS = ("roc_auc", "pr_auc")
FIGURES = (*AREAS, *RATES)


@dataclass(frozen=True, eq=False)
class Fold:
    """The scores of one fold's model; number is -1 for a fixed split."""

    number: int
    val: Predictions
    test: Predictions


@dataclass(frozen=True, eq=False)
class Judged:
    """The figures of one run over its folds, as they are and on resampled lesions.

    Attributes:
        thresholds: of each fold.
        confusion: counts of images, over all folds.
        values: name in `FIGURES` -> figure; NaN where undefined (nobody flagged: PPV).
        replicates: name in `FIGURES` -> float64 [R]; NaN where undefined.
        lesions: name in `RATES` -> lesions in its denominator.
    """

    thresholds: tuple[float, ...]
    confusion: Confusion
    values: dict[str, float]
    replicates: dict[str, FloatArray]
    lesions: dict[str, int]


def judge_folds(
    folds: Sequence[Fold], settings: Settings, *, source: str = "own"
) -> Judged:
    """Choose each fold's threshold, pool the decisions, and resample all lesions.

    ROC-AUC and PR-AUC are means over folds: the scores of different models are not on
    one scale, and the area under pooled ones is biased (Forman and Scholz 2010,
    doi:10.1145/1882471.1882479). Decisions are on one scale, so the rates are those of
    all folds together.

    Each replicate draws lesions within every set, with replacement, **validation sets
    too**: the threshold is chosen anew in it, by the same rule. A lesion is drawn as
    often wherever it occurs, and the draw depends on the names of the lesions and
    the seed alone, so that the replicates of all models on the same images are paired.

    Raises:
        UserError: no fold, a set with one class only, a lesion in two test sets or in
            validation and test of one fold, or too few melanomas for a guarantee.
    """
    _check_folds(folds)
    thresholds, observed, resampled = [], [], []
    lesions = dict.fromkeys(RATES, 0)
    for fold in folds:
        calibration = _calibration_scores(folds, fold, source=source)
        threshold = _threshold(pool(calibration), settings)
        thresholds.append(threshold)
        once = np.ones((1, fold.test.label.size), dtype=np.int64)
        observed.append(_count(fold.test, once, np.asarray([threshold])))
        resampled.append(_resample_fold(fold.test, calibration, settings))
        # Folds share no lesion.
        names = np.asarray(fold.test.lesion_id)
        melanoma, flagged = fold.test.label == 1, fold.test.score >= threshold
        counted = (melanoma, ~melanoma, flagged, ~flagged)
        for rate, held in zip(RATES, counted, strict=True):
            lesions[rate] += len(np.unique(names[held]))
    total = _sum(observed)
    return Judged(
        thresholds=tuple(thresholds),
        confusion=Confusion(
            **{name: int(total[name][0]) for name in ("tp", "fp", "tn", "fn")}
        ),
        values={name: float(f[0]) for name, f in _figures(total, len(folds)).items()},
        replicates=_figures(_sum(resampled), len(folds)),
        lesions=lesions,
    )


def _check_folds(folds: Sequence[Fold]) -> None:
    """Refuse folds on which no honest figure can be computed."""
    if not folds:
        raise UserError("there is no fold to judge; finish a run first")
    owner: dict[str, int] = {}
    for fold in folds:
        where = "" if fold.number < 0 else f"fold {fold.number}: "
        require_both_classes(fold.val.label, f"{where}val")
        require_both_classes(fold.test.label, f"{where}test")
        refuse_shared(fold.val, fold.test)
        for name in set(fold.test.lesion_id):
            other = owner.setdefault(name, fold.number)
            if other != fold.number:
                raise UserError(
                    f"lesion {name} is in the test sets of folds {other} and "
                    f"{fold.number}; folds of one split share no lesion"
                )


def _calibration_scores(
    folds: Sequence[Fold], fold: Fold, *, source: str
) -> list[Predictions]:
    """Return the validation scores that the threshold of one of the folds rests on."""
    if source not in SOURCES:
        raise ValueError(f"source {source!r} is none of {SOURCES}")
    if source == "own":
        return [fold.val]
    judged = fold.test.lesion_id
    kept = [(val, ~np.isin(val.lesion_id, judged)) for val in (f.val for f in folds)]
    return [val.take(np.flatnonzero(rows)) for val, rows in kept if rows.any()]


def _threshold(val: Predictions, settings: Settings) -> float:
    """Choose the threshold by the policy of the settings."""
    target, delta = settings.target, settings.delta
    if settings.policy == "empirical":
        return choose_threshold(val.label, val.score, target=target)
    return guarantee_threshold(
        val.label, val.score, val.lesion_id, target=target, delta=delta
    ).required_threshold()


def _resample_fold(
    test: Predictions, calibration: Sequence[Predictions], settings: Settings
) -> dict[str, FloatArray]:
    """Return `_count` of every replicate, at the threshold of that replicate."""
    thresholds = _resampled_thresholds(calibration, settings)
    parts, start = [], 0
    for weight in _weights(test, settings):
        at = thresholds[start : start + len(weight)]
        parts.append(_count(test, weight, at))
        start += len(weight)
    return concatenate(parts)


def _count(
    test: Predictions, weight: IntArray, thresholds: FloatArray
) -> dict[str, FloatArray]:
    """Return areas and counts [R] under weights [R, N] at thresholds [R] or NaN."""
    curves = curve_figures(test.label, test.score, weight)
    flagged = weight * (test.score[None] >= thresholds[:, None])
    positives = weight @ test.label
    tp = np.where(np.isfinite(thresholds), flagged @ test.label, np.nan)
    fp = flagged.sum(axis=1) - tp
    return {
        **{name: curves[name] for name in AREAS},
        "tp": tp,
        "fp": fp,
        "tn": curves["images"] - positives - fp,
        "fn": positives - tp,
        "positives": positives,
        "negatives": curves["images"] - positives,
    }


def _weights(scores: Predictions, settings: Settings) -> Iterator[IntArray]:
    """Resample lesions by their names: the same wherever the same lesions occur."""
    names = "\n".join(sorted(set(scores.lesion_id)))
    return resample_lesions(
        scores.lesion_id,
        num_bootstrap=settings.num_bootstrap,
        seed=(settings.seed, zlib.crc32(names.encode("utf-8"))),
    )


def _resampled_thresholds(
    calibration: Sequence[Predictions], settings: Settings
) -> FloatArray:
    """Choose the threshold anew in every replicate, float64 [R].

    NaN where a replicate has too few melanomas for the policy.
    """
    drawn, lowest = [], []
    for scores in calibration:
        held = np.flatnonzero(scores.label == 1)
        unit_scores = scores.score[held]
        weights = np.concatenate([w[:, held] for w in _weights(scores, settings)])
        if settings.policy == "guaranteed":
            # A lesion is one unit, by its lowest score.
            names = np.asarray(scores.lesion_id)[held]
            units = lowest_of_each(names, unit_scores)
            weights, unit_scores = weights[:, units], unit_scores[units]
        drawn.append(weights)
        lowest.append(unit_scores)
    unit_scores = np.concatenate(lowest)
    order = np.argsort(unit_scores, kind="stable")
    passed = np.cumsum(np.concatenate(drawn, axis=1)[:, order], axis=1)
    totals, which = np.unique(passed[:, -1], return_inverse=True)
    allowed = np.asarray([_misses(int(total), settings) for total in totals])[which]
    # The first unit that would be one miss too many is flagged, and those above it.
    index = np.sum(passed <= allowed[:, None], axis=1)
    thresholds = unit_scores[order][np.minimum(index, order.size - 1)]
    return np.where(allowed < 0, np.nan, thresholds)


def _misses(total: int, settings: Settings) -> int:
    """Return how many of `total` melanomas the threshold may miss; -1: cannot be."""
    if total == 0:
        return -1
    if settings.policy == "guaranteed":
        return misses_guaranteed(total, target=settings.target, delta=settings.delta)[0]
    return misses_allowed(total, target=settings.target)


def _sum(folds: Sequence[dict[str, FloatArray]]) -> dict[str, FloatArray]:
    """Add up the counts and areas of all folds."""
    return {name: np.sum([fold[name] for fold in folds], axis=0) for name in folds[0]}


def _figures(total: dict[str, FloatArray], num_folds: int) -> dict[str, FloatArray]:
    """Return each figure over all folds, [R], from `_sum`."""
    tp, fp, tn, fn = (total[name] for name in ("tp", "fp", "tn", "fn"))
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            **{name: total[name] / num_folds for name in AREAS},
            "sensitivity": tp / total["positives"],
            "specificity": tn / total["negatives"],
            "ppv": tp / (tp + fp),
            "npv": tn / (tn + fn),
        }
