"""The threshold really is the highest that reaches the target."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom
from sklearn.metrics import confusion_matrix, roc_curve

from mela_jax.errors import UserError
from mela_jax.evaluation.operating_point import (
    Confusion,
    choose_threshold,
    confusion,
    guarantee_threshold,
    lesions_needed,
)

# Few distinct scores, so that ties within and across the classes are common.
cases = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 8).map(lambda k: k / 8)),
    min_size=1,
    max_size=40,
).filter(lambda rows: any(label for label, _ in rows))
targets = st.sampled_from([0.05, 0.07, 0.5, 0.8, 0.9, 0.95, 0.98, 1.0])


def test_worked_by_hand() -> None:
    labels = [0, 1, 0, 1, 1, 0, 1]
    scores = [0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.9]
    # Melanomas from the top: 0.9, 0.6, 0.4, 0.2.
    assert choose_threshold(labels, scores, target=0.75) == 0.4
    assert choose_threshold(labels, scores, target=0.76) == 0.2
    assert choose_threshold(labels, scores, target=0.25) == 0.9
    assert confusion(labels, scores, 0.4) == Confusion(tp=3, fp=1, tn=2, fn=1)


def test_a_score_equal_to_the_threshold_is_flagged() -> None:
    assert confusion([0, 1], [0.5, 0.5], 0.5) == Confusion(tp=1, fp=1, tn=0, fn=0)
    above = np.nextafter(0.5, 1)
    assert confusion([0, 1], [0.5, 0.5], above) == Confusion(tp=0, fp=0, tn=1, fn=1)


def test_exact_shares_are_not_lost_to_rounding() -> None:
    for count in range(1, 301):
        scores = (1 + np.arange(count)) / 1000
        for percent in (7, 29, 55, 57, 58, 80, 90, 95, 98, 100):
            needed = -(-percent * count // 100)  # exact, in integers
            chosen = choose_threshold(np.ones(count), scores, target=percent / 100)
            assert chosen == scores[count - needed], (count, percent)


@given(cases, targets)
def test_it_is_the_highest_observed_score_that_reaches_the_target(
    rows: list[tuple[int, float]], target: float
) -> None:
    labels, scores = (list(column) for column in zip(*rows, strict=True))
    chosen = choose_threshold(labels, scores, target=target)

    def sensitivity(threshold: float) -> float:
        hits = [score >= threshold for label, score in rows if label]
        return sum(hits) / len(hits)

    assert chosen in scores
    assert sensitivity(chosen) >= target
    assert all(sensitivity(t) < target for t in scores if t > chosen)


@given(cases, targets)
def test_it_agrees_with_scikit_learn(
    rows: list[tuple[int, float]], target: float
) -> None:
    labels, scores = (np.asarray(column) for column in zip(*rows, strict=True))
    if labels.all():
        return
    chosen = choose_threshold(labels, scores, target=target)
    _, rates, thresholds = roc_curve(labels, scores, drop_intermediate=False)
    assert chosen == thresholds[rates >= target].max()
    counts = confusion(labels, scores, chosen)
    expected = confusion_matrix(labels, scores >= chosen, labels=[0, 1])
    np.testing.assert_array_equal(
        [[counts.tn, counts.fp], [counts.fn, counts.tp]], expected
    )


def test_constant_scores_flag_everyone() -> None:
    chosen = choose_threshold([0, 0, 1, 1], [0.3] * 4, target=0.95)
    counts = confusion([0, 0, 1, 1], [0.3] * 4, chosen)
    assert counts == Confusion(tp=2, fp=2, tn=0, fn=0)
    assert counts.flags_everyone
    assert not Confusion(tp=2, fp=1, tn=1, fn=0).flags_everyone
    assert not Confusion(tp=1, fp=2, tn=0, fn=1).flags_everyone


def test_mistakes_are_user_errors() -> None:
    with pytest.raises(UserError, match="none of the 2 validation images"):
        choose_threshold([0, 0], [0.1, 0.2], target=0.95)
    for target in (0.0, -1.0, 1.01, 95.0, float("nan")):
        with pytest.raises(UserError, match="target sensitivity"):
            choose_threshold([0, 1], [0.1, 0.2], target=target)
    with pytest.raises(UserError, match="not a number"):
        choose_threshold([0, 1], [0.1, float("nan")], target=0.95)


def test_the_known_numbers_of_melanomas_for_a_guarantee() -> None:
    # 0.95 ** 45 = 0.0994 and 0.95 ** 44 = 0.1047; "59 for 95/95" is folklore.
    assert lesions_needed(target=0.95, delta=0.1) == 45
    assert lesions_needed(target=0.95, delta=0.05) == 59
    assert lesions_needed(target=0.9, delta=0.1) == 22
    assert lesions_needed(target=0.5, delta=0.5) == 1
    for target, delta in ((0, 0.1), (1, 0.1), (0.95, 0), (0.95, 1)):
        with pytest.raises(UserError, match="not in"):
            lesions_needed(target=target, delta=delta)


def test_a_guarantee_with_too_few_melanomas_says_what_could_be() -> None:
    for units in (1, 44):
        found = guarantee_threshold([1] * units + [0], [0.5] * (units + 1))
        assert found.threshold is None
        assert found.lower_bound is None
        assert (found.units, found.units_needed) == (units, 45)
        assert found.most == pytest.approx(0.1 ** (1 / units))
    enough = guarantee_threshold([1] * 45, np.linspace(0.1, 0.9, 45))
    assert enough.threshold == pytest.approx(0.1)
    assert enough.allowed_misses == 0


def test_the_guaranteed_threshold_is_the_largest_that_passes_the_exact_test() -> None:
    rng = np.random.default_rng(0)
    for n in (45, 77, 100, 213):
        label = np.append(np.ones(n), np.zeros(20))
        score = np.round(rng.random(n + 20), 2)  # ties
        found = guarantee_threshold(label, score, target=0.95, delta=0.1)
        passing = []
        # In the fixed sequence, until the first that fails.
        for t in sorted(set(score[:n])):
            misses = int(np.sum(score[:n] < t))
            # P(so few misses) if the sensitivity were just 95 %.
            if binom.cdf(misses, n, 0.05) > 0.1:
                break
            passing.append(t)
        assert found.threshold == passing[-1]
        assert found.lower_bound is not None
        assert found.lower_bound >= 0.95


def test_a_lesion_counts_once_with_its_lowest_score() -> None:
    rng = np.random.default_rng(1)
    score = rng.random(80)
    low = score * 0.5
    lesions = [str(k) for k in range(80)]
    by_lesion = guarantee_threshold(
        [1] * 160, np.concatenate([score, low]), lesions * 2
    )
    assert by_lesion == guarantee_threshold([1] * 80, low, lesions)
    # Copies bring no confidence, although by image they seem to.
    assert by_lesion.units == 80
    assert guarantee_threshold([1] * 160, np.tile(low, 2)).units == 160


def drawn_sensitivities(
    *, units: int, delta: float, per_lesion: int = 1, digits: int | None = None
) -> np.ndarray:
    """Return true sensitivities of thresholds from 2,000 draws of validation.

    The score of a melanoma image is uniform, so the true sensitivity of a threshold is
    known; images of a lesion share most of their score.
    """
    rng = np.random.default_rng([units, per_lesion])
    found = []
    for _ in range(2000):
        common = rng.random(units)
        if per_lesion == 1:
            score = common
        else:
            # Each image of a lesion takes the lesion's score, or now and then its own:
            # uniform all the same.
            own = rng.random((per_lesion, units))
            score = np.where(rng.random((per_lesion, units)) < 0.8, common, own).ravel()
        if digits is not None:
            score = np.round(score, digits)
        lesions = [str(k) for k in range(units)] * per_lesion
        guarantee = guarantee_threshold(
            np.ones(score.size), score, lesions, target=0.95, delta=delta
        )
        assert guarantee.threshold is not None
        threshold = guarantee.threshold
        # P(score >= t) for uniform scores; rounded ones are flagged from half a step
        # below.
        step = 0 if digits is None else 0.5 * 10**-digits
        found.append(1 - max(threshold - step, 0))
    return np.asarray(found)


@pytest.mark.parametrize(
    ("units", "delta", "per_lesion", "digits"),
    [
        (45, 0.1, 1, None),
        (150, 0.05, 1, None),
        (150, 0.1, 1, 2),
        (90, 0.1, 3, None),
    ],
)
def test_coverage_of_the_guarantee_in_2000_draws(
    units: int, delta: float, per_lesion: int, digits: int | None
) -> None:
    true = drawn_sensitivities(
        units=units, delta=delta, per_lesion=per_lesion, digits=digits
    )
    violations = float(np.mean(true < 0.95))
    if per_lesion == 1 and digits is None:
        # P(the (k+1)-th lowest of `units` uniform scores lies above 0.05), exactly.
        misses = guarantee_threshold(
            np.ones(units), np.arange(units) / units, target=0.95, delta=delta
        ).allowed_misses
        exact = binom.cdf(misses, units, 0.05)
        assert exact <= delta
        noise = np.sqrt(exact * (1 - exact) / 2000)
        assert violations == pytest.approx(exact, abs=4 * noise)
    # The allowance is the noise of 2,000 draws, three standard errors.
    assert violations <= delta + 3 * np.sqrt(delta * (1 - delta) / 2000)


def test_the_empirical_threshold_promises_no_such_thing() -> None:
    # What the guarantee is for: half of all validation sets mislead.
    rng = np.random.default_rng(2)
    true = [
        1 - choose_threshold(np.ones(100), rng.random(100), target=0.95)
        for _ in range(2000)
    ]
    assert np.mean(np.asarray(true) < 0.95) > 0.3
