"""One training run judged over its folds, or over its one fixed split.

Every lesion is judged by a model and at a threshold that have not seen it. Two ways
give the threshold of a fold:

- "own": that fold's own validation scores. Neither the fold's model nor its threshold
  has seen a lesion of its test set, in any way.
- "pooled": the out-of-fold validation scores of all folds, put together, without the
  lesions of this fold's test set. It rests on more melanomas. The threshold has not
  seen the scores or labels of the lesions that it judges, but the other folds' models,
  whose scores it is made of, were trained on some of them; and it takes the scores of
  different models as being on one scale.

With one fixed split both are the threshold of the main report.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

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
    confusion,
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

    Args:
        folds: one for each fold, or one for a fixed split.
        settings: target, policy, delta, num_bootstrap and seed.
        source: of the threshold, "own" or "pooled", see above.

    Raises:
        UserError: no fold, a set with one class only, a lesion in two test sets or in
            validation and test of one fold, or too few melanomas for a guarantee.
    """
    _check_folds(folds)
    chosen = [_calibration_scores(folds, fold, source=source) for fold in folds]
    thresholds = tuple(_threshold(pool(parts), settings) for parts in chosen)
    parts = [
        _resample_fold(fold, calibration, settings, threshold)
        for fold, calibration, threshold in zip(folds, chosen, thresholds, strict=True)
    ]
    values = _figures([part[0] for part in parts])
    replicates = _figures([part[1] for part in parts])
    counts = [
        asdict(confusion(fold.test.label, fold.test.score, threshold))
        for fold, threshold in zip(folds, thresholds, strict=True)
    ]
    return Judged(
        thresholds=thresholds,
        confusion=Confusion(
            **{name: sum(c[name] for c in counts) for name in counts[0]}
        ),
        values={name: float(figure[0]) for name, figure in values.items()},
        replicates=replicates,
        lesions=_lesions(folds, thresholds),
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
    judged = set(fold.test.lesion_id)
    parts = []
    for val in (other.val for other in folds):
        rows = [i for i, name in enumerate(val.lesion_id) if name not in judged]
        if rows:
            parts.append(
                Predictions(
                    [val.image_id[i] for i in rows],
                    [val.lesion_id[i] for i in rows],
                    val.label[rows],
                    val.score[rows],
                )
            )
    return parts


def _threshold(val: Predictions, settings: Settings) -> float:
    """Choose the threshold by the policy of the settings."""
    if settings.policy == "empirical":
        return choose_threshold(val.label, val.score, target=settings.target)
    return guarantee_threshold(
        val.label,
        val.score,
        val.lesion_id,
        target=settings.target,
        delta=settings.delta,
    ).required_threshold()


def _resample_fold(
    fold: Fold,
    calibration: Sequence[Predictions],
    settings: Settings,
    threshold: float,
) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
    """Return areas and counts of one fold: observed [1] and resampled [R] each."""
    test = fold.test
    at = _resampled_thresholds(calibration, settings)

    def counts(weight: IntArray, thresholds: FloatArray) -> dict[str, FloatArray]:
        curves = curve_figures(test.label, test.score, weight)
        flagged = weight * (test.score[None] >= thresholds[:, None])
        positives = weight @ test.label
        tp = flagged @ test.label
        given = np.isfinite(thresholds)
        return {
            "roc_auc": curves["roc_auc"],
            "pr_auc": curves["pr_auc"],
            "tp": np.where(given, tp, np.nan),
            "fp": np.where(given, flagged.sum(axis=1) - tp, np.nan),
            "positives": positives.astype(np.float64),
            "negatives": curves["images"] - positives,
        }

    once = np.ones((1, test.label.size), dtype=np.int64)
    rows, start = [], 0
    for weight in _weights(test, settings):
        rows.append(counts(weight, at[start : start + len(weight)]))
        start += len(weight)
    return counts(once, np.asarray([threshold])), concatenate(rows)


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


def _figures(parts: Sequence[dict[str, FloatArray]]) -> dict[str, FloatArray]:
    """Return each figure over all folds, [R]."""
    total = {name: np.sum([part[name] for part in parts], axis=0) for name in parts[0]}
    tp, fp = total["tp"], total["fp"]
    fn, tn = total["positives"] - tp, total["negatives"] - fp
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "roc_auc": total["roc_auc"] / len(parts),
            "pr_auc": total["pr_auc"] / len(parts),
            "sensitivity": tp / total["positives"],
            "specificity": tn / total["negatives"],
            "ppv": tp / (tp + fp),
            "npv": tn / (tn + fn),
        }


def _lesions(folds: Sequence[Fold], thresholds: Sequence[float]) -> dict[str, int]:
    """Count the lesions in each rate's denominator; folds share none."""
    found = dict.fromkeys(RATES, 0)
    for fold, threshold in zip(folds, thresholds, strict=True):
        names = np.asarray(fold.test.lesion_id)
        melanoma, flagged = fold.test.label == 1, fold.test.score >= threshold
        counted = (melanoma, ~melanoma, flagged, ~flagged)
        for rate, held in zip(RATES, counted, strict=True):
            found[rate] += len(np.unique(names[held]))
    return found
