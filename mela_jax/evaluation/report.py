"""Evaluate models at one frozen operating point and write the report of it."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score, roc_auc_score

from mela_jax.atomic import write_atomically
from mela_jax.errors import UserError
from mela_jax.evaluation import plots
from mela_jax.evaluation.intervals import (
    PairedDifferences,
    clustered_bootstrap,
    paired_difference,
    wilson,
)
from mela_jax.evaluation.markdown import model_label, report_text
from mela_jax.evaluation.operating_point import choose_threshold, confusion
from mela_jax.evaluation.scores import (
    Predictions,
    check_binary,
    require_both_classes,
)

# Model -> colour, line style, marker in the plots; also the order in the report.
_STYLES = {
    "teacher": (plots.BLUE, "--", "s"),
    "student": (plots.VERMILION, "-", "o"),
    "baseline": (plots.GREEN, "-.", "^"),
}

# What is compared on the test set: name in metrics.json -> (a, b), read as a minus b.
COMPARISONS = {
    "student_minus_baseline": ("student", "baseline"),
    "student_minus_teacher": ("student", "teacher"),
}


def selection_metrics(
    labels: npt.ArrayLike, scores: npt.ArrayLike, *, target: float
) -> dict[str, float]:
    """Return the validation figures by which the best checkpoint is chosen.

    Args:
        labels: [N] of 0 and 1, both present.
        scores: [N] in [0, 1].
        target: wanted sensitivity, in (0, 1].

    Returns:
        "roc_auc"; "pr_auc" (average precision); "specificity_at_target": specificity
        at the highest threshold whose sensitivity on these same data reaches the
        target.

    Raises:
        UserError: one class only, or unfit labels, scores or target.
    """
    label, score = check_binary(labels, scores)
    require_both_classes(label, "validation")
    counts = confusion(label, score, choose_threshold(label, score, target=target))
    return {
        "roc_auc": float(roc_auc_score(label, score)),
        "pr_auc": float(average_precision_score(label, score)),
        "specificity_at_target": counts.tn / (counts.tn + counts.fp),
    }


def evaluate_model(
    val: Predictions,
    test: Predictions,
    *,
    target: float,
    num_bootstrap: int,
    seed: int,
) -> dict[str, Any]:
    """Choose the threshold on validation, freeze it, and measure both splits with it.

    Args:
        val: scores on validation.
        test: scores on the test set.
        target: wanted sensitivity, in (0, 1].
        num_bootstrap: replicates behind the intervals of ROC-AUC and PR-AUC.
        seed: of the bootstrap.

    Returns:
        {"val": figures, "test": figures}. Figures are n, positives, roc_auc, pr_auc
        (average precision) and operating_point; every rate is {value, low, high} with
        a 95 % interval, its value None where it is undefined (nobody flagged: PPV).
        operating_point.flags_everyone says that no image of the split is let pass.

    Raises:
        UserError: a split with one class only, an image or a lesion in both splits, or
            an unfit target.
    """
    require_both_classes(val.label, "val")
    require_both_classes(test.label, "test")
    _refuse_leak(val, test)
    threshold = choose_threshold(val.label, val.score, target=target)
    return {
        name: _measure(
            split,
            threshold=threshold,
            target=target,
            num_bootstrap=num_bootstrap,
            seed=seed,
        )
        for name, split in (("val", val), ("test", test))
    }


def compare_models(
    models: Mapping[str, Mapping[str, Any]],
    predictions: Mapping[str, Mapping[str, Predictions]],
    *,
    num_bootstrap: int,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Compare, on the test set, the student with the baseline and with the teacher.

    Args:
        models: model -> its figures from `evaluate_model`.
        predictions: model -> split -> scores.
        num_bootstrap: replicates behind each interval.
        seed: of the bootstrap.

    Returns:
        A comparison of `COMPARISONS` for each pair that is there: {"split": "test",
        "roc_auc", "specificity", "sensitivity"}, each {difference, low, high,
        replicates}, the two rates at each model's own frozen threshold.

    Raises:
        UserError: two models were not scored on the same images.
    """
    compared: dict[str, dict[str, Any]] = {}
    for name, (a, b) in COMPARISONS.items():
        if a in models and b in models:
            test_a = predictions[a]["test"]
            differences: PairedDifferences = paired_difference(
                test_a.label,
                test_a.lesion_id,
                test_a.score,
                _in_order_of(test_a, predictions[b]["test"], a, b),
                threshold_a=_threshold(models[a]),
                threshold_b=_threshold(models[b]),
                num_bootstrap=num_bootstrap,
                seed=seed,
            )
            compared[name] = {"split": "test", **differences}
    return compared


