"""The report of a study: results.json, report.html, report.md and its plots."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mela_jax.atomic import write_atomically
from mela_jax.errors import UserError
from mela_jax.evaluation.cross_validation import RATES, Judged, judge_folds
from mela_jax.evaluation.measure import Settings, selection_metrics
from mela_jax.evaluation.study_figures import (
    JUDGED,
    Luck,
    compare_with_reference,
    main_effects,
    pareto_front,
    row_figures,
    seed_variances,
)
from mela_jax.evaluation.study_runs import (
    Row,
    Scores,
    is_made_up,
    make_rows,
    read_cost,
    read_latency,
    setting_key,
)
from mela_jax.evaluation.study_trial import STATES, Trial
from mela_jax.report.study_grid import describe_grid
from mela_jax.report.study_search import describe_tuning
from mela_jax.report.study_sections import render

SELECTIONS = ("roc_auc", "pr_auc", "specificity_at_target")


def write_study_report(
    workdir: Path,
    *,
    name: str,
    axes: dict[str, tuple[Any, ...]],
    reference: dict[str, Any],
    trials: list[Trial],
    settings: Settings,
    cells: list[dict[str, Any]],
    select_by: str = "roc_auc",
) -> Path:
    """Write what a study has found so far into workdir/report/.

    Args:
        workdir: of the study.
        name: of the study.
        axes: config field -> levels; for tuning, whatever describes the range.
        reference: the setting that the others are compared with; not used for tuning.
        trials: all of the study, in any state.
        settings: how each run is judged.
        cells: all settings of a grid, in order; empty for tuning.
        select_by: for tuning, the validation figure by which the best is chosen, one of
            `SELECTIONS`.

    Returns:
        The path of report.html.

    Raises:
        UserError: there is no trial; a complete trial's files are missing, damaged or
            of other images than those of the rest; or the folder cannot be written to.
        ValueError: `select_by` is none of `SELECTIONS`.
    """
    if select_by not in SELECTIONS:
        raise ValueError(f"select_by {select_by!r} is none of {SELECTIONS}")
    if not trials:
        raise UserError(f"{workdir}: the study has no trial yet; run it first")
    complete = [trial for trial in trials if trial.state == "complete"]
    results: dict[str, Any] = {
        "name": name,
        "kind": "grid" if cells else "tuning",
        "axes": {axis: list(levels) for axis, levels in axes.items()},
        "target_sensitivity": settings.target,
        "settings": dataclasses.asdict(settings),
        "made_up_data": any(is_made_up(trial) for trial in complete),
        "failed": [
            {
                "trial": trial.number,
                "setting": trial.setting,
                "seed": trial.seed,
                "fold": trial.fold,
                "error": trial.error,
            }
            for trial in trials
            if trial.state == "failed"
        ],
    }
    if cells:
        results |= _grid(axes, reference, trials, settings, cells)
    else:
        results |= _tuning(trials, settings, select_by)
    return _write(workdir / "report", results)


def _write(folder: Path, results: Mapping[str, Any]) -> Path:
    # allow_nan=False: NaN is not JSON, and no figure may be one.
    content = json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False)
    describe = describe_grid if results["kind"] == "grid" else describe_tuning
    view = describe(results)
    for name, plot in view.plots.items():
        write_atomically(folder / f"{name}.png", plot.png)
    for suffix in ("md", "html"):
        text = render(view, suffix)
        write_atomically(folder / f"report.{suffix}", text.encode("utf-8"))
    write_atomically(folder / "results.json", (content + "\n").encode("utf-8"))
    return folder / "report.html"


def _grid(
    axes: Mapping[str, Sequence[Any]],
    reference: Mapping[str, Any],
    trials: Sequence[Trial],
    settings: Settings,
    cells: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the results of a grid; the reference is row 1."""
    wanted = setting_key(reference)
    others = [cell for cell in cells if setting_key(cell) != wanted]
    rows = make_rows([reference, *others], trials)
    planned = {key for row in rows for key in row.runs}
    scores = Scores()
    runs = {row.number: _judge(row, scores, settings) for row in rows if row.seeds}
    luck = seed_variances(runs)
    described = [
        _describe(row, runs.get(row.number), luck, num_planned=len(planned))
        for row in rows
    ]
    states = [
        row.runs[key].state if key in row.runs else "waiting"
        for row in rows
        for key in planned
    ]
    return {
        "reference": dict(reference),
        "seeds": sorted({seed for seed, _ in planned}),
        "folds": sorted({fold for _, fold in planned}),
        **_progress(states),
        "rows": described,
        "comparisons": compare_with_reference(rows, runs, rows[0], luck),
        "comparisons_planned": (len(rows) - 1) * len(JUDGED),
        "main_effects": main_effects(axes, rows, runs, rows[0]),
        "fronts": _fronts(described),
        "pooled_thresholds": _pooled(rows, scores, settings),
    }


