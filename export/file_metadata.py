"""What a model file says of itself, so that nobody has to guess its threshold."""

import bisect
from collections.abc import Mapping
from typing import Any

import numpy as np

from export.finished import FinishedRun
from mela_jax import run_record
from mela_jax.labels import LabelSpace
from mela_jax.tflite import (
    ACTIVATION_MAP,
    INPUT,
    LOGIT,
    METADATA_VERSION,
    PROBABILITIES,
    PROBABILITY,
    to_probability,
)

LABELS = ("not_melanoma", "melanoma")
INTENDED_USE = (
    "Research on dermoscopy images like those it was trained on. It flags images whose "
    "P(melanoma) is at or above the threshold, and was never tested on other cameras, "
    "clinics or skin."
)
NOT_A_DIAGNOSIS = (
    "Not a diagnosis and not a medical device. It misses melanomas. Have a spot that "
    "worries you, or that changes, seen by a doctor whatever it says."
)
_CROPS = {
    "center": "the largest centred square, then resized (bilinear, antialiased)",
    "pad": "padded with black to a square, then resized (bilinear, antialiased)",
}


def describe(
    run: FinishedRun,
    figures: Mapping[str, Any],
    *,
    mode: str,
    recipe: str,
    input_dtype: str,
    activation_map: bool,
) -> dict[str, Any]:
    """Return the metadata of one file, a JSON object.

    Args:
      run: where the model comes from.
      figures: of the file itself, from `answers.measure`.
      mode: what was asked for.
      recipe: how it was made.
      input_dtype: "float32" or "uint8".
      activation_map: the file has one.
    """
    size, classes = run.config.image_size, run.classes
    return {
        "version": METADATA_VERSION,
        "model": run.name,
        "network": run.description["model"],
        "mode": mode,
        "recipe": recipe,
        "labels": list(LABELS),
        "classes": list(classes.names),
        "melanoma": classes.melanoma,
        "input": {
            "name": INPUT,
            "shape": [1, size, size, 3],
            "dtype": input_dtype,
            "colour": "RGB",
            "range": [0, 255],
            "normalisation": "none: it is inside the graph",
            "crop": run.config.crop,
            "crop_means": _CROPS[run.config.crop],
        },
        "outputs": outputs(classes, activation_map=activation_map),
        "calibration": {
            "method": run.calibration.method,
            "a": run.calibration.a,
            "b": run.calibration.b,
            "means": run.calibration_means,
        },
        "operating_point": _operating_point(figures),
        "training_data": {
            "name": run.config.data.name,
            "made_up": run.config.data.name == "phantom",
            **run.record["data"],
        },
        "model_fingerprint": run.description["fingerprint"],
        "trained_with_commit": run.record["provenance"]["git_commit"],
        "exported_with_commit": run_record.provenance(run.config)["git_commit"],
        "intended_use": INTENDED_USE,
        "not_a_diagnosis": NOT_A_DIAGNOSIS,
    }


def outputs(classes: LabelSpace, *, activation_map: bool) -> dict[str, str]:
    """Return what each output of a file is, by its name."""
    found = {
        LOGIT: "float32 [1]: log-odds of melanoma",
        PROBABILITY: "float32 [1]: P(melanoma), from 0 to 1: "
        "1 / (1 + exp(-(a * logit + b))) with a and b of 'calibration'",
    }
    explained = "its mean plus a constant is the logit"
    if not classes.is_binary:
        found[LOGIT] += " against all other classes: z_mel - logsumexp(z of the others)"
        found[PROBABILITIES] = (
            f"float32 [1, {classes.num_logits}]: P(class), from 0 to 1, in the order "
            "of 'classes', adding up to 1: 'probability' for number 'melanoma', and "
            "the rest shared out among the others as the network's softmax has it"
        )
        explained = (
            "of melanoma's less the mean of the other classes', each weighted by its "
            "share q among them: the gradient of the logit by the last feature map, "
            "times that map; its mean plus b_mel - sum(q * b) - entropy(q), a number "
            "of the whole image, is the logit"
        )
    if activation_map:
        found[ACTIVATION_MAP] = (
            f"float32 [1, h, w]: class activation map; {explained}, so that a large "
            "value says where the evidence lies"
        )
    return found


def _operating_point(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return the threshold, how it was chosen and what it does, with 95 % intervals."""
    point = figures["val"]["operating_point"]
    return {
        "threshold": point["threshold"],
        "logit_threshold": logit_threshold(point["threshold"], figures["calibration"]),
        "rule": "flag where logit >= logit_threshold, or, the same without rounding, "
        "where probability >= threshold",
        "chosen_on": "val",
        "how": "the highest threshold at which this very file, run by LiteRT, reaches "
        f"a sensitivity of {point['target_sensitivity']} on validation",
        "target_sensitivity": point["target_sensitivity"],
        **{
            split: {
                "images": figures[split]["n"],
                "melanomas": figures[split]["positives"],
                "sensitivity": figures[split]["operating_point"]["sensitivity"],
                "specificity": figures[split]["operating_point"]["specificity"],
            }
            for split in ("val", "test")
        },
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

    def reaches(place: int) -> bool:
        return bool(to_probability(number(place), calibration) >= threshold)

    infinity = int(np.array(np.inf, np.float32).view(np.uint32))
    places = range(-infinity + 1, infinity)
    return float(number(places[bisect.bisect_left(places, True, key=reaches)]))
