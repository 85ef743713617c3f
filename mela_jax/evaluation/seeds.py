"""Figures of a training recipe: means over seeds, with seeds and lesions both random.

A figure of one trained model has two kinds of luck in it: which lesions were in the
test set, and which seed the training had. All seeds are scored on the same lesions, as
several readers of a reader study read the same cases, so the method is that of reader
studies: Obuchowski and Rockette 1995 (doi:10.1080/03610919508813243), with the degrees
of freedom of Hillis 2007 (doi:10.1002/sim.2532). Seeds are the readers.

With S seeds, MS the variance of the figure over seeds (S - 1 in the denominator), V the
mean variance of one seed's figure over resampled lesions, and C the mean covariance of
two seeds' figures over them, neither below 0, the mean over seeds has

    M = max(MS, V - C)
    variance = (M + S C) / S
    degrees of freedom = (M + S C)^2 / (M^2 / (S - 1))

MS holds the seeds and what differs between them on these lesions, C what the lesions do
to all seeds alike; nothing is counted twice. V - C is what MS is expected to be if
seeds had no luck of their own. An MS below it is chance; taking it as it is, as Hillis
does, can make an interval over seeds and lesions narrower than that over lesions alone,
so it is raised to V - C here, which errs towards wide. With one seed nothing is known
of others: the variance is V.
"""

import math
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from scipy.special import expit, logit
from scipy.stats import t as student_t

from mela_jax.evaluation.intervals import CONFIDENCE, FloatArray, Interval, wilson

# A standard error below this is rounding.
_NOTHING = 1e-9


@dataclass(frozen=True)
class Spread:
    """The mean of a figure over seeds and how far it may lie from the truth.

    Attributes:
        mean: of the seeds.
        error: standard error; NaN where the resampling says nothing.
        freedom: degrees of freedom, in [S - 1, inf].
        seed_sd: standard deviation over the seeds; None with one seed.
        lesion_sd: standard deviation over resampled lesions that all seeds share, or
            of the one seed there is.
    """

    mean: float
    error: float
    freedom: float
    seed_sd: float | None
    lesion_sd: float

    @property
    def half_width(self) -> float:
        """Half of the 95 % interval on the scale of the figure."""
        return float(student_t.ppf((1 + CONFIDENCE) / 2, self.freedom)) * self.error


class SeedDifference(TypedDict):
    """A difference of two recipes, paired by seed and lesion, a minus b.

    "freedom" is None where it is infinite, as with one seed.
    """

    difference: float
    low: float
    high: float
    p: float
    freedom: float | None


def spread_over_seeds(values: FloatArray, replicates: FloatArray) -> Spread:
    """Return the mean over seeds with its standard error over seeds and lesions.

    Args:
        values: float64 [S], the figure of each seed.
        replicates: float64 [S, R], the figure of each seed on the same R resamplings of
            the lesions. Columns with a NaN are left out.
    """
    num_seeds = len(values)
    mean = float(np.mean(values))
    usable = replicates[:, np.isfinite(replicates).all(axis=0)]
    if usable.shape[1] < 2 or not math.isfinite(mean):
        return Spread(mean, math.nan, math.inf, None, math.nan)
    covariance = np.atleast_2d(np.cov(usable))
    if num_seeds == 1:
        error = math.sqrt(covariance[0, 0])
        return Spread(mean, error, math.inf, None, error)
    between = float(np.var(values, ddof=1))
    apart = ~np.eye(num_seeds, dtype=bool)
    shared = max(float(covariance[apart].mean()), 0.0)
    own = max(between, float(np.trace(covariance)) / num_seeds - shared)
    total = own + num_seeds * shared
    freedom = math.inf
    if own > _NOTHING**2:
        freedom = total**2 / (own**2 / (num_seeds - 1))
    return Spread(
        mean,
        math.sqrt(total / num_seeds),
        freedom,
        math.sqrt(between),
        math.sqrt(shared),
    )


def interval_over_seeds(
    values: FloatArray, replicates: FloatArray, *, lesions: int | None = None
) -> Interval:
    """Return the mean over seeds with its 95 % interval over seeds and lesions.

    The interval is symmetric in the logit of the figure (delta method), so that it
    stays within 0 and 1 and is honest near them. A rate that is exactly 0 or 1 with
    every seed does not vary under resampling: it gets Wilson's interval with lesions
    for trials; an area gets an interval of no width.

    Args:
        values: float64 [S], in [0, 1], or NaN where undefined.
        replicates: float64 [S, R], see `spread_over_seeds`.
        lesions: lesions in the denominator of a rate; None for an area.

    Returns:
        value None, low 0, high 1 where the figure is undefined for a seed.
    """
    spread = spread_over_seeds(values, replicates)
    if not math.isfinite(spread.mean):
        return {"value": None, "low": 0.0, "high": 1.0}
    if math.isnan(spread.error):
        return {"value": spread.mean, "low": 0.0, "high": 1.0}
    if spread.mean in (0.0, 1.0):
        if lesions is None:
            return {"value": spread.mean, "low": spread.mean, "high": spread.mean}
        return wilson(lesions if spread.mean else 0, lesions)
    half = spread.half_width / (spread.mean * (1 - spread.mean))
    middle = logit(spread.mean)
    return {
        "value": spread.mean,
        "low": float(expit(middle - half)),
        "high": float(expit(middle + half)),
    }


def difference_over_seeds(
    values_a: FloatArray,
    replicates_a: FloatArray,
    values_b: FloatArray,
    replicates_b: FloatArray,
) -> SeedDifference:
    """Return the paired difference of two recipes over seeds and lesions, a minus b.

    Seed by seed and lesion by lesion: the variance is that of the differences. The
    interval and the two-sided p-value come from one t distribution, so p < 0.05 just
    when the interval leaves out 0. Where every seed and resampling gives the same
    difference, it is either 0, with p = 1, or nothing is known of its error: -1 to 1,
    p = 1.

    Args:
        values_a: float64 [S], the figure of each seed of a.
        replicates_a: float64 [S, R], on the same resamplings as those of b.
        values_b: float64 [S], of the same seeds.
        replicates_b: float64 [S, R].

    Returns:
        The difference; NaN, with -1, 1 and p = 1, where the figure is undefined.
    """
    spread = spread_over_seeds(values_a - values_b, replicates_a - replicates_b)
    gain = spread.mean
    if not spread.error > _NOTHING:
        same = spread.error <= _NOTHING and abs(gain) <= _NOTHING
        low, high = (0.0, 0.0) if same else (-1.0, 1.0)
        gain = 0.0 if same else gain
        return {"difference": gain, "low": low, "high": high, "p": 1.0, "freedom": None}
    p = 2 * student_t.sf(abs(gain) / spread.error, spread.freedom)
    return {
        "difference": gain,
        "low": max(gain - spread.half_width, -1.0),
        "high": min(gain + spread.half_width, 1.0),
        "p": float(p),
        "freedom": spread.freedom if math.isfinite(spread.freedom) else None,
    }
