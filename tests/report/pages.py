"""A written report, as a test reads it."""

import json
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from mela_jax.evaluation.scores import (
    Predictions,
)
from mela_jax.report.main_report import write_report
from tests.evaluation.models import (
    SETTINGS,
    evaluated,
)

HISTORY = [
    {
        "epoch": epoch,
        "train/loss": 1 / epoch,
        "val/loss": 1.2 / epoch,
        "val/roc_auc": 1 - 0.4 / epoch,
        "val/pr_auc": 0.7 - 0.4 / epoch,
        "val/specificity_at_target_0.9": 0.6 - 0.4 / epoch,
        "learning_rate": 1e-3,
    }
    for epoch in range(1, 5)
]


class Page(HTMLParser):
    """What a reader sees of a page, and what it would load."""

    def __init__(self, path: Path):
        super().__init__()
        self.words: list[str] = []
        self.pictures: list[str] = []
        self.captions: list[str] = []
        self.loads: list[str] = []
        self.open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(" ".join(self.words).split())
        self.text = self.text.replace("\N{WORD JOINER}", "")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        values = dict(attrs)
        if tag == "img":
            self.pictures.append(values["src"] or "")
            self.captions.append(values["alt"] or "")
        links = [values.get(name) for name in ("src", "href")]
        self.loads += [x for x in links if x and not x.startswith(("#", "data:image/"))]
        if tag in ("script", "link", "iframe"):
            self.loads.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)


def report(
    folder: Path,
    predictions: dict[str, dict[str, Predictions]],
    *,
    made_up: bool = False,
    histories: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    **more: Any,
) -> tuple[dict[str, Any], Page]:
    """Write a report and read back its metrics and its page."""
    write_report(
        folder,
        models=evaluated(predictions),
        predictions=predictions,
        settings=SETTINGS,
        histories={name: HISTORY for name in predictions}
        if histories is None
        else histories,
        made_up=made_up,
        run={"config": "configs/tiny.py", "odd": "a|b\n<script>"},
        **more,
    )
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return metrics, Page(folder / "report.html")
