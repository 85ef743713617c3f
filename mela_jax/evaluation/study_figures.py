"""The figures of a study: a row per setting, each against the reference, each axis."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from statsmodels.stats.multitest import multipletests

from mela_jax.evaluation.cross_validation import AREAS, FIGURES
from mela_jax.evaluation.intervals import FloatArray
from mela_jax.evaluation.seeds import (
    SeedVariance,
    difference_over_seeds,
    interval_over_seeds,
    moderate_variances,
    spread_over_seeds,
)
from mela_jax.evaluation.study_runs import Row, are_numbers

# What is tested; the first is primary.
TESTED = ("roc_auc", "specificity")
COMPARED = (*TESTED, "sensitivity")
SIGNIFICANCE = 0.05
NO_DIFFERENCE = "no difference shown"

# Name in `FIGURES` -> row number -> the figure's variance over seeds.
SeedVariances = Mapping[str, Mapping[int, SeedVariance]]


def seed_variances(rows: Sequence[Row]) -> SeedVariances:
    """Return the variance of each figure over seeds, those of all rows in view of all.

    Rows with one seed have none, nor have those where the figure is undefined with some
    seed.
    """
    found = {}
    for name in FIGURES:
        values = {row.number: _stack(row, name)[0] for row in rows if row.judged}
        usable = {
            n: v for n, v in values.items() if len(v) > 1 and np.isfinite(v).all()
        }
        variances = moderate_variances(list(usable.values()))
        found[name] = dict(zip(usable, variances, strict=True))
    return found


def row_figures(row: Row, variances: SeedVariances) -> dict[str, Any]:
    """Return every figure of a judged row: mean over seeds, interval, spread.

    Returns:
        name in `FIGURES` -> {value, low, high, by_seed, seed_sd, lesion_sd, freedom};
        value None where undefined; seed_sd None with one seed.
    """
    figures = {}
    for name in FIGURES:
        values, replicates = _stack(row, name)
        lesions = None
        if name not in AREAS:
            lesions = min(judged.lesions[name] for judged in row.judged.values())
        known = [variances[name][row.number]] if row.number in variances[name] else None
        spread = spread_over_seeds(values, replicates, known)
        by_seed = zip(row.judged, values.tolist(), strict=True)
        figures[name] = {
            **interval_over_seeds(values, replicates, lesions=lesions, luck=known),
            "by_seed": {str(seed): _finite(value) for seed, value in by_seed},
            "seed_sd": spread.seed_sd,
            "lesion_sd": _finite(spread.lesion_sd),
            "freedom": _finite(spread.freedom),
        }
    return figures


def compare_with_reference(
    rows: Sequence[Row], variances: SeedVariances
) -> list[dict[str, Any]]:
    """Compare every judged row with the first, seed by seed and lesion by lesion.

    p-values of ROC-AUC and specificity are corrected together by Holm 1979
    (doi:10.2307/4615733), over all comparisons that the study plans: those that cannot
    be made yet count as p = 1, so that the correction is never milder than it will be
    once all are made.

    Returns:
        For each other row that shares two seeds with the reference, or one where the
        study has one: "number", "setting", "seeds"; for each of `TESTED` {difference,
        low, high, p, freedom, p_holm, verdict}; "sensitivity", the same without
        correction or verdict; "trade": whether specificity differs at the cost of
        sensitivity.
    """
    reference, *others = rows
    found: list[dict[str, Any]] = []
    num_planned = len({seed for row in rows for seed, _ in row.runs})
    for row in others:
        seeds = [s for s in reference.seeds if s in row.seeds]
        if len(seeds) < min(2, num_planned):
            continue
        pair = (row, reference)
        differences = {
            name: difference_over_seeds(
                *_stack(row, name, seeds),
                *_stack(reference, name, seeds),
                luck=[variances[name][r.number] for r in pair if len(seeds) > 1]
                or None,
            )
            for name in COMPARED
        }
        found.append(
            {"number": row.number, "setting": dict(row.setting), "seeds": seeds}
            | {name: dict(difference) for name, difference in differences.items()}
        )
    tested = [entry[name] for entry in found for name in TESTED]
    p = [figure["p"] for figure in tested]
    padded = p + [1.0] * (len(others) * len(TESTED) - len(p))
    corrected = multipletests(padded, method="holm")[1] if padded else []
    for figure, p_holm in zip(tested, corrected, strict=False):
        figure["p_holm"] = float(p_holm)
        better = "better" if figure["difference"] > 0 else "worse"
        figure["verdict"] = better if p_holm < SIGNIFICANCE else NO_DIFFERENCE
    for entry in found:
        gain, paid = entry["specificity"], entry["sensitivity"]
        bought = paid["high"] < 0 if gain["difference"] > 0 else paid["low"] > 0
        entry["trade"] = gain["verdict"] != NO_DIFFERENCE and bought
    return found


def main_effects(
    axes: Mapping[str, Sequence[Any]], rows: Sequence[Row]
) -> list[dict[str, Any]]:
    """Average over all other axes, level by level.

    Levels are averaged over the same combinations of the other axes and the same
    seeds: a combination counts when every level of the axis is complete in it.

    Args:
        axes: name -> levels.
        rows: of the grid, judged; the first one's level of an axis is what the other
            levels are compared with.

    Returns:
        For each axis with two levels or more: "axis", "combinations" (of the other
        axes that were averaged over), "seeds", "against" (the reference's level), and
        "levels", numbers in order: each {"level", "roc_auc", "specificity"} with
        intervals and "difference": {"roc_auc", "specificity", "sensitivity"} as of
        `difference_over_seeds`, None for the reference's level. No levels where no
        combination is complete.
    """
    by_setting = {frozenset(row.setting.items()): row for row in rows if row.judged}
    axes = {
        axis: sorted(levels) if are_numbers(levels) else list(levels)
        for axis, levels in axes.items()
    }
    effects = []
    for axis, levels in axes.items():
        if len(levels) < 2:
            continue
        # Of each combination of the other axes, the rows of all levels.
        others = [[(k, v) for v in axes[k]] for k in axes if k != axis]
        lines = []
        for fixed in itertools.product(*others):
            keys = [frozenset([*fixed, (axis, level)]) for level in levels]
            if all(key in by_setting for key in keys):
                lines.append([by_setting[key] for key in keys])
        shared = [set(row.seeds) for line in lines for row in line]
        seeds = sorted(set.intersection(*shared)) if shared else []
        against = rows[0].setting[axis]
        means = {
            level: {
                name: _mean_stack([line[i] for line in lines], name, seeds)
                for name in COMPARED
            }
            for i, level in enumerate(levels if seeds else ())
        }
        effects.append(
            {
                "axis": axis,
                "combinations": len(lines) if seeds else 0,
                "seeds": seeds,
                "against": against,
                "levels": [
                    {
                        "level": level,
                        **{n: dict(interval_over_seeds(*mean[n])) for n in TESTED},
                        "difference": None
                        if level == against
                        else {
                            n: dict(difference_over_seeds(*mean[n], *means[against][n]))
                            for n in COMPARED
                        },
                    }
                    for level, mean in means.items()
                ],
            }
        )
    return effects


def _stack(
    row: Row, name: str, seeds: Sequence[int] | None = None
) -> tuple[FloatArray, FloatArray]:
    """Return a figure of each seed, float64 [S], and its replicates, float64 [S, R]."""
    judged = [row.judged[seed] for seed in (row.judged if seeds is None else seeds)]
    return (
        np.asarray([each.values[name] for each in judged]),
        np.stack([each.replicates[name] for each in judged]),
    )


def _mean_stack(
    rows: Sequence[Row], name: str, seeds: Sequence[int]
) -> tuple[FloatArray, FloatArray]:
    """Return the mean of a figure over rows: of each seed, [S], and [S, R]."""
    values, replicates = zip(*(_stack(row, name, seeds) for row in rows), strict=True)
    return np.mean(values, axis=0), np.mean(replicates, axis=0)


def _finite(value: float) -> float | None:
    """Return what JSON can hold: None for NaN and infinity."""
    return value if math.isfinite(value) else None
