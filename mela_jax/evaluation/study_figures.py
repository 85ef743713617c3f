"""The figures of a study: a row per setting, each against the reference, each axis."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from statsmodels.stats.multitest import multipletests

from mela_jax.evaluation.cross_validation import AREAS, FIGURES, Judged
from mela_jax.evaluation.intervals import FloatArray
from mela_jax.evaluation.seeds import (
    SeedVariance,
    difference_over_seeds,
    interval_over_seeds,
    moderate_variances,
    spread_over_seeds,
)
from mela_jax.evaluation.study_runs import Row, are_numbers, setting_key

# What a verdict is given on; the first is primary.
JUDGED = ("roc_auc", "specificity")
SIGNIFICANCE = 0.05
NO_DIFFERENCE = "no difference shown"

# The run of each seed over all folds, by row number.
Runs = Mapping[int, Mapping[int, Judged]]


Luck = Mapping[str, Mapping[int, SeedVariance]]


def seed_variances(runs: Runs) -> dict[str, dict[int, SeedVariance]]:
    """Return the variance of each figure over seeds, those of all rows in view of all.

    Args:
        runs: row number -> seed -> judged run.

    Returns:
        name in `FIGURES` -> row number -> variance. Rows with one seed have none, nor
        have those where the figure is undefined with some seed.
    """
    found = {}
    for name in FIGURES:
        values = {
            n: _stack(of_row, list(of_row), name)[0] for n, of_row in runs.items()
        }
        usable = {
            n: v for n, v in values.items() if len(v) > 1 and np.isfinite(v).all()
        }
        variances = moderate_variances(list(usable.values()))
        found[name] = dict(zip(usable, variances, strict=True))
    return found


def row_figures(number: int, runs: Mapping[int, Judged], luck: Luck) -> dict[str, Any]:
    """Return every figure of one setting: mean over seeds, interval, spread.

    Args:
        number: of the row.
        runs: seed -> judged run, at least one.
        luck: of `seed_variances`.

    Returns:
        name in `FIGURES` -> {value, low, high, by_seed, seed_sd, lesion_sd, freedom};
        value None where undefined; seed_sd None with one seed.
    """
    seeds = list(runs)
    figures = {}
    for name in FIGURES:
        values, replicates = _stack(runs, seeds, name)
        lesions = None
        if name not in AREAS:
            lesions = min(judged.lesions[name] for judged in runs.values())
        known = [luck[name][number]] if number in luck[name] else None
        spread = spread_over_seeds(values, replicates, known)
        figures[name] = {
            **interval_over_seeds(values, replicates, lesions=lesions, luck=known),
            "by_seed": {
                str(seed): _finite(value)
                for seed, value in zip(seeds, values.tolist(), strict=True)
            },
            "seed_sd": spread.seed_sd,
            "lesion_sd": _finite(spread.lesion_sd),
            "freedom": _finite(spread.freedom),
        }
    return figures


def compare_with_reference(
    rows: Sequence[Row], runs: Runs, reference: Row, luck: Luck
) -> list[dict[str, Any]]:
    """Compare every setting with the reference, seed by seed and lesion by lesion.

    p-values of ROC-AUC and specificity are corrected together by Holm 1979
    (doi:10.2307/4615733), over all comparisons that the study plans: those that cannot
    be made yet count as p = 1, so that the correction is never milder than it will be
    once all are made.

    Args:
        rows: of the study, the reference among them.
        runs: row number -> seed -> judged run; rows without a complete seed lack.
        reference: what the others are compared with.
        luck: of `seed_variances`.

    Returns:
        For each other row that shares two seeds with the reference, or one where the
        study has one: "number", "setting", "seeds"; for each of `JUDGED` {difference,
        low, high, p, freedom, p_holm, verdict}; "sensitivity", the same without
        correction or verdict; "trade":
        whether specificity differs at the cost of sensitivity.
    """
    found: list[dict[str, Any]] = []
    num_planned = len({seed for row in rows for seed, _ in row.runs})
    for row in rows:
        seeds = [s for s in reference.seeds if s in row.seeds]
        if row.number == reference.number or len(seeds) < min(2, num_planned):
            continue
        differences = {
            name: difference_over_seeds(
                *_stack(runs[row.number], seeds, name),
                *_stack(runs[reference.number], seeds, name),
                luck=[luck[name][r.number] for r in (row, reference)]
                if len(seeds) > 1
                else None,
            )
            for name in (*JUDGED, "sensitivity")
        }
        found.append(
            {
                "number": row.number,
                "setting": dict(row.setting),
                "seeds": seeds,
                **{name: dict(figure) for name, figure in differences.items()},
            }
        )
    compared = [(entry, name) for entry in found for name in JUDGED]
    planned = (len(rows) - 1) * len(JUDGED)
    p = [entry[name]["p"] for entry, name in compared]
    padded = p + [1.0] * (planned - len(p))
    corrected = multipletests(padded, method="holm")[1] if padded else []
    for (entry, name), p_holm in zip(compared, corrected, strict=False):
        figure = entry[name]
        figure["p_holm"] = float(p_holm)
        better = "better" if figure["difference"] > 0 else "worse"
        figure["verdict"] = better if p_holm < SIGNIFICANCE else NO_DIFFERENCE
    for entry in found:
        entry["trade"] = _is_trade(entry)
    return found


def _is_trade(row: Mapping[str, Any]) -> bool:
    """Tell whether specificity was won or lost against sensitivity."""
    gain, paid = row["specificity"], row["sensitivity"]
    if gain["verdict"] == NO_DIFFERENCE:
        return False
    return paid["high"] < 0 if gain["difference"] > 0 else paid["low"] > 0


def main_effects(
    axes: Mapping[str, Sequence[Any]],
    rows: Sequence[Row],
    runs: Runs,
    reference: Row,
) -> list[dict[str, Any]]:
    """Average over all other axes, level by level.

    Levels are averaged over the same combinations of the other axes and the same
    seeds: a combination counts when every level of the axis is complete in it.

    Args:
        axes: name -> levels.
        rows: of the grid.
        runs: row number -> seed -> judged run.
        reference: its level of an axis is what the other levels are compared with.

    Returns:
        For each axis with two levels or more: "axis", "combinations" (of the other
        axes that were averaged over), "seeds", "against" (the reference's level), and
        "levels", numbers in order: each {"level", "roc_auc", "specificity"} with
        intervals and "difference": {"roc_auc", "specificity", "sensitivity"} as of
        `difference_over_seeds`, None for the reference's level. No levels where no
        combination is complete.
    """
    by_key = {setting_key(row.setting): row for row in rows if row.seeds}
    ordered = {
        axis: sorted(levels) if are_numbers(levels) else list(levels)
        for axis, levels in axes.items()
    }
    effects = []
    for axis, levels in ordered.items():
        if len(levels) < 2:
            continue
        lines = _complete_lines(axis, ordered, by_key)
        seeds = sorted(
            set.intersection(*(set(row.seeds) for line in lines for row in line))
            if lines
            else ()
        )
        effect: dict[str, Any] = {
            "axis": axis,
            "combinations": len(lines) if seeds else 0,
            "seeds": seeds,
            "against": reference.setting[axis],
            "levels": [],
        }
        means = [
            {
                name: _mean_stack([runs[line[i].number] for line in lines], seeds, name)
                for name in (*JUDGED, "sensitivity")
            }
            for i in range(len(levels) if seeds else 0)
        ]
        for level, of_level in zip(levels, means, strict=False):
            effect["levels"].append(
                {
                    "level": level,
                    **{n: dict(interval_over_seeds(*of_level[n])) for n in JUDGED},
                    "difference": None
                    if level == effect["against"]
                    else {
                        n: dict(difference_over_seeds(*of_level[n], *base))
                        for n, base in means[levels.index(effect["against"])].items()
                    },
                }
            )
        effects.append(effect)
    return effects


def _complete_lines(
    axis: str, axes: Mapping[str, Sequence[Any]], by_key: Mapping[str, Row]
) -> list[list[Row]]:
    """Return, for each combination of the other axes, the rows of all levels.

    A combination that lacks a level is left out.
    """
    others = {name: levels for name, levels in axes.items() if name != axis}
    lines = []
    for values in itertools.product(*others.values()):
        fixed = dict(zip(others, values, strict=True))
        keys = [setting_key({**fixed, axis: level}) for level in axes[axis]]
        if all(key in by_key for key in keys):
            lines.append([by_key[key] for key in keys])
    return lines


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return which points are on the front of small cost and high gain.

    A point is on it when no other costs no more and gains no less, and is better in one
    of the two.

    >>> pareto_front([(1.0, 0.5), (2.0, 0.6), (2.0, 0.4), (3.0, 0.6)])
    [0, 1]

    Args:
        points: (cost, gain) of each.
    """
    return [
        i
        for i, (cost, gain) in enumerate(points)
        if not any(
            c <= cost and g >= gain and (c < cost or g > gain) for c, g in points
        )
    ]


def _stack(
    runs: Mapping[int, Judged], seeds: Sequence[int], name: str
) -> tuple[FloatArray, FloatArray]:
    """Return a figure of each seed, [S], and its replicates, [S, R]."""
    return (
        np.asarray([runs[seed].values[name] for seed in seeds]),
        np.stack([runs[seed].replicates[name] for seed in seeds]),
    )


def _mean_stack(
    settings: Sequence[Mapping[int, Judged]], seeds: Sequence[int], name: str
) -> tuple[FloatArray, FloatArray]:
    """Return the mean of a figure over settings: of each seed, [S], and [S, R]."""
    stacks = [_stack(runs, seeds, name) for runs in settings]
    return (
        np.mean([values for values, _ in stacks], axis=0),
        np.mean([replicates for _, replicates in stacks], axis=0),
    )


def _finite(value: float) -> float | None:
    """Return what JSON can hold: None for NaN and infinity."""
    return value if math.isfinite(value) else None
