"""The reporting checklist: every item of STARD-AI, and no number that there is not."""

import re
from typing import Any

import pytest

from mela_jax.report.checklist import ABOUT, Item, fill_checklist
from tests.evaluation.models import draw_models, evaluated

# Main items of each guideline, and those that STARD-AI and TRIPOD+AI divide.
LAST = {"STARD-AI": 40, "TRIPOD+AI": 27, "CLAIM": 44}
PARTS = {
    "STARD-AI": {15: "abcd", 16: "abc", 17: "ab", 26: "ab", 40: "ab"},
    "TRIPOD+AI": {3: "abc", 5: "ab", 6: "abc", 8: "abc", 9: "abc", 12: "abcdefg"}
    | {18: "abcdef", 20: "abc", 23: "ab", 27: "abc"},
    "CLAIM": {},
}


@pytest.fixture(scope="module")
def metrics() -> dict[str, Any]:
    models = evaluated({"student": draw_models()["student"]})
    return {"models": models}


def numbers(items: list[Item], guideline: str) -> set[str]:
    found: set[str] = set()
    for item in items:
        for part in item.refs.split("; "):
            name, _, cited = part.partition(" ")
            if name == guideline:
                found |= set(cited.split(", "))
    return found


def test_every_item_of_stard_ai_is_there_and_every_number_exists(
    metrics: dict[str, Any],
) -> None:
    items = fill_checklist(metrics, "student", {})
    for guideline, parts in PARTS.items():
        allowed = {
            f"{n}{letter}"
            for n in range(1, LAST[guideline] + 1)
            for letter in parts.get(n, "") or ("",)
        }
        cited = numbers(items, guideline)
        assert cited <= allowed, guideline
        if guideline == "STARD-AI":
            assert cited == allowed


def test_what_is_told_is_shown_and_what_nobody_knows_is_missing(
    metrics: dict[str, Any],
) -> None:
    bare = fill_checklist(metrics, "student", {})
    told = fill_checklist(metrics, "student", {key: f"<{key}>" for key in ABOUT})
    answers = " ".join(item.answer or "" for item in told)
    # The title heads the page.
    assert {key for key in ABOUT if f"<{key}>" not in answers} == {"title"}
    assert {i.refs for i in bare if i.answer is None} > {
        i.refs for i in told if i.answer is None
    }
    severity = next(i for i in told if i.refs == "STARD-AI 26a")
    assert severity.answer is None
    cut = next(i for i in bare if "15c" in i.refs)
    assert cut.answer and re.match(r"0\.\d+, empirical policy", cut.answer)
