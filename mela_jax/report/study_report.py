"""The report of a study: results.json, report.html, report.md and its plots.

The words are in templates/study_*.j2, once for both pages.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from mela_jax.atomic import write_atomically
from mela_jax.evaluation.study_figures import TESTED
from mela_jax.report import study_words as words
from mela_jax.report.page import make_environment
from mela_jax.report.study_plots import effect_plots, front_plots, tuning_plots

def write_study_report(folder: Path, results: Mapping[str, Any]) -> Path:
    """Write what a study has found so far and return the path of report.html.

    Args:
        folder: of the report.
        results: of `study_results`.

    Raises:
        UserError: the folder cannot be written to.
    """
    is_grid = results["kind"] == "grid"
    shown: dict[str, Any] = {
        "effects": effect_plots(results) if is_grid else {},
        "fronts": front_plots(results) if is_grid else {},
        "tuned": {} if is_grid else tuning_plots(results, words.FIGURE_NAMES[results["select_by"]]),
    }
    for plots in shown.values():
        for name, plot in plots.items():
            write_atomically(folder / f"{name}.png", plot.png)
    for suffix in ("md", "html"):
        text = _render(results, shown, suffix)
        write_atomically(folder / f"report.{suffix}", text.encode("utf-8"))
    # allow_nan=False: NaN is not JSON, and no figure may be one.
    content = json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(folder / "results.json", (content + "\n").encode("utf-8"))
    return folder / "report.html"


def _render(results: Mapping[str, Any], plots: Mapping[str, Any], suffix: str) -> str:
    """Return the report as one HTML file, or as Markdown with plots beside it."""
    rows = results.get("rows") or results["tried"]
    select_by = results.get("select_by")
    comparisons = results.get("comparisons") or []
    environment = make_environment().overlay(autoescape=suffix == "html")
    environment.filters.update(
        changes=words.change_text,
        cells=words.setting_cells,
        costs=words.cost_cells,
        difference=words.difference_text,
        figures=words.figure_cells,
        listed=words.list_text,
        setting=words.setting_text,
        short=words.short_name,
        value=words.value_text,
        zip=zip,
    )
    text = environment.get_template(f"study.{suffix}.j2").render(
        r=results,
        **plots,
        tested=TESTED,
        figure_names=words.FIGURE_NAMES,
        areas_and_rates=list(words.FIGURE_NAMES.values())[:6],
        fields=list(dict.fromkeys(field for row in rows for field in row["setting"])),
        half_widths={
            name: median((row[name]["high"] - row[name]["low"]) / 2 for row in found)
            for name in TESTED
            if (found := comparisons)
        },
        ranked=sorted(
            results.get("tried", ()),
            key=lambda row: -row["val"][select_by] if row["val"] else 1.0,
        ),
    )
    # Plain text is searched and compared: nothing invisible in it.
    return (
        text
        if suffix == "html"
        else re.sub(r"\n{3,}", "\n\n", text.replace("\N{WORD JOINER}", ""))
    )
