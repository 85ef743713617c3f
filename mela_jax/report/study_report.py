"""The report of a study: results.json, report.html, report.md and its plots.

The words are in templates/study_*.j2, once for both pages.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from mela_jax.atomic import write_atomically, write_text
from mela_jax.evaluation.study_figures import TESTED
from mela_jax.report import study_words as words
from mela_jax.report.page import Plot
from mela_jax.report.study_plots import effect_plots, front_plots, tuning_plots
from mela_jax.report.wording import make_environment


def write_study_report(folder: Path, results: Mapping[str, Any]) -> Path:
    """Write what a study has found so far and return the path of report.html.

    `results` are those of `study_results`.

    Raises:
        UserError: the folder cannot be written to.
    """
    plots: dict[str, dict[str, Plot]] = {}
    if results["kind"] == "grid":
        plots = {"effects": effect_plots(results), "fronts": front_plots(results)}
    else:
        label = words.FIGURE_NAMES[results["select_by"]]
        plots = {"tuned": tuning_plots(results, label)}
    for drawn in plots.values():
        for name, plot in drawn.items():
            write_atomically(folder / f"{name}.png", plot.png)
    for suffix in ("md", "html"):
        text = _render(results, plots, suffix)
        write_text(folder / f"report.{suffix}", text)
    # allow_nan=False: NaN is not JSON, and no figure may be one.
    content = json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(folder / "results.json", content + "\n")
    return folder / "report.html"


def _render(
    results: Mapping[str, Any], plots: Mapping[str, Mapping[str, Plot]], suffix: str
) -> str:
    """Return the report as one HTML file, or as Markdown with plots beside it."""
    rows = results.get("rows") or results["tried"]
    found = results.get("comparisons")
    environment = make_environment().overlay(autoescape=suffix == "html")
    environment.filters.update(
        cells=words.setting_cells,
        difference=words.difference_text,
        figures=words.figure_cells,
        setting=words.setting_text,
        short=words.short_name,
        value=words.value_text,
        zip=zip,
    )
    text = environment.get_template(f"study.{suffix}.j2").render(
        r=results,
        **plots,
        figure_names=words.FIGURE_NAMES,
        fields=list(dict.fromkeys(field for row in rows for field in row["setting"])),
        half_widths={
            name: median((row[name]["high"] - row[name]["low"]) / 2 for row in found)
            for name in TESTED
        }
        if found
        else {},
    )
    if suffix == "html":
        return text
    # Plain text is searched and compared: nothing invisible in it.
    return re.sub(r"\n{3,}", "\n\n", text.replace("\N{WORD JOINER}", ""))
