import numpy as np
import pytest
from scipy.stats import norm, t, ttest_1samp

from mela_jax.evaluation.intervals import wilson
from mela_jax.evaluation.seeds import (
    difference_over_seeds,
    interval_over_seeds,
    moderate_variances,
    spread_over_seeds,
)

# Two seeds on three resamplings: variances 0.0001 and 0.0004, covariance 0.0002.
VALUES = np.asarray([0.80, 0.86])
REPLICATES = np.asarray([[0.79, 0.80, 0.81], [0.84, 0.86, 0.88]])


def test_the_variance_is_the_one_worked_out_by_hand():
    spread = spread_over_seeds(VALUES, REPLICATES)
    # MS = 0.06^2 / 2 = 0.0018 exceeds V - C = 0.00025 - 0.0002.
    assert spread.mean == pytest.approx(0.83)
    assert spread.error == pytest.approx(np.sqrt((0.0018 + 2 * 0.0002) / 2))
    assert spread.freedom == pytest.approx((0.0022 / 0.0018) ** 2)
    assert spread.seed_sd == pytest.approx(np.sqrt(0.0018))
    assert spread.lesion_sd == pytest.approx(np.sqrt(0.0002))


def test_seeds_on_lesions_that_tell_nothing_give_the_t_test():
    # Without covariance the method is a t test over seeds.
    rng = np.random.default_rng(0)
    gain = np.asarray([0.02, 0.05, 0.01])
    still = rng.normal(scale=1e-6, size=(3, 400))
    found = difference_over_seeds(gain, still, np.zeros(3), np.zeros((3, 400)))
    assert found["p"] == pytest.approx(ttest_1samp(gain, 0).pvalue, rel=1e-3)
    assert found["freedom"] == pytest.approx(2, rel=1e-3)


def test_one_seed_has_the_lesions_alone():
    rng = np.random.default_rng(1)
    replicates = rng.normal(0.8, 0.02, size=(1, 500))
    found = difference_over_seeds(
        np.asarray([0.83]), replicates, np.asarray([0.80]), np.zeros((1, 500))
    )
    error = replicates.std(ddof=1)
    assert found["freedom"] is None
    assert found["p"] == pytest.approx(2 * norm.sf(0.03 / error))
    assert found["low"] == pytest.approx(0.03 - norm.ppf(0.975) * error)


def test_seeds_never_make_an_interval_narrower_than_lesions_alone():
    rng = np.random.default_rng(2)
    for _ in range(50):
        replicates = rng.normal(size=(3, 60)) + rng.normal(size=60)
        values = rng.normal(scale=0.1, size=3)  # nearer than chance has them
        lesions = np.std(replicates.mean(axis=0), ddof=1)
        assert spread_over_seeds(values, replicates).error >= lesions * (1 - 1e-9)


def test_p_is_below_5_percent_just_where_the_interval_leaves_out_zero():
    rng = np.random.default_rng(3)
    verdicts = set()
    for _ in range(100):
        noise = rng.normal(scale=0.02, size=(2, 3, 50))
        values = rng.normal(scale=0.05, size=(2, 3)) + [[0.1], [0.0]]
        found = difference_over_seeds(values[0], noise[0], values[1], noise[1])
        excluded = found["low"] > 0 or found["high"] < 0
        assert (found["p"] < 0.05) == excluded
        verdicts.add(excluded)
    assert verdicts == {True, False}


def test_a_recipe_does_not_differ_from_itself():
    found = difference_over_seeds(VALUES, REPLICATES, VALUES, REPLICATES)
    assert (found["difference"], found["low"], found["high"]) == (0, 0, 0)
    assert found["p"] == 1


def test_a_difference_that_never_varies_proves_nothing():
    ones, zeros = np.ones(2), np.zeros(2)
    wide = np.ones((2, 9)), np.zeros((2, 9))
    found = difference_over_seeds(ones, wide[0], zeros, wide[1])
    assert (found["low"], found["high"], found["p"]) == (-1, 1, 1)


def test_a_rate_of_one_with_every_seed_gets_wilsons_interval():
    found = interval_over_seeds(np.ones(3), np.ones((3, 20)), lesions=40)
    assert found == wilson(40, 40)


def test_an_undefined_figure_has_no_interval():
    values = np.asarray([0.5, np.nan])
    found = interval_over_seeds(values, np.ones((2, 20)))
    assert found == {"value": None, "low": 0.0, "high": 1.0}


def test_an_interval_near_one_stays_below_one():
    rng = np.random.default_rng(4)
    values = np.asarray([0.99, 0.98, 1.0])
    found = interval_over_seeds(values, rng.normal(0.99, 0.01, size=(3, 99)))
    assert 0 < found["low"] < 0.99 < found["high"] < 1