def _tuning(
    trials: Sequence[Trial], settings: Settings, select_by: str
) -> dict[str, Any]:
    """Return the results of a search: all that was tried, the best measured on test."""
    distinct = {setting_key(trial.setting): trial.setting for trial in trials}
    rows = make_rows(list(distinct.values()), trials)
    scores = Scores()
    tried: list[dict[str, Any]] = []
    for row in rows:
        figures: list[dict[str, float]] = []
        for key in sorted(row.runs):
            if row.runs[key].state == "complete":
                val = scores.read(row.runs[key]).val
                figures.append(
                    selection_metrics(val.label, val.score, target=settings.target)
                )
        state = max((t.state for t in row.runs.values()), key=STATES.index)
        tried.append(
            {
                "number": row.number,
                "trials": sorted(trial.number for trial in row.runs.values()),
                "setting": dict(row.setting),
                "state": state,
                "complete": bool(row.seeds),
                "val": {
                    name: float(np.mean([each[name] for each in figures]))
                    for name in SELECTIONS
                }
                if figures
                else None,
            }
        )
    ready = [row for row in rows if row.seeds]
    chosen = None
    if ready:
        # The first of equals: a tie is not decided by what test would say.
        best = max(ready, key=lambda row: tried[row.number - 1]["val"][select_by])
        judged = _judge(best, scores, settings)
        luck = seed_variances({best.number: judged})
        chosen = _describe(best, judged, luck, num_planned=len(best.runs))
    return {
        "select_by": select_by,
        **_progress([trial.state for trial in trials]),
        "tried": tried,
        "chosen": chosen,
    }


def _progress(states: Sequence[str]) -> dict[str, Any]:
    counts = {state: states.count(state) for state in STATES}
    return {
        "counts": counts,
        "planned": len(states),
        "finished": counts["waiting"] + counts["running"] == 0,
    }


def _judge(
    row: Row, scores: Scores, settings: Settings, *, source: str = "own"
) -> dict[int, Judged]:
    """Judge each complete seed of a row over its folds."""
    return {
        seed: judge_folds(
            [scores.read(row.runs[seed, fold]) for fold in row.folds],
            settings,
            source=source,
        )
        for seed in row.seeds
    }


def _describe(
    row: Row, runs: Mapping[int, Judged] | None, luck: Luck, *, num_planned: int
) -> dict[str, Any]:
    """Return a row as results.json holds it; without figures where no seed is whole."""
    described: dict[str, Any] = {
        "number": row.number,
        "setting": dict(row.setting),
        "seeds": list(row.seeds),
        "folds": list(row.folds),
        "runs_complete": sum(t.state == "complete" for t in row.runs.values()),
        "runs_planned": num_planned,
        "figures": None,
    }
    if not runs:
        return described
    return described | {
        "figures": row_figures(row.number, runs, luck),
        "thresholds": {str(s): list(judged.thresholds) for s, judged in runs.items()},
        "confusion": {
            str(s): dataclasses.asdict(judged.confusion) for s, judged in runs.items()
        },
        "flags_everyone": any(j.confusion.flags_everyone for j in runs.values()),
        **read_cost(row.trials),
        "latency": read_latency(row.trials),
    }


def _pooled(
    rows: Sequence[Row], scores: Scores, settings: Settings
) -> list[dict[str, Any]]:
    """Judge every row anew at thresholds from pooled validation scores, with folds."""
    runs = {
        row.number: _judge(row, scores, settings, source="pooled")
        for row in rows
        if row.seeds and len(row.folds) > 1
    }
    luck = seed_variances(runs)
    return [
        {
            "number": number,
            "thresholds": {str(s): list(j.thresholds) for s, j in of_row.items()},
            "figures": {
                name: figure
                for name, figure in row_figures(number, of_row, luck).items()
                if name in RATES
            },
        }
        for number, of_row in runs.items()
    ]


def _fronts(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the fronts of specificity against what a setting costs.

    Latency has none where it was not measured, or on several machines.
    """
    fronts: dict[str, Any] = {}
    machines: set[str] = set()
    for cost in ("params", "flops", "latency"):
        points = []
        for row in rows:
            if row["figures"] is None or row.get(cost) is None:
                continue
            value = row[cost]
            if cost == "latency":
                machines |= set(value["machines"])
                value = value["milliseconds"]
            points.append(
                {
                    "number": row["number"],
                    "cost": value,
                    "specificity": {
                        k: row["figures"]["specificity"][k]
                        for k in ("value", "low", "high")
                    },
                }
            )
        if cost == "latency" and len(machines) > 1:
            points = []
        front = pareto_front([(p["cost"], p["specificity"]["value"]) for p in points])
        fronts[cost] = {
            "points": points,
            "on_front": [points[i]["number"] for i in front],
        }
    fronts["latency"]["machines"] = sorted(machines)
    return fronts
