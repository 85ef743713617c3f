"""Whether a score of 30 % means 30 %, and the map that makes it so.

The map is `sigmoid(a * logit + b)` with a > 0, fitted on validation. It keeps the order
of all scores, so the operating point, mapped by the same function, decides as before.
"""

import json
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import statsmodels.api as sm
from scipy.special import expit, logit
from statsmodels.tools.sm_exceptions import PerfectSeparationWarning

from mela_jax.atomic import write_text
from mela_jax.errors import UserError
from mela_jax.evaluation.intervals import FloatArray, IntArray, Interval, wilson
from mela_jax.evaluation.scores import Predictions, check_binary

# Scores of exactly 0 and 1 have no logit; they are moved this far inside.
EDGE = 1e-12
NUM_BINS = 15
# Slopes beyond which a fitted map says nothing of the model: below, everybody gets the
# prevalence; above, rounding errors of a nearly constant score are blown up.
SLOPES = (0.01, 100.0)


@dataclass(frozen=True)
class Calibration:
    """The map from a model's logit to a calibrated probability, and its threshold.

    Attributes:
        method: "platt", "temperature", or "none" (a = 1, b = 0).
        a: slope, > 0; one over the temperature.
        b: intercept; 0 for "temperature" and "none".
        threshold: frozen operating point on the model's own score.
        calibrated_threshold: the same point on the calibrated probability.
    """

    method: str
    a: float
    b: float
    threshold: float
    calibrated_threshold: float

    def probability(self, logits: npt.ArrayLike) -> FloatArray:
        """Return the calibrated P(melanoma) float64, of logits of any shape."""
        return expit(self.a * np.asarray(logits, dtype=np.float64) + self.b)