def test_variances_that_are_alike_are_pooled():
    # All three are 0.0002: the mean of the variances, with all their freedom.
    groups = [np.asarray([m - 0.01, m + 0.01]) for m in (0.7, 0.8, 0.9)]
    for found in moderate_variances(groups):
        assert found.variance == pytest.approx(0.0002)
        assert found.freedom == 3


def test_the_prior_of_many_variances_is_found_again():
    # 8 degrees of freedom around a variance of 0.5, as Smyth's model draws them.
    rng = np.random.default_rng(5)
    true = 0.5 * 8 / rng.chisquare(8, size=4000)
    groups = [rng.normal(scale=np.sqrt(v), size=4) for v in true]
    found = moderate_variances(groups)
    freedom = found[0].freedom
    assert freedom - 3 == pytest.approx(8, rel=0.15)
    own = np.asarray([np.var(g, ddof=1) for g in groups])
    prior = [
        (f.variance * freedom - 3 * v) / (freedom - 3)
        for f, v in zip(found, own, strict=True)
    ]
    assert np.allclose(prior, prior[0])
    assert prior[0] == pytest.approx(0.5, rel=0.05)


def test_a_variance_of_zero_borrows_from_the_others():
    groups = [np.asarray([0.5, 0.5, 0.5])] + [
        np.asarray([0.4, 0.5, 0.6]) + i / 100 for i in range(4)
    ]
    assert moderate_variances(groups)[0].variance > 0


def test_one_recipe_alone_keeps_its_variance():
    (found,) = moderate_variances([VALUES])
    assert (found.variance, found.freedom) == (pytest.approx(0.0018), 1)


def _draw_recipes(rng, *, recipes, seeds, strength=1.5, seed_sd=0.3, lesion_sd=1.0):
    """Draw ROC-AUCs of recipes that do not differ, and their replicates."""
    label = np.repeat([1, 0], [30, 70])
    lesion = rng.normal(scale=lesion_sd, size=100)
    weights = rng.multinomial(100, np.full(100, 0.01), size=100)
    positive, negative = weights[:, :30].astype(float), weights[:, 30:].astype(float)
    found = []
    for _ in range(recipes):
        liking = rng.normal(scale=0.3, size=100)
        values, replicates = [], []
        for _ in range(seeds):
            logits = (strength + rng.normal(scale=seed_sd)) * label + lesion + liking
            logits += rng.normal(scale=0.4, size=100)
            above = (logits[:30, None] > logits[None, 30:]).astype(float)
            values.append(above.mean())
            pairs = positive.sum(axis=1) * negative.sum(axis=1)
            replicates.append(((positive @ above) * negative).sum(axis=1) / pairs)
        found.append((np.asarray(values), np.stack(replicates)))
    return found


def test_intervals_cover_the_recipes_true_area_about_95_times_in_100():
    rng = np.random.default_rng(6)
    # P(melanoma outscores another): one normal variable against 0.
    variance = 2 * (1.0**2 + 0.3**2 + 0.4**2) + 0.3**2
    truth = norm.cdf(1.5 / np.sqrt(variance))
    hits = lesions_only = 0
    for _ in range(250):
        ((values, replicates),) = _draw_recipes(rng, recipes=1, seeds=3)
        found = interval_over_seeds(values, replicates)
        hits += found["low"] <= truth <= found["high"]
        one = interval_over_seeds(values[:1], replicates[:1])
        lesions_only += one["low"] <= truth <= one["high"]
    assert 0.92 <= hits / 250 <= 0.99
    # Which the interval of a single run, blind to the seed, does not do.
    assert lesions_only < hits


@pytest.mark.parametrize("seeds", [2, 3])
def test_recipes_that_do_not_differ_are_rarely_called_different(seeds):
    rng = np.random.default_rng(7)
    wrong = 0
    for _ in range(100):
        drawn = _draw_recipes(rng, recipes=4, seeds=seeds, seed_sd=0.15)
        luck = moderate_variances([values for values, _ in drawn])
        p = [
            difference_over_seeds(*a, *drawn[0], luck=[luck[i], luck[0]])["p"]
            for i, a in enumerate(drawn[1:], start=1)
        ]
        wrong += min(p) < 0.05 / 3
    # Nominal 5 of 100; 11 or more would come up once in a hundred.
    assert wrong <= 10


def test_the_half_width_is_that_of_the_t_distribution():
    spread = spread_over_seeds(VALUES, REPLICATES)
    assert spread.half_width == pytest.approx(
        t.ppf(0.975, spread.freedom) * spread.error
    )
