"""The threshold really is the highest that reaches the target."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, roc_curve

from mela_jax.errors import UserError
from mela_jax.evaluation.operating_point import (
    Confusion,
    choose_threshold,
    confusion,
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
