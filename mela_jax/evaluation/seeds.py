"""Figures of a training recipe: means over seeds, with seeds and lesions both random.

All seeds are scored on the same lesions, as several readers of a reader study read the
same cases, so the method is that of reader studies: Obuchowski and Rockette 1995
(doi:10.1080/03610919508813243), with the degrees of freedom of Hillis 2007
(doi:10.1002/sim.2532). With S seeds, MS the variance of the figure over seeds, V the
mean variance of one seed's figure over resampled lesions, and C the mean covariance of
two seeds' figures over them, neither below 0, the mean over seeds has

    M = max(MS, V - C)
    variance = (M + S C) / S
    degrees of freedom = (M + S C)^2 / (M^2 / (S - 1))

MS holds the seeds and what differs between them on these lesions, C what the lesions do
to all seeds alike; nothing is counted twice. V - C is what MS is expected to be if
seeds had no luck of their own; an MS below it is chance, and raising it errs towards
wide. With one seed nothing is known of others: the variance is V.

For the difference of two recipes V and C are those of the differences, lesion by
lesion, and MS is the sum of both recipes' variances over seeds: seeds are taken as
independent draws, which errs towards wide where one seed suits both. See "Seeds and
lesions" in docs/evaluation.md.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import digamma, expit, logit, polygamma
from scipy.stats import t as student_t

from mela_jax.evaluation.intervals import (
    CONFIDENCE,
    FloatArray,
    Interval,
    unknown_interval,
    wilson,
)

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
        lesion_sd: that over resampled lesions that all seeds share, or of the one seed.
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


@dataclass(frozen=True)
class SeedVariance:
    """A figure's variance over seeds, >= 0, with its degrees of freedom, > 0."""

    variance: float
    freedom: float


def spread_over_seeds(
    values: FloatArray,
    replicates: FloatArray,
    luck: Sequence[SeedVariance] | None = None,
) -> Spread:
    """Return the mean over seeds with its standard error over seeds and lesions.

    Args:
        values: float64 [S], the figure of each seed.
        replicates: float64 [S, R], the figure of each seed on the same R resamplings of
            the lesions. Columns with a NaN are left out.
        luck: what MS is the sum of; None: the variance of `values`.
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
    observed = SeedVariance(float(np.var(values, ddof=1)), num_seeds - 1.0)
    parts = [observed] if luck is None else luck
    apart = ~np.eye(num_seeds, dtype=bool)
    shared = max(float(covariance[apart].mean()), 0.0)
    between = sum(part.variance for part in parts)
    own = max(between, float(np.trace(covariance)) / num_seeds - shared)
    total = own + num_seeds * shared
    freedom = math.inf
    if between > _NOTHING**2:
        # Satterthwaite's for a sum of variances; of one, its own.
        known = between**2 / sum(part.variance**2 / part.freedom for part in parts)
        freedom = total**2 / (own**2 / known)
    return Spread(
        mean,
        math.sqrt(total / num_seeds),
        freedom,
        math.sqrt(observed.variance),
        math.sqrt(shared),
    )


def interval_over_seeds(
    values: FloatArray,
    replicates: FloatArray,
    *,
    lesions: int | None = None,
    luck: Sequence[SeedVariance] | None = None,
) -> Interval:
    """Return the mean over seeds with its 95 % interval over seeds and lesions.

    The interval is symmetric in the logit of the figure (delta method), so that it
    stays within 0 and 1 and is honest near them. A rate that is exactly 0 or 1 with
    every seed does not vary under resampling: it gets Wilson's interval with `lesions`,
    those in its denominator, for trials; an area, without them, one of no width. A
    figure that is undefined (NaN) for a seed gets an `unknown_interval`. For the other
    arguments see `spread_over_seeds`.
    """
    spread = spread_over_seeds(values, replicates, luck)
    if not math.isfinite(spread.mean):
        return unknown_interval()
    if math.isnan(spread.error):
        return unknown_interval(spread.mean)
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


def moderate_variances(groups: Sequence[FloatArray]) -> list[SeedVariance]:
    """Estimate each recipe's variance over seeds with the help of the others'.

    Two or three seeds hardly know their own. Smyth 2004 (doi:10.2202/1544-6115.1027),
    as in limma's fitFDist and squeezeVar: variances s_i^2 with d_i degrees of freedom
    are taken as drawn around a common s_0^2, known as well as by d_0 further degrees of
    freedom. Both are found from mean and variance of log s_i^2. The estimate is (d_0
    s_0^2 + d_i s_i^2) / (d_0 + d_i), with d_0 + d_i degrees of freedom, at most all
    that there are together.

    Args:
        groups: for each recipe the figure of each seed, float64 [S_i], S_i >= 2.
    """
    own = np.asarray([np.var(values, ddof=1) for values in groups])
    freedom = np.asarray([len(values) - 1.0 for values in groups])
    if len(groups) < 2 or not own.any():
        return [SeedVariance(*pair) for pair in zip(own, freedom, strict=True)]
    # A variance of exactly 0, as of three equal specificities, has no logarithm.
    logs = np.log(np.maximum(own, 1e-5 * np.median(own[own > 0])))
    logs -= digamma(freedom / 2) - np.log(freedom / 2)
    excess = float(np.var(logs, ddof=1) - polygamma(1, freedom / 2).mean())
    if excess > 0:
        # trigamma falls from infinity to 0 like 1 / x.
        prior = 2 * brentq(
            lambda x: polygamma(1, x) - excess, 1e-3 / (1 + excess), 1 + 2 / excess
        )
        common = math.exp(logs.mean() + digamma(prior / 2) - math.log(prior / 2))
        pooled = (prior * common + freedom * own) / (prior + freedom)
    else:
        prior = math.inf
        pooled = np.full(len(own), float(freedom @ own / freedom.sum()))
    total = np.minimum(prior + freedom, freedom.sum())
    return [
        SeedVariance(float(variance), float(known))
        for variance, known in zip(pooled, total, strict=True)
    ]


def difference_over_seeds(
    values_a: FloatArray,
    replicates_a: FloatArray,
    values_b: FloatArray,
    replicates_b: FloatArray,
    luck: Sequence[SeedVariance] | None = None,
) -> dict[str, Any]:
    """Return the difference of two recipes over the same seeds and lesions, a minus b.

    The interval and the two-sided p-value come from one t distribution, so p < 0.05
    just when the interval leaves out 0. Where every seed and resampling gives the same
    difference, it is either 0, with p = 1, or nothing is known of its error: -1 to 1,
    p = 1. "freedom" is None where it is infinite, as with one seed.

    Values are float64 [S], of the same seeds; replicates float64 [S, R], on the same
    resamplings. `luck` holds the variances over seeds of a and of b, from
    `moderate_variances`; None: that of the differences, seed by seed. Not used with one
    seed.
    """
    spread = spread_over_seeds(values_a - values_b, replicates_a - replicates_b, luck)
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