def write_report(
    directory: str | os.PathLike[str],
    *,
    models: Mapping[str, Mapping[str, Any]],
    predictions: Mapping[str, Mapping[str, Predictions]],
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    target: float,
    made_up: bool,
    run: Mapping[str, str],
    num_bootstrap: int,
    seed: int,
) -> dict[str, Any]:
    """Write metrics.json, report.md and its plots.

    Each file appears whole or not at all; metrics.json is written last, so that its
    presence means that the report is complete.

    Args:
        directory: where to write; created where it is missing.
        models: "teacher", "student", "baseline", those that were run -> {"name":
            architecture, "params": int, "flops": int, "val", "test"}, the last two
            from `evaluate_model`.
        predictions: model -> "val" and "test" -> scores.
        histories: model -> one row per epoch, see `plots.draw_training`.
        target: sensitivity that was aimed at.
        made_up: the lesions are made up; said in the report and on every plot.
        run: what was run, name -> text, shown as a table.
        num_bootstrap: replicates behind the paired comparisons.
        seed: of the bootstrap.

    Returns:
        What metrics.json holds.

    Raises:
        UserError: there is no model, two were scored on different images, or the
            folder cannot be written to.
        ValueError: a model of another name.
    """
    unknown = set(models) - set(_STYLES)
    if unknown:
        raise ValueError(f"models {sorted(unknown)}; known are {list(_STYLES)}")
    if not models:
        raise UserError("there is no model to report on; evaluate one first")
    models = {name: models[name] for name in _STYLES if name in models}
    metrics = {
        "models": models,
        "comparisons": compare_models(
            models, predictions, num_bootstrap=num_bootstrap, seed=seed
        ),
        "made_up_data": made_up,
        "target_sensitivity": target,
        "run": dict(run),
    }
    figures = _draw(models, predictions, histories, target=target, made_up=made_up)
    text = report_text(
        metrics,
        num_lesions={
            name: len(set(predictions[name]["test"].lesion_id)) for name in models
        },
        plot_names=list(figures),
        num_bootstrap=num_bootstrap,
    )
    folder = Path(directory)
    for name, figure in figures.items():
        write_atomically(folder / f"{name}.png", plots.png_bytes(figure))
    write_atomically(folder / "report.md", text.encode("utf-8"))
    # allow_nan=False: NaN is not JSON, and no figure may be one.
    content = json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(folder / "metrics.json", (content + "\n").encode("utf-8"))
    return metrics


def _measure(
    split: Predictions,
    *,
    threshold: float,
    target: float,
    num_bootstrap: int,
    seed: int,
) -> dict[str, Any]:
    """Return the figures of one split at a threshold that is already chosen."""
    areas = clustered_bootstrap(
        split.label,
        split.lesion_id,
        split.score,
        num_bootstrap=num_bootstrap,
        seed=seed,
    )
    counts = confusion(split.label, split.score, threshold)
    return {
        "n": int(split.label.size),
        "positives": int(split.label.sum()),
        "roc_auc": areas["roc_auc"],
        "pr_auc": areas["pr_auc"],
        "operating_point": {
            "target_sensitivity": target,
            "threshold": threshold,
            "chosen_on": "val",
            "sensitivity": wilson(counts.tp, counts.tp + counts.fn),
            "specificity": wilson(counts.tn, counts.tn + counts.fp),
            "ppv": wilson(counts.tp, counts.tp + counts.fp),
            "npv": wilson(counts.tn, counts.tn + counts.fn),
            "confusion": asdict(counts),
            "flags_everyone": counts.flags_everyone,
        },
    }


def _refuse_leak(val: Predictions, test: Predictions) -> None:
    """Refuse a test set that shares an image or a lesion with validation."""
    for what, shared in (
        ("image", set(val.image_id) & set(test.image_id)),
        ("lesion", set(val.lesion_id) & set(test.lesion_id)),
    ):
        if shared:
            raise UserError(
                f"val and test share {len(shared)} {what}(s), for example "
                f"{min(shared)}; split by lesion so that they share none"
            )


def _threshold(model: Mapping[str, Any]) -> float:
    """Return the model's frozen threshold."""
    return float(model["test"]["operating_point"]["threshold"])


def _in_order_of(
    first: Predictions, second: Predictions, name_first: str, name_second: str
) -> npt.NDArray[np.float64]:
    """Return the scores of `second` in the image order of `first`."""
    row = {image_id: i for i, image_id in enumerate(second.image_id)}
    if set(row) != set(first.image_id):
        difference = len(set(row) ^ set(first.image_id))
        raise UserError(
            f"test predictions of {name_first} and {name_second} differ in "
            f"{difference} image(s); score both models on the same images"
        )
    order = np.asarray([row[image_id] for image_id in first.image_id])
    wrong = np.flatnonzero(second.label[order] != first.label)
    if wrong.size:
        raise UserError(
            f"test predictions of {name_first} and {name_second} disagree on the label "
            f"of {first.image_id[int(wrong[0])]}; score both on the same data"
        )
    return second.score[order]


def _draw(
    models: Mapping[str, Mapping[str, Any]],
    predictions: Mapping[str, Mapping[str, Predictions]],
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    target: float,
    made_up: bool,
) -> dict[str, plots.Figure]:
    """Return the figures by file name, in the order of the report."""
    prefix = "MADE-UP LESIONS: " if made_up else ""
    labels = {name: model_label(name, models) for name in models}
    curves = [
        plots.Curve(
            labels[name],
            *_STYLES[name],
            test=predictions[name]["test"],
            threshold=_threshold(model),
        )
        for name, model in models.items()
    ]
    figures = {
        "roc": plots.draw_roc(
            curves,
            [model["test"]["roc_auc"] for model in models.values()],
            target=target,
            title=f"{prefix}ROC on the test set",
        ),
        "precision_recall": plots.draw_precision_recall(
            curves,
            [model["test"]["pr_auc"] for model in models.values()],
            target=target,
            title=f"{prefix}Precision and recall on the test set",
        ),
        "threshold": plots.draw_threshold(
            curves,
            target=target,
            title=f"{prefix}What each threshold would do on the test set",
        ),
        "scores": plots.draw_score_histograms(
            curves, title=f"{prefix}Scores by class on the test set"
        ),
    }
    training = plots.draw_training(
        {labels[name]: histories[name] for name in models if name in histories},
        title=f"{prefix}Training",
    )
    if training is not None:
        figures["training"] = training
    return figures
