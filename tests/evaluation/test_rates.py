"""Rates, prevalence and net benefit: by hand, by Bayes, and against other software."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix
from statsmodels.stats.proportion import proportion_confint

from mela_jax.evaluation.bootstrap import bootstrap
from mela_jax.evaluation.intervals import Interval, wilson
from mela_jax.evaluation.rates import Rates, at_prevalence, net_benefit_columns
from mela_jax.evaluation.scores import Predictions


def interval(value: float, low: float, high: float) -> Interval:
    return {"value": value, "low": low, "high": high}


def test_ppv_at_the_prevalences_of_the_textbook() -> None:
    # At 95 % sensitivity and 65 % specificity: 25 % at 11 %, 5 % at 2 %, 3 % at 1 %.
    se, sp = interval(0.95, 0.9, 0.98), interval(0.65, 0.62, 0.68)
    for prevalence, ppv in ((0.11, 0.2512), (0.02, 0.0525), (0.01, 0.0267)):
        row = at_prevalence(prevalence, se, sp, None)
        assert row["ppv"]["value"] == pytest.approx(ppv, abs=5e-5)
        people = 1000 * prevalence
        assert row["found"]["value"] == pytest.approx(0.95 * people)
        assert row["missed"]["value"] == pytest.approx(0.05 * people)
        assert row["flagged"]["value"] == pytest.approx(
            0.95 * people + 0.35 * (1000 - people)
        )
        assert row["missed"]["low"] == pytest.approx(0.02 * people)
        assert row["missed"]["high"] == pytest.approx(0.1 * people)


@given(
    st.floats(0.001, 0.999),
    st.floats(0.0, 1.0),
    st.floats(0.0, 1.0),
)
def test_people_add_up_and_intervals_hold_their_value(
    prevalence: float, se: float, sp: float
) -> None:
    row = at_prevalence(
        prevalence,
        interval(se, max(se - 0.1, 0), min(se + 0.1, 1)),
        interval(sp, max(sp - 0.1, 0), min(sp + 0.1, 1)),
        None,
    )
    assert row["found"]["value"] + row["missed"]["value"] == pytest.approx(
        1000 * prevalence
    )
    for name in ("ppv", "npv", "flagged", "found", "missed"):
        if row[name]["value"] is not None:
            assert row[name]["low"] <= row[name]["value"] + 1e-9
            assert row[name]["value"] <= row[name]["high"] + 1e-9
    flagged = row["flagged"]["value"]
    if flagged > 1e-9:
        assert row["ppv"]["value"] == pytest.approx(row["found"]["value"] / flagged)


def test_nobody_flagged_has_no_ppv() -> None:
    row = at_prevalence(0.1, interval(0, 0, 0.1), interval(1, 0.9, 1), None)
    assert row["ppv"]["value"] is None
    assert row["flagged"]["value"] == 0


def test_intervals_of_rates_follow_the_rule() -> None:
    rng = np.random.default_rng(0)
    n = 400
    label = (rng.random(n) < 0.4).astype(int)
    score = rng.random(n)
    names = [str(k) for k in range(n)]
    for lesions in (names, [str(k // 2) for k in range(n)]):
        split = Predictions(names, lesions, label, score)
        rates = Rates(split)
        flagged = score >= 0.3
        rates.add_decision("partly", flagged, label == 1)
        rates.add("all", np.ones(n, bool), among=label == 1)
        rates.add("nothing", flagged, among=np.zeros(n, bool))
        drawn = bootstrap(split, num_bootstrap=2000, seed=0, columns=rates.columns)
        of = int(label.sum())
        by_image = wilson(int(flagged[label == 1].sum()), of)
        assert rates.by_image("partly")["sensitivity"] == by_image
        found = rates.by_lesion("partly", drawn)["sensitivity"]
        assert rates.interval("nothing", drawn)["value"] is None
        if lesions is names:
            assert found == by_image
            assert rates.interval("all", drawn) == wilson(of, of)
            continue
        assert found["value"] == by_image["value"]
        # Labels differ within these lesions, so images are nearly independent.
        assert found["low"] == pytest.approx(by_image["low"], abs=0.02)
        of_lesions = len({x for x, y in zip(lesions, label, strict=True) if y})
        assert rates.interval("all", drawn) == wilson(of_lesions, of_lesions)


def test_a_handful_of_lesions_are_the_trials() -> None:
    # 12 images of 3 lesions, 6 of them flagged: Wilson's for 1.5 of 3.
    lesions = [str(k // 4) for k in range(12)] + ["other"]
    label, score = np.r_[np.ones(12, int), 0], np.r_[np.tile([0.2, 0.8], 6), 0.1]
    split = Predictions([str(k) for k in range(13)], lesions, label, score)
    rates = Rates(split)
    rates.add("flagged", score >= 0.5, among=label == 1)
    drawn = bootstrap(split, num_bootstrap=50, seed=0, columns=rates.columns)
    low, high = proportion_confint(1.5, 3, method="wilson")
    assert rates.interval("flagged", drawn) == pytest.approx(
        {"value": 0.5, "low": low, "high": high}
    )
    assert not rates.varies("flagged")


def test_net_benefit_by_hand() -> None:
    # Vickers and Elkin: TP / n - FP / n * pt / (1 - pt), at 20 %: odds 1/4.
    label = np.array([1, 1, 0, 0, 0])
    probability = np.array([0.9, 0.1, 0.3, 0.2, 0.05])
    columns = net_benefit_columns(label, probability, [0.2, 0.5])
    means = [column.mean() for column in columns.values()]
    assert means == pytest.approx([1 / 5 - 2 / 5 / 4, 1 / 5])


def test_net_benefit_agrees_with_scikit_learns_counts() -> None:
    rng = np.random.default_rng(1)
    probability = rng.random(300)
    label = (rng.random(300) < probability).astype(int)
    at = [0.01, 0.11, 0.5]
    found = net_benefit_columns(label, probability, at)
    for threshold, column in zip(at, found.values(), strict=True):
        _, fp, _, tp = confusion_matrix(label, probability >= threshold).ravel()
        wanted = tp / 300 - fp / 300 * threshold / (1 - threshold)
        assert column.mean() == pytest.approx(wanted)
