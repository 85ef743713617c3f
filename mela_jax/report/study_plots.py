"""The plots of a study: what each axis does, what size and time buy, what was tried."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullFormatter, PercentFormatter

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
    """Draw the mean of each level of each axis, with its 95 % interval.

    Args:
        results: of a grid, as results.json holds them.

    Returns:
        Name of the file, without suffix -> plot.
    """
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
            for height, level in zip(heights, levels, strict=True):
                mean = level[name]
                if mean["value"] is None:
                    continue
                axes.plot([mean["low"], mean["high"]], [height] * 2, color=colour)
                axes.plot(
                    mean["value"], height, marker=marker, markersize=6, color=colour
                )
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
    """Draw specificity against each cost that differs, with the Pareto front as steps.

    Args:
        results: of a grid, as results.json holds them.

    Returns:
        Name of the file, without suffix -> plot.
    """
    plots = {}
    for cost, (what, word, label) in _COSTS.items():
        front = results["fronts"][cost]
        if len({point["cost"] for point in front["points"]}) < 2:
            continue
        figure, title = _figure(results, f"Specificity against {word}", 4.6)
        axes = figure.add_subplot()
        _draw_front(axes, front["points"], front["on_front"])
        axes.set_xlabel(label)
        axes.set_title(title)
        figure.legend(loc="outside lower center", fontsize="small")
        plots[f"front_{cost}"] = Plot(
            title if results["made_up_data"] else f"{what}: {title}",
            "Numbers are rows of the table; rows of one cost are drawn side by side. Up "
            "and left is better. The front goes by the means; where intervals overlap, "
            "it may be luck.",
            png_bytes(figure),
        )
    return plots


def _draw_front(
    axes: Axes, points: Sequence[Mapping[str, Any]], on_front: Sequence[int]
) -> None:
    """Draw points {"number", "cost", "specificity"}, and the front by their numbers."""
    costs = np.asarray([point["cost"] for point in points], dtype=np.float64)
    is_wide = costs.min() > 0 and costs.max() / costs.min() > _WIDE
    # Points of one cost are drawn next to each other.
    scaled = np.log(costs) if is_wide else costs
    at = scaled.copy()
    for value in np.unique(scaled):
        held = np.flatnonzero(scaled == value)
        at[held] += 0.02 * np.ptp(scaled) * (np.arange(held.size) - (held.size - 1) / 2)
    at = np.exp(at) if is_wide else at
    value, low, high = (
        np.asarray([point["specificity"][key] for point in points])
        for key in ("value", "low", "high")
    )
    on = np.isin([point["number"] for point in points], on_front)
    steps = np.flatnonzero(on)[np.argsort(costs[on], kind="stable")]
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
        (on, VERMILION, "o", "on the front"),
        (~on, BLUE, "s", "not on it"),
    ):
        if held.any():
            axes.errorbar(
                at[held],
                value[held],
                yerr=[(value - low)[held], (high - value)[held]],
                color=colour,
                marker=marker,
                linestyle="none",
                elinewidth=0.9,
                capsize=2,
                label=f"{name}, 95 % interval",
            )
    for i, point in enumerate(points):
        axes.annotate(
            str(point["number"]),
            (at[i], value[i]),
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
    """Draw the validation figure of every complete setting against each tuned field.

    Args:
        results: of a search, as results.json holds them.
        label: name of the figure that chooses.

    Returns:
        Name of the file, without suffix -> plot.
    """
    tried = [row for row in results["tried"] if row["complete"]]
    if len(tried) < 2:
        return {}
    chosen = [row["number"] == results["chosen"]["number"] for row in tried]
    figures = np.asarray([row["val"][results["select_by"]] for row in tried])
    plots = {}
    for field in dict.fromkeys(field for row in tried for field in row["setting"]):
        values = [row["setting"].get(field, "") for row in tried]
        if len(set(map(str, values))) < 2:
            continue
        numeric = are_numbers(values)
        at = np.asarray(values if numeric else [str(value) for value in values])
        best, others = np.asarray(chosen), ~np.asarray(chosen)
        figure, title = _figure(results, field, 3.6)
        axes = figure.add_subplot()
        axes.scatter(at[others], figures[others], color=BLUE, label="tried")
        axes.scatter(
            at[best],
            figures[best],
            color=VERMILION,
            edgecolor=BLACK,
            marker="D",
            s=60,
            label="chosen",
            zorder=3,
        )
        if numeric and min(values) > 0 and max(values) / min(values) > _WIDE:
            axes.set_xscale("log")
        axes.set_xlabel(field)
        # A long name does not fit beside the axis in one line.
        axes.set_ylabel("\n".join(textwrap.wrap(f"{label} on validation", 36)))
        axes.set_title(title)
        axes.grid(alpha=0.25)
        axes.axhline(figures[best].item(), color=GREY, linewidth=1, linestyle=":")
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
    shout = "MADE-UP LESIONS: " if results["made_up_data"] else ""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, f"{shout}{title}"
