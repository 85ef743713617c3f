"""The report of one model's scores, or of several: metrics.json and report.html."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mela_jax.atomic import write_text
from mela_jax.errors import UserError
from mela_jax.evaluation.compare import compare
from mela_jax.evaluation.measure import Settings
from mela_jax.evaluation.scores import Predictions
from mela_jax.report.gallery import draw_figures
from mela_jax.report.page import render
from mela_jax.report.thumbnails import MAX_ALARMS, thumbnails
from mela_jax.report.wording import find_leader


def find_comparisons(models: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return what is compared on the test set: name -> (a, b), read as a minus b.

    >>> list(find_comparisons({"teacher": 0, "teacher_2": 0, "student": 0}))
    ['student_minus_teacher', 'student_minus_teacher_2']
    """
    teachers = [name for name in models if name.startswith("teacher")]
    pairs = [
        ("student", "baseline"),
        *(("student", teacher) for teacher in teachers),
        ("model", "other"),
    ]
    return {f"{a}_minus_{b}": (a, b) for a, b in pairs if a in models and b in models}


def write_report(
    directory: str | os.PathLike[str],
    *,
    models: Mapping[str, Mapping[str, Any]],
    predictions: Mapping[str, Mapping[str, Predictions]],
    settings: Settings,
    made_up: bool = False,
    histories: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    run: Mapping[str, str] | None = None,
    about: Mapping[str, str] | None = None,
    images: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write report.html and metrics.json.

    Args:
        directory: where to; created where it is missing.
        models: name -> figures of `evaluate_model`, and "name", "params" and "flops"
            where known; in the order of the report, which is about "student", or about
            the first where there is none.
        predictions: model -> "val" and "test" -> scores.
        settings: how the models were judged.
        made_up: the lesions are made up; said in the report and on every plot.
        histories: model -> one row per epoch, see `plots_training.draw_training`.
        run: what was run, name -> text, shown as a table.
        about: key of `checklist.ABOUT` -> text, for model card and checklist.
        images: image_id -> file, for the contact sheet.

    Returns:
        What metrics.json holds.

    Raises:
        UserError: there is no model, two were scored on different images, or the
            folder cannot be written to.
    """
    if not models:
        raise UserError("there is no model to report on; evaluate one first")
    metrics = {
        "models": dict(models),
        "comparisons": {
            name: compare(
                predictions[a]["test"],
                predictions[b]["test"],
                settings,
                threshold_a=_threshold(models[a]),
                threshold_b=_threshold(models[b]),
                names=(a, b),
            )
            for name, (a, b) in find_comparisons(models).items()
        },
        "made_up_data": made_up,
        "target_sensitivity": settings.target,
        "settings": dataclasses.asdict(settings),
        "run": dict(run or {}),
    }
    test = models[find_leader(models)]["test"]
    page = render(
        metrics,
        plots=draw_figures(
            models, predictions, histories or {}, settings.target, made_up=made_up
        ),
        missed=thumbnails(test["missed"], images or {}),
        alarms=thumbnails(test["false_alarms"][:MAX_ALARMS], images or {}),
        about=about or {},
    )
    folder = Path(directory)
    # allow_nan=False: NaN is not JSON, and no figure may be one.
    content = json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(folder / "report.html", page)
    write_text(folder / "metrics.json", content + "\n")
    return metrics


def _threshold(model: Mapping[str, Any]) -> float:
    """Return the model's frozen threshold."""
    return float(model["test"]["operating_point"]["threshold"])
