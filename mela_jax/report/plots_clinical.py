"""Plots of what the scores mean in use: calibration, net benefit, groups, classes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from mela_jax.report.plots import BLACK, BLUE, GREY, VERMILION, WIDTH


def draw_reliability(calibration: Mapping[str, Any], *, title: str) -> Figure:
    """Draw what share of each bin of probabilities turned out to be melanoma.

    Args:
        calibration: "score" and "calibrated" (or None), each with the "bins" of
            `calibration.calibration_figures`.
        title: figure title.
    """
    figure = Figure(figsize=(WIDTH, 5.9), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", label="ideal")
    for key, label, colour, marker, line in (
        ("score", "the model's own score", BLUE, "s", "--"),
        ("calibrated", "calibrated on validation", VERMILION, "o", "-"),
    ):
        if calibration[key] is None:
            continue
        bins = calibration[key]["bins"]
        at = [b["mean_probability"] for b in bins]
        observed = [b["observed"]["value"] for b in bins]
        axes.errorbar(
            at,
            observed,
            yerr=[
                [b["observed"]["value"] - b["observed"]["low"] for b in bins],
                [b["observed"]["high"] - b["observed"]["value"] for b in bins],
            ],
            color=colour,
            marker=marker,
            markersize=5,
            linestyle=line,
            linewidth=1.4,
            elinewidth=0.9,
            capsize=2,
            label=f"{label}, ECE {calibration[key]['ece']:.3f}",
        )
    axes.set_xlabel("Probability given (mean of a bin)")
    axes.set_ylabel("Share that was melanoma, 95 % interval")
    axes.set_title(title)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_box_aspect(1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(alpha=0.25)
    figure.legend(loc="outside lower center", fontsize="small")
    return figure


def draw_decision_curve(curve: Mapping[str, Sequence[float]], *, title: str) -> Figure:
    """Draw net benefit against the threshold probability.

    Args:
        curve: "threshold", "net_benefit", "low", "high" and "treat_all", of one length.
        title: figure title.
    """
    figure = Figure(figsize=(WIDTH, 4.9), layout="constrained")
    axes = figure.add_subplot()
    at = curve["threshold"]
    axes.fill_between(
        at,
        curve["low"],
        curve["high"],
        color=VERMILION,
        alpha=0.2,
        linewidth=0,
        label="95 % band",
    )
    axes.plot(at, curve["net_benefit"], color=VERMILION, linewidth=2, label="model")
    axes.plot(at, curve["treat_all"], color=BLUE, linestyle="--", label="examine all")
    axes.axhline(0, color=BLACK, linewidth=1, linestyle=":", label="examine none")
    top = max(*curve["high"], *curve["treat_all"], 0.01)
    axes.set_ylim(-0.25 * top, 1.1 * top)
    axes.set_xlim(0, max(at))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("Probability of melanoma from which one would examine")
    axes.set_ylabel("Net benefit (melanomas found per person)")
    axes.set_title(title)
    axes.grid(alpha=0.25)
    figure.legend(loc="outside lower center", fontsize="small", ncols=2)
    return figure


def draw_subgroups(
    rows: Sequence[Mapping[str, Any]],
    whole: Mapping[str, Any],
    *,
    target: float,
    title: str,
) -> Figure:
    """Draw sensitivity and specificity of every group with their intervals.

    Args:
        rows: of `subgroups.group_figures`, at least one.
        whole: "sensitivity" and "specificity" of the whole test set, drawn as lines.
        target: sensitivity that was aimed at.
        title: figure title.
    """
    figure = Figure(figsize=(WIDTH, 1.7 + 0.235 * len(rows)), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(1, 2, sharey=True)
    heights = np.arange(len(rows))[::-1]
    for axes, name, colour in zip(
        panels, ("sensitivity", "specificity"), (VERMILION, BLUE), strict=True
    ):
        few = "few_positives" if name == "sensitivity" else "few_negatives"
        for height, row in zip(heights, rows, strict=True):
            rate = row[name]
            if rate["value"] is None:
                continue
            axes.plot([rate["low"], rate["high"]], [height] * 2, color=colour)
            axes.plot(
                rate["value"],
                height,
                marker="o",
                markersize=5,
                color=colour,
                markerfacecolor="white" if row[few] else colour,
            )
        axes.axvline(whole[name]["value"], color=GREY, linewidth=1, linestyle="--")
        axes.set_xlim(-0.03, 1.03)
        axes.set_xticks([0, 0.5, 1])
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_xlabel(f"{name.capitalize()}, 95 % interval")
        axes.grid(alpha=0.25, axis="x")
    panels[0].axvline(target, color=BLACK, linewidth=1, linestyle=":")
    panels[0].set_yticks(heights, [f"{r['by']}: {r['group']}" for r in rows])
    panels[0].tick_params(axis="y", labelsize="small")
    panels[0].set_ylim(-0.7, len(rows) - 0.3)
    return figure


def draw_confusion(multiclass: Mapping[str, Any], *, title: str) -> Figure:
    """Draw how often each true class is decided as each class.

    Shades are shares of the true class, dark for many, in one hue, so that they are
    told apart without colours; the counts stand in the cells.

    Args:
        multiclass: of `multiclass.class_figures`.
        title: figure title.
    """
    names = list(multiclass["classes"])
    counts = np.asarray(multiclass["confusion"])
    if multiclass["tied"]:
        columns = [*names, "tied"]
    else:
        columns, counts = names, counts[:, :-1]
    # A diagnosis without an image has a row of zeros.
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(WIDTH, 5.6), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    size = "medium" if len(columns) <= 8 else "small"
    for (row, column), count in np.ndenumerate(counts):
        dark = share[row, column] > 0.5
        axes.text(
            column,
            row,
            f"{count}",
            ha="center",
            va="center",
            color="white" if dark else BLACK,
            fontsize=size,
        )
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("Diagnosis with the highest score")
    axes.set_ylabel("True diagnosis")
    axes.set_title(title)
    bar = figure.colorbar(image, ax=axes, format=PercentFormatter(1.0))
    bar.set_label("Share of the true diagnosis")
    return figure
