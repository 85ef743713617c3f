"""Figures in words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mela_jax.report.words import hundredths, of_hundred, rest


@pytest.mark.parametrize(
    ("value", "flagged", "missed"),
    [
        (0.925, "about 93", "about 7"),
        (0.145, "about 15", "about 85"),
        (0.999, "more than 99", "fewer than 1"),
        (1.0, "all", "none"),
        (0.0, "none", "all"),
    ],
)
def test_what_is_flagged_and_what_is_missed(
    value: float, flagged: str, missed: str
) -> None:
    figure = {"value": value, "low": 0.0, "high": 1.0}
    assert of_hundred(figure) == f"{flagged} (0 to 100)"
    assert of_hundred(rest(figure)) == f"{missed} (0 to 100)"


@given(st.integers(1, 400), st.integers(0, 400))
def test_both_add_up_to_a_hundred(n: int, hits: int) -> None:
    figure = {"value": min(hits, n) / n, "low": 0.0, "high": 1.0}
    texts = [of_hundred(figure), of_hundred(rest(figure))]
    counts = [int(t.split()[1]) for t in texts if t.startswith("about")]
    if len(counts) == 2:
        assert sum(counts) == 100
        assert counts[0] == hundredths(figure["value"])