def read_calibration(path: str | os.PathLike[str]) -> Calibration:
    """Read a calibration.json, as it lies beside a model's weights.

    Raises:
        UserError: it is absent or damaged, or a is not above 0.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        method, *numbers = (found[field.name] for field in fields(Calibration))
        calibration = Calibration(str(method), *map(float, numbers))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: is not a calibration.json ({error!r}); repeat the command that "
            "made the report"
        ) from error
    if not (calibration.a > 0 and np.isfinite(astuple(calibration)[1:]).all()):
        raise UserError(f"{path}: a must be above 0 and all numbers finite")
    return calibration


def write_calibration(
    path: str | os.PathLike[str], calibration: Calibration, *, about: dict[str, Any]
) -> None:
    """Write a calibration.json: the map, and what it was fitted on.

    Raises:
        UserError: the file cannot be written.
    """
    content = {
        **asdict(calibration),
        "formula": "P(melanoma) = 1 / (1 + exp(-(a * logit + b)))",
        **about,
    }
    write_text(path, json.dumps(content, indent=2) + "\n")


def to_logit(scores: npt.ArrayLike) -> FloatArray:
    """Return the logits of scores in [0, 1]; 0 and 1 are moved `EDGE` inside."""
    return logit(np.clip(np.asarray(scores, dtype=np.float64), EDGE, 1 - EDGE))


def fit_calibration(
    labels: npt.ArrayLike, scores: npt.ArrayLike, *, method: str, threshold: float
) -> Calibration | str:
    """Fit the map on validation by maximum likelihood.

    "platt" fits a and b (Platt 1999), "temperature" a alone (Guo et al. 2017,
    arXiv:1706.04599). Both with Platt's smoothed targets, (positives + 1) / (positives
    + 2) and 1 / (negatives + 2), which keep the fit finite where the classes are
    perfectly apart. "none" leaves the score as it is. The threshold is mapped along.

    Returns:
        The calibration, or half a sentence that says why there is none: scores that
        are constant or do not rise with melanoma, a fit that does not settle, or a
        slope outside `SLOPES`, as a nearly constant score of an untrained model gets.
    """
    label, score = check_binary(labels, scores)
    if method == "none":
        return Calibration("none", 1.0, 0.0, threshold, threshold)
    if method not in ("platt", "temperature"):
        raise ValueError(f"calibration {method!r}")
    x = to_logit(score)
    positives, negatives = int(label.sum()), int((1 - label).sum())
    target = np.where(
        label == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2)
    )
    if np.ptp(x) == 0:
        return f"the scores of validation are all the same, to {EDGE:g}"
    exog = sm.add_constant(x) if method == "platt" else x[:, None]
    with _fits_quietly():
        fitted = sm.GLM(target, exog, family=sm.families.Binomial()).fit(tol=1e-12)
    a = float(fitted.params[-1])
    b = float(fitted.params[0]) if method == "platt" else 0.0
    if not (fitted.converged and math.isfinite(a) and math.isfinite(b)):
        return "the fit on validation does not settle"
    if a < SLOPES[0]:
        return f"on validation the scores do not rise with melanoma (slope {a:.2g})"
    if a > SLOPES[1]:
        return (
            f"the scores of validation differ so little that the slope would be {a:.2g}"
        )
    mapped = float(expit(a * to_logit([threshold])[0] + b))
    return Calibration(method, a, b, threshold, mapped)


def calibrate(calibration: Calibration, scores: npt.ArrayLike) -> FloatArray:
    """Return calibrated probabilities float64 [N] of scores [N] in [0, 1]."""
    return calibration.probability(to_logit(scores))


def adaptive_bins(scores: FloatArray, *, num_bins: int = NUM_BINS) -> IntArray:
    """Return the bin of each score, int64 [N]: equal counts by rank, ties together.

    The sorted scores are cut as `numpy.array_split` cuts; tied scores go where the
    first of them falls.
    """
    sizes = [len(part) for part in np.array_split(np.arange(scores.size), num_bins)]
    bin_of_rank = np.repeat(np.arange(num_bins), sizes)
    ordered = np.sort(scores)
    return bin_of_rank[np.searchsorted(ordered, scores, side="left")]


def calibration_figures(
    split: Predictions, probabilities: FloatArray
) -> dict[str, Any]:
    """Return how well probabilities [N] in [0, 1] agree with a split's labels.

    Returns:
        "ece": expected calibration error over `NUM_BINS` bins of equal counts, the mean
        over images of the bin's |share of melanomas - mean probability| (Naeini et al.
        2015; adaptive bins of Nixon et al. 2019, arXiv:1904.01685). "brier": mean
        squared error (Brier 1950), and "brier_of_prevalence". "intercept", b of
        sigmoid(logit + b), and "slope", a of sigmoid(a * logit + b'), ideally 0 and 1
        (Cox 1958; Van Calster et al. 2019, doi:10.1186/s12916-019-1466-7), each with a
        Wald interval, by lesion where images repeat one; None where undefined or
        infinite. "bins": for the reliability diagram.
    """
    label = split.label
    of_image = adaptive_bins(probabilities)
    bins: list[dict[str, Any]] = [
        {
            "n": int(held.sum()),
            "mean_probability": float(probabilities[held].mean()),
            "observed": wilson(int(label[held].sum()), int(held.sum())),
        }
        for held in (of_image == number for number in np.unique(of_image))
    ]
    gaps = [b["n"] * abs(b["observed"]["value"] - b["mean_probability"]) for b in bins]
    prevalence = float(label.mean())
    x = to_logit(probabilities)
    groups = np.unique(split.lesion_id, return_inverse=True)[1]
    clustered = groups if split.repeats_lesions else None
    return {
        "ece": float(sum(gaps) / label.size),
        "brier": float(np.mean((probabilities - label) ** 2)),
        "brier_of_prevalence": prevalence * (1 - prevalence),
        "intercept": _coefficient(label, np.ones((label.size, 1)), x, clustered),
        "slope": _coefficient(label, sm.add_constant(x), None, clustered)
        if np.ptp(x) > 0
        else _UNDEFINED,
        "bins": bins,
    }


_UNDEFINED: dict[str, float | None] = {"value": None, "low": None, "high": None}


def _coefficient(
    label: IntArray,
    exog: FloatArray,
    offset: FloatArray | None,
    groups: npt.NDArray[np.integer] | None,
) -> Interval | dict[str, float | None]:
    """Return the last coefficient of a logistic regression with its interval."""
    if groups is not None and groups.max() == 0:
        # One lesion has no variance between lesions.
        return _UNDEFINED
    clustered = {"cov_type": "cluster", "cov_kwds": {"groups": groups}}
    model = sm.GLM(label, exog, family=sm.families.Binomial(), offset=offset)
    with _fits_quietly():
        fitted = model.fit(tol=1e-10, **({} if groups is None else clustered))
        value = float(fitted.params[-1])
        low, high = (float(limit) for limit in fitted.conf_int()[-1])
    # Where the classes are apart the iterations run away, and so does the error.
    known = fitted.converged and np.isfinite([value, low, high]).all()
    if not known or high - low > 1e3:
        return _UNDEFINED
    return {"value": value, "low": low, "high": high}


@contextmanager
def _fits_quietly() -> Iterator[None]:
    """Silence what is answered by looking at the fit: convergence and finite limits."""
    with warnings.catch_warnings():
        # Perfectly separated classes have no finite slope, and two images leave no
        # degree of freedom for standard errors.
        warnings.simplefilter("ignore", PerfectSeparationWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        yield
