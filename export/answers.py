"""What an exported file answers on validation and test, and what exporting cost it."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from export.finished import FinishedRun
from mela_jax import parallel
from mela_jax.evaluation.measure import evaluate_model, selection_metrics
from mela_jax.evaluation.operating_point import confusion
from mela_jax.evaluation.scores import Predictions
from mela_jax.plan import Context
from mela_jax.results import evaluation_settings
from mela_jax.saved_models import make_scorer
from mela_jax.tflite import PhoneModel
from mela_jax.train import score

SPLITS = ("val", "test")


@dataclasses.dataclass(frozen=True)
class Answers:
    """A model's answers on one split, in the order of its rows.

    Attributes:
      logits: float64[n], log-odds of melanoma.
      predictions: calibrated P(melanoma), and P(class) where there are several
        classes, with ids and labels.
    """

    logits: np.ndarray
    predictions: Predictions


def float_answers(run: FinishedRun) -> dict[str, Answers]:
    """Return the answers of the Flax network itself, by split."""
    mesh = parallel.make_mesh()
    eval_step = make_scorer(run.network, mesh)
    variables = parallel.replicate(mesh, run.variables)
    # Scoring writes nothing, and so needs neither a workdir nor records.
    context = Context(run.config, Path(), (), run.images, mesh)
    found = {}
    for split in SPLITS:
        logits = score(eval_step, variables, context, split).astype(np.float64)
        log_odds = run.classes.log_odds(logits)
        probabilities = run.classes.probabilities(logits)
        found[split] = Answers(
            log_odds, run.predictions(split, log_odds, probabilities)
        )
    return found


def file_answers(run: FinishedRun, content: bytes, split: str) -> Answers:
    """Return the answers of a file for a split, through LiteRT."""
    model = PhoneModel(content, source="export")
    logits, _, probabilities = model.score(run.pixels(split))
    return Answers(logits, run.predictions(split, logits, probabilities))


def disagreement(expected: Answers, found: Answers) -> float:
    """Return the largest difference, of P(class) or of logits by 1 + |logit|."""
    off = np.abs(found.logits - expected.logits) / (1 + np.abs(expected.logits))
    before, after = expected.predictions.classes, found.predictions.classes
    between = np.abs(before.score - after.score) if before and after else np.zeros(1)
    return float(np.maximum(off.max(), between.max()))


def is_as_measured(
    run: FinishedRun, content: bytes, measured: Mapping[str, Answers], recipe: str
) -> bool:
    """Say whether a file that is to be shipped answers as what was measured."""
    model = PhoneModel(content, source="export")
    logits, probabilities, _ = model.score(run.pixels("test")[:8])
    expected = measured["test"]
    difference = np.abs(probabilities - expected.predictions.score[:8]).max()
    # Of slope and intercept, which a float16 file has in half precision.
    rounding = 2.0**-10 if recipe == "float16" else 2.0**-22
    a, b = run.calibration.a, run.calibration.b
    allowed = 1e-5 + rounding * (a * np.abs(logits).max() + abs(b))
    return list(logits) == list(expected.logits[:8]) and difference <= allowed


def loss_on_validation(
    run: FinishedRun, float_model: Answers, file: Answers
) -> dict[str, float]:
    """Return what a file lost on validation; negative where it gained.

    Returns:
      "roc_auc", and "specificity": at the threshold that each chose for itself to
      reach the target sensitivity.
    """
    before, after = (
        selection_metrics(
            answers.predictions.label,
            answers.predictions.score,
            target=run.config.target_sensitivity,
        )
        for answers in (float_model, file)
    )
    return {
        "roc_auc": before["roc_auc"] - after["roc_auc"],
        "specificity": before["specificity_at_target"] - after["specificity_at_target"],
    }


def measure(
    run: FinishedRun, float_model: dict[str, Answers], file: dict[str, Answers]
) -> dict[str, Any]:
    """Choose a file's own threshold on validation and compare it with the float model.

    Scores and the file's own threshold are calibrated probabilities; the float model's
    threshold is on sigmoid(logit), and both models are held against it by that.

    Returns:
      "calibration": that of the float model, which the file applies; "val" and "test":
      the figures of `evaluate_model`, and in each "against_float":
      logit_max and logit_rmse: differences of the logits;
      roc_auc: the file's minus the float model's;
      flips: images with another decision, each model at its own threshold;
      class_flips: images whose most probable class is another, None with one class;
      at_float_threshold: what the file does when the float model's threshold is kept.
    """
    figures = evaluate_model(
        file["val"].predictions,
        file["test"].predictions,
        # The scores are calibrated already.
        dataclasses.replace(evaluation_settings(run.config), calibration="none"),
    )
    figures["calibration"] = dataclasses.asdict(run.calibration)
    for split in SPLITS:
        figures[split]["against_float"] = _against(
            float_model[split],
            file[split],
            # As the run's report counted: a network run again on another machine has
            # other last digits, and they decide of the lesion at the threshold.
            before=run.reported[split].score >= run.threshold,
            float_threshold=run.threshold,
            threshold=figures[split]["operating_point"]["threshold"],
        )
    return figures


def _against(
    float_model: Answers,
    file: Answers,
    *,
    before: np.ndarray,
    float_threshold: float,
    threshold: float,
) -> dict[str, Any]:
    label = file.predictions.label
    difference = file.logits - float_model.logits
    uncalibrated = expit(file.logits)
    kept = confusion(label, uncalibrated, float_threshold)
    classes, after = float_model.predictions.classes, file.predictions.classes
    class_flips = None
    if classes and after:
        class_flips = int(np.sum(classes.decision != after.decision))
    return {
        "logit_max": float(np.abs(difference).max()),
        "logit_rmse": float(np.sqrt(np.mean(difference**2))),
        "roc_auc": float(
            roc_auc_score(label, file.predictions.score)
            - roc_auc_score(label, float_model.predictions.score)
        ),
        "flips": _flips(label, before, file.predictions.score >= threshold),
        "class_flips": class_flips,
        "at_float_threshold": {
            "threshold": float_threshold,
            "sensitivity": kept.tp / (kept.tp + kept.fn),
            "specificity": kept.tn / (kept.tn + kept.fp),
            "flips": _flips(label, before, uncalibrated >= float_threshold),
        },
    }


def _flips(label: np.ndarray, before: np.ndarray, after: np.ndarray) -> dict[str, int]:
    """Count the decisions that changed."""
    melanoma = label == 1
    return {
        "all": int(np.sum(before != after)),
        "melanomas_now_missed": int(np.sum(melanoma & before & ~after)),
        "melanomas_now_flagged": int(np.sum(melanoma & ~before & after)),
        "others_now_flagged": int(np.sum(~melanoma & ~before & after)),
        "others_now_let_pass": int(np.sum(~melanoma & before & ~after)),
    }
