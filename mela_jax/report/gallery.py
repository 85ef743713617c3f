"""Which plots a report has, and how each model looks in them."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from mela_jax.evaluation.scores import Predictions
from mela_jax.report import plots
from mela_jax.report.page import Plot
from mela_jax.report.plots_clinical import (
    draw_confusion,
    draw_decision_curve,
    draw_reliability,
    draw_subgroups,
)
from mela_jax.report.plots_training import draw_training
from mela_jax.report.wording import find_class_models, find_leader, model_label

# Colour, line style, marker: of models that every run may have, and of others in turn.
_KNOWN: dict[str, plots.Style] = {
    "teacher": (plots.BLUE, "--", "s"),
    "student": (plots.VERMILION, "-", "o"),
    "baseline": (plots.GREEN, "-.", "^"),
    "model": (plots.VERMILION, "-", "o"),
    "other": (plots.BLUE, "--", "s"),
}
_OTHERS: tuple[plots.Style, ...] = (
    (plots.PURPLE, ":", "D"),
    (plots.ORANGE, (0, (6, 1)), "v"),
    (plots.SKY, (0, (3, 1, 1, 1)), "P"),
    (plots.BLACK, (0, (1, 2)), "X"),
)

_CAPTIONS = {
    "roc": "Markers: operating points with 95 % intervals. Up and left is better.",
    "precision_recall": "The dashed line is what guessing would give; it, like the "
    "whole plot, moves with the prevalence.",
    "threshold": "What other thresholds would have done on the test set. The dotted "
    "line is the frozen threshold; it was chosen on validation, not here.",
    "scores": "Each class is drawn as shares of its own images, so that the rarer one "
    "shows.",
    "reliability": "On the diagonal a probability means what it says. Wilson intervals "
    "by image.",
    "decision_curve": "Net benefit of the calibrated probability: melanomas found per "
    "person, less false alarms at the odds of the threshold. A model is of use where "
    "its curve lies above both examining everybody and examining nobody.",
    "confusion": "Images of each true diagnosis (rows) by the model's answer "
    "(columns). Right answers lie on the diagonal.",
    "subgroups": "Dashed: whole test set. Dotted: the target. Hollow: fewer than 10.",
    "training": "Loss and validation figures by epoch. Losses of different models are "
    "different functions and cannot be compared with each other.",
}  # fmt: skip


def model_styles(names: Sequence[str]) -> dict[str, plots.Style]:
    """Return the colour, line style and marker of each model.

    >>> model_styles(["teacher", "teacher_2", "student"])["teacher_2"][0]
    '#CC79A7'
    """
    others = itertools.cycle(_OTHERS)
    return {n: _KNOWN[n] if n in _KNOWN else next(others) for n in names}


def draw_figures(
    models: Mapping[str, Mapping[str, Any]],
    predictions: Mapping[str, Mapping[str, Predictions]],
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    target: float,
    *,
    made_up: bool,
) -> dict[str, Plot]:
    """Draw the plots of a report.

    Args:
        models: as `report.write_report` has them.
        predictions: likewise.
        histories: likewise.
        target: wanted sensitivity.
        made_up: the lesions are made up; said in every title.

    Returns:
        Name -> plot, in the order of the report.
    """
    prefix = "MADE-UP LESIONS: " if made_up else ""
    leader = find_leader(models)
    labels = {name: model_label(name, models) for name in models}
    styles = model_styles(list(models))
    # The leader last: its curve lies on top, and the band is its own.
    names = [*(name for name in models if name != leader), leader]
    curves = [
        plots.Curve(
            labels[name],
            *styles[name],
            test=predictions[name]["test"],
            threshold=models[name]["test"]["operating_point"]["threshold"],
        )
        for name in names
    ]
    test = models[leader]["test"]
    figures: dict[str, Plot] = {}

    def add(name: str, title: str, figure: plots.Figure) -> None:
        figures[name] = Plot(title, _CAPTIONS[name], plots.png_bytes(figure))

    title = "ROC curves"
    add(
        "roc",
        title,
        plots.draw_roc(
            curves,
            [models[name]["test"]["roc_auc"] for name in names],
            band=test["roc_band"],
            target=target,
            title=prefix + title,
        ),
    )
    title = "Precision and recall"
    add(
        "precision_recall",
        title,
        plots.draw_precision_recall(
            curves,
            [models[name]["test"]["pr_auc"] for name in names],
            target=target,
            title=prefix + title,
        ),
    )
    title = "What each threshold would do"
    add(
        "threshold",
        title,
        plots.draw_threshold(curves, target=target, title=prefix + title),
    )
    title = "Scores by class"
    add("scores", title, plots.draw_score_histograms(curves, title=prefix + title))
    title = "Reliability"
    add(
        "reliability",
        title,
        draw_reliability(test["calibration"], title=prefix + title),
    )
    if test["decision_curve"] is not None:
        title = "Decision curve"
        add(
            "decision_curve",
            title,
            draw_decision_curve(test["decision_curve"], title=prefix + title),
        )
    scored_classes = find_class_models(models)
    if scored_classes:
        title = "Confusion of diagnoses"
        multiclass = models[scored_classes[0]]["test"]["multiclass"]
        add("confusion", title, draw_confusion(multiclass, title=prefix + title))
    if test["subgroups"]:
        title = "Sensitivity and specificity by group"
        add(
            "subgroups",
            title,
            draw_subgroups(
                test["subgroups"],
                test["operating_point"],
                target=target,
                title=prefix + title,
            ),
        )
    title = "Training"
    training = draw_training(
        {labels[name]: histories[name] for name in models if name in histories},
        title=prefix + title,
    )
    if training is not None:
        add("training", title, training)
    return figures
