"""What one exported file does on validation and test, and what exporting cost it."""

import bisect
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from export.finished import FinishedRun
from mela_jax.evaluation.measure import evaluate_model, selection_metrics
from mela_jax.evaluation.operating_point import confusion
from mela_jax.evaluation.scores import Predictions
from mela_jax.results import evaluation_settings
from mela_jax.tflite import PhoneModel, to_probability

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


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """What an int8 file may lose on validation against the float model.

    Attributes:
      roc_auc: of ROC-AUC.
      specificity: of specificity at the target sensitivity, as a fraction.
    """

    roc_auc: float
    specificity: float


def float_answers(run: FinishedRun) -> dict[str, Answers]:
    """Return the answers of the Flax network itself, by split."""
    found = {}
    for split in SPLITS:
        logits = run.float_logits(split)
        log_odds = run.classes.log_odds(logits)
        found[split] = Answers(
            log_odds,
            run.predictions(split, log_odds, run.classes.probabilities(logits)),
        )
    return found


def file_answers(run: FinishedRun, content: bytes, split: str) -> Answers:
    """Return the answers of a file for a split, through LiteRT."""
    model = PhoneModel(content, source="export")
    logits, _, probabilities = model.score_classes(run.pixels(split))
    return Answers(logits, run.predictions(split, logits, probabilities))


def disagreement(expected: Answers, found: Answers) -> float:
    """Return the largest difference, of P(class) or of logits by 1 + |logit|."""
    off = np.abs(found.logits - expected.logits) / (1 + np.abs(expected.logits))
    classes = [answers.predictions.classes for answers in (expected, found)]
    if classes[0] is None or classes[1] is None:
        return float(off.max())
    between = np.abs(classes[0].score - classes[1].score)
    return float(max(off.max(), between.max()))


def is_as_measured(
    run: FinishedRun, content: bytes, measured: Mapping[str, Answers], recipe: str
) -> bool:
    """Say whether a file that is to be shipped answers as what was measured."""
    logits, probabilities = PhoneModel(content, source="export").score(
        run.pixels("test")[:8]
    )
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


def logit_threshold(threshold: float, calibration: Mapping[str, Any]) -> float:
    """Return the smallest float32 logit whose probability reaches a threshold.

    A phone that compares its logit with it decides as `predict` does, to the last bit,
    whatever its sigmoid rounds.

    Args:
      threshold: calibrated probability in (0, 1].
      calibration: slope "a" and intercept "b" of `mela_jax.tflite.to_probability`.
    """

    def number(place: int) -> np.ndarray:
        """Return the float32 at a place in the order of them all; 0 is at 0."""
        bits = place if place >= 0 else 0x80000000 - place
        return np.array(bits, np.uint32).view(np.float32).astype(np.float64)

    infinity = int(np.array(np.inf, np.float32).view(np.uint32))
    places = range(-infinity + 1, infinity)
    first = bisect.bisect_left(
        places,
        True,
        key=lambda place: bool(to_probability(number(place), calibration) >= threshold),
    )
    return float(number(places[first]))


def is_within(loss: dict[str, float], tolerance: Tolerance) -> bool:
    """Say whether a file lost no more than it may."""
    return (
        loss["roc_auc"] <= tolerance.roc_auc
        and loss["specificity"] <= tolerance.specificity
    )


def measure(
    run: FinishedRun, float_model: dict[str, Answers], file: dict[str, Answers]
) -> dict[str, Any]:
    """Choose a file's own threshold on validation and measure it beside the float one.

    Scores and the file's own threshold are calibrated probabilities; the float model's
    threshold is on sigmoid(logit), and both models are held against it by that.

    Returns:
      "calibration": that of the float model, which the file applies; {"val", "test"}:
      the figures of `evaluate_model`, and under "against_float" of
      each: logit_max and logit_rmse, the difference of logits; roc_auc, the change of
      it (the file's minus the float model's); at_float_threshold, what the file does
      when the float model's threshold is kept: sensitivity, specificity and flips;
      flips, at its own threshold: the number of images whose decision is another than
      the float model's, and how many of these are melanomas now missed or now found;
      class_flips: the number of images whose most probable class is another, None
      where there is one class.
    """
    figures = evaluate_model(
        file["val"].predictions,
        file["test"].predictions,
        # The scores are calibrated already.
        dataclasses.replace(evaluation_settings(run.config), calibration="none"),
    )
    figures["calibration"] = dataclasses.asdict(run.calibration)
    for split in SPLITS:
        threshold = figures[split]["operating_point"]["threshold"]
        figures[split]["against_float"] = _against(
            float_model[split],
            file[split],
            before=run.flagged(split),
            float_threshold=run.threshold,
            threshold=threshold,
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
    return {
        "logit_max": float(np.abs(difference).max()),
        "logit_rmse": float(np.sqrt(np.mean(difference**2))),
        "roc_auc": float(
            roc_auc_score(label, file.predictions.score)
            - roc_auc_score(label, float_model.predictions.score)
        ),
        "flips": _flips(label, before, file.predictions.score >= threshold),
        "class_flips": _class_flips(float_model.predictions, file.predictions),
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


def _class_flips(before: Predictions, after: Predictions) -> int | None:
    """Count the images whose most probable class changed."""
    if before.classes is None or after.classes is None:
        return None
    return int(np.sum(before.classes.decision != after.classes.decision))
