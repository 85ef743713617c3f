"""Proportions of a test set with intervals by lesion, all from one bootstrap.

A rate is asked for before the bootstrap and read after it:

    rates = Rates(test)
    sensitivity = rates.ask(flagged, among=melanoma)
    drawn = bootstrap(..., columns=rates.columns)
    rates.interval(sensitivity, drawn)
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mela_jax.evaluation.bootstrap import Resampled, percentile_interval
from mela_jax.evaluation.intervals import FloatArray, Interval, wilson
from mela_jax.evaluation.scores import Predictions

BoolArray = npt.NDArray[np.bool_]
PER = 1000
FEW_LESIONS = 10


class Rates:
    """Rates that one bootstrap is to give intervals for."""

    def __init__(self, split: Predictions):
        self._lesions = np.unique(split.lesion_id, return_inverse=True)[1]
        self._columns: list[FloatArray] = []
        self._counts: list[tuple[int, int, int]] = []

    def ask(self, hit: BoolArray, *, among: BoolArray) -> int:
        """Ask for the share of hits among some images; returns the rate's number.

        Args:
            hit: [N].
            among: [N], the images that count.
        """
        self._columns += [(hit & among).astype(np.float64), among.astype(np.float64)]
        lesions = len(np.unique(self._lesions[among]))
        self._counts.append((int((hit & among).sum()), int(among.sum()), lesions))
        return len(self._counts) - 1

    @property
    def columns(self) -> FloatArray:
        """Numerators and denominators float64 [N, 2 x rates], for the bootstrap."""
        return np.column_stack(self._columns)

    def count(self, rate: int) -> tuple[int, int]:
        """Return hits and images of a rate."""
        return self._counts[rate][:2]

    def replicates(self, rate: int, drawn: Resampled) -> FloatArray:
        """Return the rate in every replicate, float64 [R], NaN where undefined."""
        sums = drawn.replicates.sums[:, 2 * rate : 2 * rate + 2]
        with np.errstate(divide="ignore", invalid="ignore"):
            return sums[:, 0] / sums[:, 1]

    def varies(self, rate: int) -> bool:
        """Return whether resampling shows how uncertain a rate is."""
        hits, n, lesions = self._counts[rate]
        return 0 < hits < n and lesions >= FEW_LESIONS

    def interval(self, rate: int, drawn: Resampled) -> Interval:
        """Return a rate with its 95 % interval.

        Wilson's where every image that counts shows a lesion of its own; the
        percentile bootstrap over lesions where some repeat. A rate of exactly 0 or 1
        cannot vary under resampling, and a handful of lesions (fewer than
        `FEW_LESIONS`) hardly can: Wilson's then, with lesions for trials.
        """
        hits, n, lesions = self._counts[rate]
        if lesions == n:
            return wilson(hits, n)
        if not self.varies(rate):
            return {**wilson(hits / n * lesions, lesions), "value": hits / n}
        return percentile_interval(hits / n, self.replicates(rate, drawn))


def at_prevalence(
    prevalence: float,
    sensitivity: Interval,
    specificity: Interval,
    replicates: tuple[FloatArray, FloatArray] | None,
) -> dict[str, Any]:
    """Return PPV, NPV and counts of 1,000 people at a prevalence.

    By Bayes: PPV = se p / (se p + (1 - sp)(1 - p)), and NPV = sp (1 - p) / (sp (1 - p)
    + (1 - se) p). Intervals are percentiles over the replicates. Without replicates,
    for rates that do not vary enough under resampling, both intervals' limits are
    combined at their worst and at their best, which is wider than 95 %.

    Args:
        prevalence: share of melanomas among those examined, in (0, 1).
        sensitivity: with its interval; value not None.
        specificity: with its interval; value not None.
        replicates: paired replicates of sensitivity and specificity, float64 [R] each.

    Returns:
        "prevalence"; "ppv" and "npv" as intervals, value None where nobody is flagged,
        or everybody; "flagged", "found" and "missed" of 1,000 people, each {value, low,
        high} in people.
    """

    def counts(se: Any, sp: Any) -> Mapping[str, Any]:
        found, alarms = se * prevalence, (1 - sp) * (1 - prevalence)
        missed, passed = (1 - se) * prevalence, sp * (1 - prevalence)
        with np.errstate(divide="ignore", invalid="ignore"):
            return {
                "ppv": np.divide(found, found + alarms),
                "npv": np.divide(passed, passed + missed),
                "flagged": PER * (found + alarms),
                "found": PER * found,
                "missed": PER * missed,
            }

    value = counts(np.float64(sensitivity["value"]), np.float64(specificity["value"]))
    if replicates is not None:
        spread = counts(*replicates)
    else:
        se = np.asarray([sensitivity["low"], sensitivity["high"]])
        sp = np.asarray([specificity["low"], specificity["high"]])
        spread = counts(np.repeat(se, 2), np.tile(sp, 2))
    result: dict[str, Any] = {"prevalence": prevalence}
    for name, each in spread.items():
        figure = percentile_interval(float(value[name]), np.asarray(each))
        if replicates is None and figure["value"] is not None:
            usable = each[np.isfinite(each)]
            figure["low"], figure["high"] = float(usable.min()), float(usable.max())
        result[name] = figure
    # The interval of sensitivity, and no second one beside it.
    for name, ends in (("found", ("low", "high")), ("missed", ("high", "low"))):
        limits = [
            PER * prevalence * (s if name == "found" else 1 - s)
            for s in (sensitivity[ends[0]], sensitivity[ends[1]])  # type: ignore[literal-required]
        ]
        result[name]["low"], result[name]["high"] = limits
    return result


def decision_curve_columns(
    label: npt.NDArray[np.int64],
    probabilities: FloatArray,
    thresholds: Sequence[float],
) -> FloatArray:
    """Return, for each threshold, 1 - w or -w of each flagged image, float64 [N, T].

    w is the odds of the threshold, pt / (1 - pt); the mean of a column is the net
    benefit TP / n - w FP / n (Vickers and Elkin 2006, doi:10.1177/0272989X06295361).

    Args:
        label: int [N] of 0 and 1.
        probabilities: float64 [N], calibrated.
        thresholds: probabilities in (0, 1).
    """
    at = np.asarray(thresholds)
    odds = at / (1 - at)
    flagged = (probabilities[:, None] >= at[None]).astype(np.float64)
    return flagged * np.where(label[:, None] == 1, 1.0, -odds[None])
