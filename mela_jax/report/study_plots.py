"""The plots of a study: what each axis does, what size and time buy, what was tried.

Each function takes what results.json holds, and returns the name of each file, without
suffix, with its plot.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullFormatter, PercentFormatter
from scipy.stats import rankdata

from mela_jax.evaluation.intervals import FloatArray
from mela_jax.evaluation.study_runs import are_numbers
from mela_jax.report.page import Plot
from mela_jax.report.plots import BLACK, BLUE, GREY, VERMILION, WIDTH, png_bytes
from mela_jax.report.study_words import value_text

# Above this ratio of the largest cost to the smallest, the axis is logarithmic.
_WIDE = 8
_COSTS = {
    "params": ("Size", "parameters", "Parameters of the student"),
    "flops": ("Arithmetic", "FLOPs", "FLOPs per image (a multiply-add is two)"),
    "latency": (
        "Latency on the host",
        "latency",
        "Median latency of the float32 file, XNNPACK (ms)",
    ),
}


def effect_plots(results: Mapping[str, Any]) -> dict[str, Plot]:
    """Draw the mean of each level of each axis of a grid, with its 95 % interval."""
    plots = {}
    for effect in results["main_effects"]:
        levels, count = effect["levels"], effect["combinations"]
        if not levels:
            continue
        figure, title = _figure(results, effect["axis"], 1.6 + 0.42 * len(levels))
        figure.suptitle(title)
        panels = figure.subplots(1, 2, sharey=True)
        heights = np.arange(len(levels))[::-1]
        for axes, name, label, colour, marker in (
            (panels[0], "roc_auc", "ROC-AUC", VERMILION, "o"),
            (panels[1], "specificity", "Specificity", BLUE, "s"),
        ):
            mean, error = _intervals([level[name] for level in levels])
            axes.errorbar(mean, heights, xerr=error, fmt=marker, color=colour)
            axes.set_xlabel(f"{label} on test,\n95 % interval")
            axes.grid(alpha=0.25, axis="x")
            axes.margins(x=0.1)
            axes.locator_params(axis="x", nbins=4)
        panels[1].xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        panels[0].set_yticks(heights, [value_text(level["level"]) for level in levels])
        panels[0].set_ylim(-0.6, len(levels) - 0.4)
        seeds = len(effect["seeds"])
        same = f"Each level averaged over the same {count} settings of the other axes"
        plots[f"effect_{effect['axis'].replace('.', '_')}"] = Plot(
            title,
            f"{'One setting at each level' if count == 1 else same}, {seeds}"
            f" seed{'s' * (seeds != 1)}.",
            png_bytes(figure),
        )
    return plots


def front_plots(results: Mapping[str, Any]) -> dict[str, Plot]:
    """Draw specificity against each cost that differs in a grid, with the front."""
    plots = {}
    for cost, (what, word, label) in _COSTS.items():
        front = results["fronts"][cost]
        if len({point["cost"] for point in front["points"]}) < 2:
            continue
        figure, title = _figure(results, f"Specificity against {word}", 4.6)
        axes = figure.add_subplot(xlabel=label, title=title)
        _draw_front(axes, front["points"], front["on_front"])
        figure.legend(loc="outside lower center", fontsize="small")
        plots[f"front_{cost}"] = Plot(
            title if results["made_up_data"] else f"{what}: {title}",
            "Numbers are rows of the table; rows of one cost are drawn side by side. "
            "Up and left is better. The front goes by the means; where intervals "
            "overlap, it may be luck.",
            png_bytes(figure),
        )
    return plots


def _draw_front(
    axes: Axes, points: Sequence[Mapping[str, Any]], on_front: Sequence[int]
) -> None:
    """Draw points {"number", "cost", "specificity"}, and the front by their numbers."""
    costs = np.asarray([point["cost"] for point in points], dtype=np.float64)
    value, error = _intervals([point["specificity"] for point in points])
    is_wide = _is_wide(costs)
    # Points of one cost are drawn next to each other.
    scaled = np.log(costs) if is_wide else costs
    at = rankdata(scaled, method="ordinal") - rankdata(scaled)
    at = scaled + 0.02 * np.ptp(scaled) * at
    at = np.exp(at) if is_wide else at
    is_on = np.isin([point["number"] for point in points], on_front)
    steps = np.flatnonzero(is_on)[np.argsort(costs[is_on], kind="stable")]
    axes.step(
        at[steps],
        value[steps],
        where="post",
        color=BLACK,
        linewidth=1,
        linestyle="--",
        label="front: nothing cheaper is more specific",
    )
    for held, colour, marker, name in (
        (is_on, VERMILION, "o", "on the front"),
        (~is_on, BLUE, "s", "not on it"),
    ):
        if held.any():
            axes.errorbar(
                at[held],
                value[held],
                yerr=error[:, held],
                color=colour,
                fmt=marker,
                elinewidth=0.9,
                capsize=2,
                label=f"{name}, 95 % interval",
            )
    for point, place in zip(points, zip(at, value, strict=True), strict=True):
        axes.annotate(
            str(point["number"]),
            place,
            xytext=(3, 3),
            textcoords="offset points",
            fontsize="small",
        )
    if is_wide:
        axes.set_xscale("log")
    if costs.min() >= 1000:
        axes.xaxis.set_major_formatter(EngFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.15)
    axes.set_ylabel("Specificity on test at the frozen threshold")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(alpha=0.25)


def tuning_plots(results: Mapping[str, Any], label: str) -> dict[str, Plot]:
    """Draw the validation figure, named `label`, against each field that was tuned."""
    tried = [row for row in results["tried"] if row["complete"]]
    if len(tried) < 2:
        return {}
    chosen = np.asarray([r["number"] == results["chosen"]["number"] for r in tried])
    figures = np.asarray([row["val"][results["select_by"]] for row in tried])
    plots = {}
    for field in dict.fromkeys(field for row in tried for field in row["setting"]):
        values = [row["setting"].get(field, "") for row in tried]
        numeric = are_numbers(values)
        at = np.asarray(values if numeric else [str(value) for value in values])
        if len(set(at)) < 2:
            continue
        figure, title = _figure(results, field, 3.6)
        # A long name does not fit beside the axis in one line.
        beside = "\n".join(textwrap.wrap(f"{label} on validation", 36))
        axes = figure.add_subplot(xlabel=field, ylabel=beside, title=title)
        axes.scatter(at[~chosen], figures[~chosen], color=BLUE, label="tried")
        axes.scatter(
            at[chosen],
            figures[chosen],
            color=VERMILION,
            edgecolor=BLACK,
            marker="D",
            s=60,
            label="chosen",
            zorder=3,
        )
        if numeric and _is_wide(at):
            axes.set_xscale("log")
        axes.grid(alpha=0.25)
        axes.axhline(figures[chosen].item(), color=GREY, linewidth=1, linestyle=":")
        figure.legend(loc="outside lower center", fontsize="small", ncols=2)
        plots[f"tuned_{field.replace('.', '_')}"] = Plot(
            title,
            "Every complete setting. The other fields differ from point to point, so a "
            "trend here is a hint, not a finding.",
            png_bytes(figure),
        )
    return plots


def _figure(
    results: Mapping[str, Any], title: str, height: float
) -> tuple[Figure, str]:
    """Return an empty figure, and its title with what every plot must begin with."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, f"{'MADE-UP LESIONS: ' * results['made_up_data']}{title}"


def _is_wide(values: FloatArray) -> bool:
    return bool(values.min() > 0 and values.max() / values.min() > _WIDE)


def _intervals(figures: Sequence[Mapping[str, Any]]) -> tuple[FloatArray, FloatArray]:
    """Return values, [N], and how far their intervals go down and up, [2, N]."""
    value, low, high = (
        np.asarray([figure[key] for figure in figures], dtype=np.float64)
        for key in ("value", "low", "high")
    )
    return value, np.stack([value - low, high - value])
