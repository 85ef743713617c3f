"""What a study has found so far, as results.json holds it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mela_jax.errors import UserError
from mela_jax.evaluation import study_figures as figures
from mela_jax.evaluation.cross_validation import RATES, judge_folds
from mela_jax.evaluation.measure import Settings, selection_metrics
from mela_jax.evaluation.study_runs import (
    STATES,
    Row,
    Run,
    Scores,
    is_made_up,
    make_rows,
    read_cost,
    read_latency,
)

SELECTIONS = ("roc_auc", "pr_auc", "specificity_at_target")


def study_results(
    runs: Sequence[Run],
    settings: Settings,
    *,
    name: str,
    axes: Mapping[str, Sequence[Any]],
    reference: Mapping[str, Any],
    cells: Sequence[Mapping[str, Any]],
    select_by: str = "roc_auc",
) -> dict[str, Any]:
    """Return all figures of a study.

    Args:
        runs: all of the study, in any state.
        settings: how each run is judged.
        name: of the study.
        axes: config field -> levels; for tuning, whatever describes the range.
        reference: the setting that the others are compared with; not used for tuning.
        cells: all settings of a grid, in order; empty for tuning.
        select_by: for tuning, the one of `SELECTIONS` by which the best is chosen.

    Raises:
        UserError: there is no run; or a complete one's files are missing, damaged or of
            other images than those of the rest.
    """
    if not runs:
        raise UserError(f"{name}: the study has no trial yet; run it first")
    results = {
        "name": name,
        "kind": "grid" if cells else "tuning",
        "axes": {axis: list(levels) for axis, levels in axes.items()},
        "target_sensitivity": settings.target,
        "settings": dataclasses.asdict(settings),
        "made_up_data": any(is_made_up(run) for run in runs if run.state == "complete"),
        "failed": [
            {"trial": run.number}
            | {key: getattr(run, key) for key in ("setting", "seed", "fold", "error")}
            for run in runs
            if run.state == "failed"
        ],
    }
    if not cells:
        return results | _tuning(runs, settings, select_by)
    others = [cell for cell in cells if cell != reference]
    rows = make_rows([reference, *others], runs)
    return results | {"reference": dict(reference)} | _grid(rows, axes, settings)


def _grid(
    rows: Sequence[Row], axes: Mapping[str, Sequence[Any]], settings: Settings
) -> dict[str, Any]:
    """Return the results of a grid; the reference is row 1."""
    scores = Scores()
    planned = {key for row in rows for key in row.runs}
    states = [
        row.runs[key].state if key in row.runs else "waiting"
        for row in rows
        for key in planned
    ]
    rows = [_judge(row, scores, settings) for row in rows]
    variances = figures.seed_variances(rows)
    described = [_describe(row, variances, num_planned=len(planned)) for row in rows]
    return {
        "seeds": sorted({seed for seed, _ in planned}),
        "folds": sorted({fold for _, fold in planned}),
        **_progress(states),
        "rows": described,
        "comparisons": figures.compare_with_reference(rows, variances),
        "comparisons_planned": (len(rows) - 1) * len(figures.TESTED),
        "main_effects": figures.main_effects(axes, rows),
        "fronts": _fronts([row for row in described if row["figures"]]),
        "pooled_thresholds": _pooled(rows, scores, settings),
    }


def _tuning(runs: Sequence[Run], settings: Settings, select_by: str) -> dict[str, Any]:
    """Return the results of a search: all that was tried, the best measured on test."""
    distinct = {frozenset(run.setting.items()): run.setting for run in runs}
    rows = make_rows(list(distinct.values()), runs)
    scores = Scores()
    tried: list[dict[str, Any]] = []
    for row in rows:
        found = [
            selection_metrics(val.label, val.score, target=settings.target)
            for _, run in sorted(row.runs.items())
            if run.state == "complete"
            for val in [scores.read(run).val]
        ]
        tried.append(
            {
                "number": row.number,
                "trials": sorted(run.number for run in row.runs.values()),
                "setting": dict(row.setting),
                "state": max((r.state for r in row.runs.values()), key=STATES.index),
                "complete": bool(row.seeds),
                "val": {n: float(np.mean([f[n] for f in found])) for n in SELECTIONS}
                if found
                else None,
            }
        )
    ready = [row for row in rows if row.seeds]
    chosen = None
    if ready:
        # The first of equals: a tie is not decided by what test would say.
        best = max(ready, key=lambda row: tried[row.number - 1]["val"][select_by])
        best = _judge(best, scores, settings)
        variances = figures.seed_variances([best])
        chosen = _describe(best, variances, num_planned=len(best.runs))
    return {
        "select_by": select_by,
        **_progress([run.state for run in runs]),
        "tried": tried,
        "chosen": chosen,
    }


def _progress(states: Sequence[str]) -> dict[str, Any]:
    counts = {state: states.count(state) for state in STATES}
    finished = counts["waiting"] + counts["running"] == 0
    return {"counts": counts, "planned": len(states), "finished": finished}


def _judge(row: Row, scores: Scores, settings: Settings, *, source: str = "own") -> Row:
    """Judge each complete seed of a row over its folds."""
    judged = {}
    for seed in row.seeds:
        folds = [scores.read(row.runs[seed, fold]) for fold in row.folds]
        judged[seed] = judge_folds(folds, settings, source=source)
    return dataclasses.replace(row, judged=judged)


def _describe(
    row: Row, variances: figures.SeedVariances, *, num_planned: int
) -> dict[str, Any]:
    """Return a row as results.json holds it; without figures where no seed is whole."""
    described: dict[str, Any] = {
        "number": row.number,
        "setting": dict(row.setting),
        "seeds": list(row.seeds),
        "folds": list(row.folds),
        "runs_complete": sum(run.state == "complete" for run in row.runs.values()),
        "runs_planned": num_planned,
        "figures": None,
    }
    if not row.judged:
        return described
    judged = {str(seed): each for seed, each in row.judged.items()}
    complete = [row.runs[seed, fold] for seed in row.seeds for fold in row.folds]
    return described | {
        "figures": figures.row_figures(row, variances),
        "thresholds": {seed: list(each.thresholds) for seed, each in judged.items()},
        "confusion": {s: dataclasses.asdict(j.confusion) for s, j in judged.items()},
        "flags_everyone": any(j.confusion.flags_everyone for j in judged.values()),
        **read_cost(complete),
        "latency": read_latency(complete),
    }


def _pooled(
    rows: Sequence[Row], scores: Scores, settings: Settings
) -> list[dict[str, Any]]:
    """Judge every row anew at thresholds from pooled validation scores, with folds."""
    anew = [
        _judge(row, scores, settings, source="pooled")
        for row in rows
        if row.seeds and len(row.folds) > 1
    ]
    variances = figures.seed_variances(anew)
    pooled = []
    for row in anew:
        found = figures.row_figures(row, variances)
        pooled.append(
            {
                "number": row.number,
                "thresholds": {
                    str(seed): list(each.thresholds)
                    for seed, each in row.judged.items()
                },
                "figures": {name: found[name] for name in RATES},
            }
        )
    return pooled


def _fronts(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the Pareto fronts of high specificity against what a setting costs.

    Latency has none where it was not measured, or on several machines.
    """
    timed = [row["latency"] for row in rows if row["latency"] is not None]
    machines = sorted({machine for each in timed for machine in each["machines"]})
    fronts: dict[str, Any] = {}
    for cost in ("params", "flops", "latency"):
        points = []
        for row in rows:
            value = row[cost]
            if cost == "latency" and value is not None:
                value = value["milliseconds"] if len(machines) == 1 else None
            if value is not None:
                figure = row["figures"]["specificity"]
                interval = {key: figure[key] for key in ("value", "low", "high")}
                points.append(
                    {"number": row["number"], "cost": value, "specificity": interval}
                )
        # On the front is what no other point beats in one and equals in the other.
        loss = [(p["cost"], -p["specificity"]["value"]) for p in points]
        on_front = [
            point["number"]
            for point, (x, y) in zip(points, loss, strict=True)
            if not any(a <= x and b <= y and (a, b) != (x, y) for a, b in loss)
        ]
        fronts[cost] = {"points": points, "on_front": on_front}
    fronts["latency"]["machines"] = machines
    return fronts
