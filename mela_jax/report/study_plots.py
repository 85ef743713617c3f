"""The plots of a study: what each axis does, what size and time buy, what was tried."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullFormatter, PercentFormatter

from mela_jax.evaluation.study_runs import are_numbers
from mela_jax.report.plots import BLACK, BLUE, GREY, VERMILION, WIDTH

_LABELS = {
    "roc_auc": "ROC-AUC on test",
    "specificity": "Specificity on test",
}
# Above this ratio of the largest cost to the smallest, the axis is logarithmic.
_WIDE = 8


def draw_effect(effect: Mapping[str, Any], names: Sequence[str], title: str) -> Figure:
    """Draw the mean of each level of an axis, with its 95 % interval.

    Args:
        effect: of `compare.main_effects`, with levels.
        names: of the levels, as they are shown.
        title: figure title.
    """
    levels = effect["levels"]
    figure = Figure(figsize=(WIDTH, 1.6 + 0.42 * len(levels)), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(1, 2, sharey=True)
    heights = np.arange(len(levels))[::-1]
    for axes, figure_name, colour, marker in zip(
        panels, _LABELS, (VERMILION, BLUE), ("o", "s"), strict=True
    ):
        for height, level in zip(heights, levels, strict=True):
            _draw_interval(axes, level[figure_name], height, colour, marker)
        axes.set_xlabel(f"{_LABELS[figure_name]},\n95 % interval")
        axes.grid(alpha=0.25, axis="x")
        axes.margins(x=0.1)
        axes.locator_params(axis="x", nbins=4)
    panels[1].xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    panels[0].set_yticks(heights, list(names))
    panels[0].set_ylim(-0.6, len(levels) - 0.4)
    return figure


def _draw_interval(
    axes: Axes, figure: Mapping[str, Any], height: float, colour: str, marker: str
) -> None:
    if figure["value"] is None:
        return
    axes.plot([figure["low"], figure["high"]], [height] * 2, color=colour)
    axes.plot(figure["value"], height, marker=marker, markersize=6, color=colour)


def draw_front(
    points: Sequence[Mapping[str, Any]], on_front: Sequence[int], label: str, title: str
) -> Figure:
    """Draw specificity against a cost, with the Pareto front as steps.

    Args:
        points: each {"number", "cost", "specificity": interval}, at least one.
        on_front: indices of the points on the front.
        label: of the cost axis, with its unit.
        title: figure title.
    """
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    axes = figure.add_subplot()
    costs = [p["cost"] for p in points]
    is_wide = min(costs) > 0 and max(costs) / min(costs) > _WIDE
    at = _beside_each_other(costs, logarithmic=is_wide)
    front = sorted(on_front, key=lambda i: costs[i])
    axes.step(
        [at[i] for i in front],
        [points[i]["specificity"]["value"] for i in front],
        where="post",
        color=BLACK,
        linewidth=1,
        linestyle="--",
        label="front: nothing cheaper is more specific",
    )
    for held, colour, marker, name in (
        (True, VERMILION, "o", "on the front"),
        (False, BLUE, "s", "not on it"),
    ):
        shown = [i for i in range(len(points)) if (i in on_front) == held]
        if not shown:
            continue
        rates = [points[i]["specificity"] for i in shown]
        axes.errorbar(
            [at[i] for i in shown],
            [r["value"] for r in rates],
            yerr=[
                [r["value"] - r["low"] for r in rates],
                [r["high"] - r["value"] for r in rates],
            ],
            color=colour,
            marker=marker,
            linestyle="none",
            elinewidth=0.9,
            capsize=2,
            label=f"{name}, 95 % interval",
        )
        for i in shown:
            axes.annotate(
                str(points[i]["number"]),
                (at[i], points[i]["specificity"]["value"]),
                xytext=(3, 3),
                textcoords="offset points",
                fontsize="small",
            )
    if is_wide:
        axes.set_xscale("log")
    if min(costs) >= 1000:
        axes.xaxis.set_major_formatter(EngFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.15)
    axes.set_xlabel(label)
    axes.set_ylabel("Specificity on test at the frozen threshold")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_title(title)
    axes.grid(alpha=0.25)
    figure.legend(loc="outside lower center", fontsize="small")
    return figure


def _beside_each_other(costs: Sequence[float], *, logarithmic: bool) -> list[float]:
    """Return where points are drawn: those of one cost next to each other."""
    scaled = np.log(costs) if logarithmic else np.asarray(costs, dtype=np.float64)
    step = 0.02 * float(np.ptp(scaled))
    at = scaled.copy()
    for value in np.unique(scaled):
        held = np.flatnonzero(scaled == value)
        at[held] += step * (np.arange(held.size) - (held.size - 1) / 2)
    return (np.exp(at) if logarithmic else at).tolist()


def draw_tuning(
    axis: str,
    values: Sequence[Any],
    figures: Sequence[float],
    chosen: int,
    *,
    label: str,
    title: str,
) -> Figure:
    """Draw the validation figure of every setting against one tuned field.

    Args:
        axis: name of the field.
        values: of the field, one per setting; texts are drawn as categories.
        figures: on validation, one per setting.
        chosen: index of the chosen setting.
        label: name of the figure.
        title: figure title.
    """
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    axes = figure.add_subplot()
    numeric = are_numbers(values)
    at: Sequence[Any] = values if numeric else [str(v) for v in values]
    others = [i for i in range(len(values)) if i != chosen]
    axes.scatter(
        [at[i] for i in others], [figures[i] for i in others], color=BLUE, label="tried"
    )
    axes.scatter(
        [at[chosen]],
        [figures[chosen]],
        color=VERMILION,
        edgecolor=BLACK,
        marker="D",
        s=60,
        label="chosen",
        zorder=3,
    )
    if numeric and min(values) > 0 and max(values) / min(values) > _WIDE:
        axes.set_xscale("log")
    axes.set_xlabel(axis)
    # A long name does not fit beside the axis in one line.
    axes.set_ylabel("\n".join(textwrap.wrap(f"{label} on validation", 36)))
    axes.set_title(title)
    axes.grid(alpha=0.25)
    axes.axhline(figures[chosen], color=GREY, linewidth=1, linestyle=":")
    figure.legend(loc="outside lower center", fontsize="small", ncols=2)
    return figure
