"""Proportions of a split with intervals by lesion, all from one bootstrap.

A rate is added by its name before the bootstrap and read after it:

    rates = Rates(test)
    rates.add("sensitivity", flagged, among=melanoma)
    drawn = bootstrap(..., columns=rates.columns)
    rates.interval("sensitivity", drawn)
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mela_jax.evaluation.bootstrap import Resampled, percentile_interval
from mela_jax.evaluation.classes import BoolArray, FloatArray, IntArray
from mela_jax.evaluation.intervals import Interval, wilson
from mela_jax.evaluation.scores import Predictions

RATES = ("sensitivity", "specificity", "ppv", "npv")
PER = 1000
FEW_LESIONS = 10


class Rates:
    """Named rates that one bootstrap is to give intervals for.

    Attributes:
        columns: numerator and denominator of each rate, float64 [N], for the bootstrap.
    """

    def __init__(self, split: Predictions):
        self.columns: dict[str, FloatArray] = {}
        self._lesions = np.unique(split.lesion_id, return_inverse=True)[1]
        self._counts: dict[str, tuple[int, int, int]] = {}

    def add(self, name: str, hit: BoolArray, *, among: BoolArray) -> None:
        """Add the share of hits, bool [N], among the images that count, bool [N].

        Raises:
            ValueError: the name is taken.
        """
        if name in self._counts:
            raise ValueError(f"rate {name!r} is there already")
        self.columns[f"{name}: hits"] = (hit & among).astype(np.float64)
        self.columns[f"{name}: images"] = among.astype(np.float64)
        lesions = len(np.unique(self._lesions[among]))
        self._counts[name] = int((hit & among).sum()), int(among.sum()), lesions

    def add_decision(
        self,
        decision: str,
        flagged: BoolArray,
        positive: BoolArray,
        *,
        among: BoolArray | bool = True,
        rates: Sequence[str] = RATES,
    ) -> None:
        """Add some of `RATES`, each by the name `<decision> <rate>`.

        What is flagged, what is positive and which images count are bool [N].
        """
        shares = {
            "sensitivity": (flagged, positive),
            "specificity": (~flagged, ~positive),
            "ppv": (positive, flagged),
            "npv": (~positive, ~flagged),
        }
        for rate in rates:
            hit, of = shares[rate]
            self.add(f"{decision} {rate}", hit, among=of & among)

    def _names(self, decision: str) -> dict[str, str]:
        names = {rate: f"{decision} {rate}" for rate in RATES}
        return {rate: name for rate, name in names.items() if name in self._counts}

    def by_image(self, decision: str) -> dict[str, Interval]:
        """Return the rates of a decision with Wilson's intervals, images for trials."""
        names = self._names(decision)
        return {rate: wilson(*self._counts[name][:2]) for rate, name in names.items()}

    def by_lesion(self, decision: str, drawn: Resampled) -> dict[str, Interval]:
        """Return the rates of a decision with the intervals of `interval`."""
        names = self._names(decision)
        return {rate: self.interval(name, drawn) for rate, name in names.items()}

    def replicates(self, name: str, drawn: Resampled) -> FloatArray:
        """Return the rate in every replicate, float64 [R], NaN where undefined."""
        hits = drawn.replicates[f"{name}: hits"]
        with np.errstate(divide="ignore", invalid="ignore"):
            return hits / drawn.replicates[f"{name}: images"]

    def varies(self, name: str) -> bool:
        """Return whether resampling shows how uncertain a rate is."""
        hits, n, lesions = self._counts[name]
        return 0 < hits < n and lesions >= FEW_LESIONS

    def interval(self, name: str, drawn: Resampled) -> Interval:
        """Return a rate with its 95 % interval.

        Wilson's where every image that counts shows a lesion of its own; the
        percentile bootstrap over lesions where some repeat. A rate of exactly 0 or 1
        cannot vary under resampling, and a handful of lesions (fewer than
        `FEW_LESIONS`) hardly can: Wilson's then, with lesions for trials.
        """
        hits, n, lesions = self._counts[name]
        if lesions == n:
            return wilson(hits, n)
        if not self.varies(name):
            return {**wilson(hits / n * lesions, lesions), "value": hits / n}
        return percentile_interval(hits / n, self.replicates(name, drawn))


def at_prevalence(
    prevalence: float,
    sensitivity: Interval,
    specificity: Interval,
    replicates: Sequence[FloatArray] | None,
) -> dict[str, Any]:
    """Return PPV, NPV and counts of 1,000 people at a prevalence in (0, 1).

    By Bayes: PPV = se p / (se p + (1 - sp)(1 - p)), and NPV = sp (1 - p) / (sp (1 - p)
    + (1 - se) p). Intervals are percentiles over the paired replicates, float64 [R], of
    sensitivity and specificity. Without them, for rates that do not vary enough under
    resampling, both intervals' limits are combined at their worst and at their best,
    which is wider than 95 %.

    Returns:
        "prevalence"; "ppv" and "npv" as intervals, value None where nobody is flagged,
        or everybody; "flagged", "found" and "missed" of 1,000 people, each {value, low,
        high} in people.
    """
    spread_se, spread_sp = replicates or (
        np.repeat([sensitivity["low"], sensitivity["high"]], 2),
        np.tile([specificity["low"], specificity["high"]], 2),
    )
    # The value stands in front.
    se = np.asarray([sensitivity["value"], *spread_se])
    sp = np.asarray([specificity["value"], *spread_sp])
    found, alarms = se * prevalence, (1 - sp) * (1 - prevalence)
    missed, passed = (1 - se) * prevalence, sp * (1 - prevalence)
    with np.errstate(divide="ignore", invalid="ignore"):
        counts = {
            "ppv": found / (found + alarms),
            "npv": passed / (passed + missed),
            "flagged": PER * (found + alarms),
            "found": PER * found,
            "missed": PER * missed,
        }
    result: dict[str, Any] = {"prevalence": prevalence}
    for name, (value, *spread) in counts.items():
        figure = percentile_interval(value, np.asarray(spread))
        if replicates is None and figure["value"] is not None:
            low, high = float(np.nanmin(spread)), float(np.nanmax(spread))
            figure |= {"low": low, "high": high}
        result[name] = figure
    # The interval of sensitivity, and no second one beside it.
    melanomas = PER * prevalence
    result["found"] |= {end: melanomas * sensitivity[end] for end in ("low", "high")}
    result["missed"] |= {
        "low": melanomas * (1 - sensitivity["high"]),
        "high": melanomas * (1 - sensitivity["low"]),
    }
    return result


def net_benefit_at(threshold: float) -> str:
    """Return the name of a column of `net_benefit_columns`."""
    return f"net benefit at {threshold}"


def net_benefit_columns(
    label: IntArray,
    probabilities: FloatArray,
    thresholds: Sequence[float],
) -> dict[str, FloatArray]:
    """Return, for each threshold, 1 or -w of each flagged image, float64 [N].

    w is the odds of the threshold in (0, 1), pt / (1 - pt), on calibrated
    probabilities; the mean of a column is the net benefit TP / n - w FP / n (Vickers
    and Elkin 2006, doi:10.1177/0272989X06295361).
    """
    gains = {at: np.where(label == 1, 1.0, -at / (1 - at)) for at in thresholds}
    return {
        net_benefit_at(at): np.where(probabilities >= at, gain, 0.0)
        for at, gain in gains.items()
    }
