"""Closed-form intervals and tests against SciPy, statsmodels and published examples."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, chi2, norm
from statsmodels.stats.proportion import proportion_confint

from mela_jax.errors import UserError
from mela_jax.evaluation.intervals import (
    auc_difference_p,
    auc_interval,
    clopper_pearson_lower,
    mcnemar_p,
    wilson,
)


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (1, 1), (0, 9), (81, 263), (300, 300)])
def test_wilson_agrees_with_scipy(hits: int, n: int) -> None:
    expected = binomtest(hits, n).proportion_ci(0.95, method="wilson")
    mine = wilson(hits, n)
    assert mine["value"] == hits / n
    assert (mine["low"], mine["high"]) == pytest.approx(
        (expected.low, expected.high), abs=1e-12
    )


def test_wilson_by_hand() -> None:
    # Newcombe 1998, Statistics in Medicine 17:857, Table I, method 3.
    for hits, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605)):
        mine = wilson(hits, n)
        assert (mine["low"], mine["high"]) == pytest.approx((low, high), abs=5e-5)


def test_wilson_of_nothing_knows_nothing() -> None:
    assert wilson(0, 0) == {"value": None, "low": 0.0, "high": 1.0}
    with pytest.raises(ValueError, match="2 successes in 1 trials"):
        wilson(2, 1)


@given(st.integers(1, 2000), st.data())
def test_wilson_stays_in_range_and_holds_the_value(n: int, data: st.DataObject) -> None:
    mine = wilson(data.draw(st.integers(0, n)), n)
    assert mine["value"] is not None
    assert 0 <= mine["low"] <= mine["value"] <= mine["high"] <= 1


@pytest.mark.parametrize(("hits", "n"), [(1, 1), (44, 45), (45, 45), (80, 83)])
@pytest.mark.parametrize("delta", [0.05, 0.1])
def test_clopper_pearson_agrees_with_scipy_and_statsmodels(
    hits: int, n: int, delta: float
) -> None:
    mine = clopper_pearson_lower(hits, n, delta=delta)
    one_sided = binomtest(hits, n, alternative="greater")
    assert mine == pytest.approx(
        one_sided.proportion_ci(1 - delta, method="exact").low, abs=1e-9
    )
    assert mine == pytest.approx(
        proportion_confint(hits, n, alpha=2 * delta, method="beta")[0], abs=1e-12
    )
    assert clopper_pearson_lower(0, n, delta=delta) == 0
    with pytest.raises(ValueError, match="successes"):
        clopper_pearson_lower(n + 1, n, delta=delta)


def test_delong_on_the_ratings_of_hanley_and_mcneil() -> None:
    # Hanley and McNeil 1982, Radiology 143:29, Table I: CT ratings 1 to 5 of 58 normal
    # and 51 abnormal patients. Stata's `roctab` gives 0.8932, DeLong's standard error
    # 0.0307 and the interval 0.83295 to 0.95339 (Stata manual, [R] roctab).
    normal, abnormal = (33, 6, 6, 11, 2), (3, 2, 2, 11, 33)
    score = np.concatenate([np.repeat(np.arange(5), c) for c in (normal, abnormal)]) / 4
    label = np.repeat([0, 1], [58, 51])
    found = auc_interval(label, score)
    assert found["value"] == pytest.approx(0.8932, abs=5e-5)
    assert (found["low"], found["high"]) == pytest.approx((0.83295, 0.95339), abs=6e-6)
    error = (found["high"] - found["low"]) / 2 / norm.ppf(0.975)
    assert error == pytest.approx(0.0307, abs=5e-5)


def by_all_pairs(
    label: npt.NDArray[np.int64], scores: list[npt.NDArray[np.float64]]
) -> npt.NDArray[np.float64]:
    """DeLong's covariance as the paper writes it, pair by pair."""
    v10, v01 = [], []
    for score in scores:
        gap = score[label == 1][:, None] - score[label == 0][None]
        won = (gap > 0) + (gap == 0) / 2
        v10.append(won.mean(axis=1))
        v01.append(won.mean(axis=0))
    s10, s01 = np.cov(np.stack(v10)), np.cov(np.stack(v01))
    return s10 / len(v10[0]) + s01 / len(v01[0])


@given(st.integers(0, 10_000))
def test_delong_agrees_with_all_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    label = np.append(rng.integers(0, 2, size=36), [0, 0, 1, 1])
    a = np.round(rng.random(40), 1)
    b = np.round(np.clip(a + rng.normal(scale=0.3, size=40), 0, 1), 1)
    covariance = by_all_pairs(label, [a, b])
    p = auc_difference_p(label, a, b)
    error = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    area_a, area_b = (auc_interval(label, s) for s in (a, b))
    assert area_a["value"] is not None
    assert area_b["value"] is not None
    gain = area_a["value"] - area_b["value"]
    if error > 1e-7:
        assert p == pytest.approx(2 * norm.sf(abs(gain) / error), rel=1e-6)
    half = norm.ppf(0.975) * np.sqrt(covariance[0, 0])
    assert area_a["low"] == pytest.approx(max(area_a["value"] - half, 0), abs=1e-9)


def test_copies_of_images_do_not_narrow_the_interval_by_lesion() -> None:
    rng = np.random.default_rng(1)
    label = (rng.random(200) < 0.3).astype(int)
    score = 1 / (1 + np.exp(-(label + rng.normal(size=200))))
    once = auc_interval(label, score)
    tiled = np.tile(label, 4), np.tile(score, 4)
    by_image = auc_interval(*tiled)
    by_lesion = auc_interval(*tiled, [str(k) for k in range(200)] * 4)
    width = once["high"] - once["low"]
    assert by_image["high"] - by_image["low"] < 0.55 * width
    assert by_lesion["high"] - by_lesion["low"] == pytest.approx(width, rel=0.03)


def test_degenerate_areas_have_defined_answers() -> None:
    perfect = auc_interval([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9])
    assert perfect == {"value": 1, "low": 1, "high": 1}
    lonely = auc_interval([0, 0, 1], [0.1, 0.2, 0.8])
    assert lonely == {"value": 1, "low": 0, "high": 1}
    constant = auc_interval([0, 1] * 5, [0.5] * 10)
    assert constant["value"] == 0.5
    assert auc_difference_p([0, 1] * 5, [0.5] * 10, [0.4] * 10) == 1
    with pytest.raises(UserError, match="none of the 2 images is a melanoma"):
        auc_interval([0, 0], [0.1, 0.2])


def test_mcnemar_by_the_binomial_and_by_hand() -> None:
    only_a, only_b = 12, 4
    right_a = np.repeat([True, False, True, False], [only_a, only_b, 30, 7])
    right_b = np.repeat([False, True, True, False], [only_a, only_b, 30, 7])
    exact = binomtest(only_a, only_a + only_b).pvalue
    assert mcnemar_p(right_a, right_b) == pytest.approx(exact)
    assert mcnemar_p(right_a, right_a) == 1
    # Three lesions: surpluses 2, 1 and -1, so (2 + 1 - 1)^2 / (4 + 1 + 1) = 4 / 6.
    p = mcnemar_p(
        np.array([True, True, True, False]),
        np.array([False, False, False, True]),
        ["x", "x", "y", "z"],
    )
    assert p == pytest.approx(chi2.sf(4 / 6, 1))
