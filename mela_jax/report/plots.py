"""The report's plots: one function each, from scores to a matplotlib Figure.

Colours are those of Okabe and Ito, told apart with every common colour blindness, and
each curve also has a line style or a hatch of its own. Figures are made without
pyplot, so nothing global is touched and nothing needs a screen.
"""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator, PercentFormatter
from sklearn.metrics import precision_recall_curve, roc_curve
from statsmodels.stats.proportion import proportion_confint

from mela_jax.evaluation.intervals import CONFIDENCE, Interval, wilson
from mela_jax.evaluation.operating_point import Confusion, confusion
from mela_jax.evaluation.scores import Predictions

BLUE, VERMILION, GREEN = "#0072B2", "#D55E00", "#009E73"
ORANGE, PURPLE, BLACK, GREY = "#E69F00", "#CC79A7", "#000000", "#767676"
SKY = "#56B4E9"
# Of matplotlib: a name, or an offset and the lengths of dashes and gaps.
LineStyle = str | tuple[int, tuple[int, ...]]
# Colour, line style, marker.
Style = tuple[str, LineStyle, str]

# Scores nearer to 0 or 1 than this are drawn at the edge of a score axis.
_EDGE = 1e-4
_TICKS = {1e-4: "≤ 0.0001", 1e-3: "0.001", 1e-2: "0.01", 0.1: "0.1", 0.5: "0.5"} | {
    0.9: "0.9",
    0.99: "0.99",
    0.999: "0.999",
    1 - 1e-4: "≥ 0.9999",
}
_HISTOGRAM_BINS = 36
# Inches. Narrow, so that the lettering is still read on a telephone.
WIDTH = 5.4


@dataclass(frozen=True)
class Curve:
    """One model as the plots show it.

    Attributes:
        label: the model's name in legends and panel titles.
        colour: "#RRGGBB".
        linestyle: matplotlib line style, a second key beside the colour.
        marker: matplotlib marker of the operating point.
        test: its scores on the test set.
        threshold: its frozen operating point.
    """

    label: str
    colour: str
    linestyle: LineStyle
    marker: str
    test: Predictions
    threshold: float

    @property
    def confusion(self) -> Confusion:
        """Counts on the test set at the frozen threshold."""
        return confusion(self.test.label, self.test.score, self.threshold)


def png_bytes(figure: Figure) -> bytes:
    """Render a figure as PNG; the same figure gives the same bytes on one machine."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()


def draw_roc(
    curves: Sequence[Curve],
    areas: Sequence[Interval],
    *,
    band: Sequence[Mapping[str, Any]] = (),
    target: float,
    title: str,
) -> Figure:
    """Draw ROC curves with each operating point and its Wilson intervals.

    Args:
        curves: the models, the last of which the band belongs to.
        areas: ROC-AUC of each model, in the same order.
        band: rows with "sensitivity" and the "specificity" there, an interval by
            lesion, drawn as a band; empty: none.
        target: sensitivity that was aimed at, drawn as a line.
        title: figure title.
    """
    figure = _square_figure(len(curves) + 3)
    axes = figure.add_subplot()
    if band:
        axes.fill_betweenx(
            [row["sensitivity"] for row in band],
            [1 - row["specificity"]["high"] for row in band],
            [1 - row["specificity"]["low"] for row in band],
            color=curves[-1].colour,
            alpha=0.18,
            linewidth=0,
            label=f"95 % band of specificity, {curves[-1].label}",
        )
    for curve, area in zip(curves, areas, strict=True):
        false_positive_rate, sensitivity, _ = roc_curve(
            curve.test.label, curve.test.score, drop_intermediate=False
        )
        axes.plot(
            false_positive_rate,
            sensitivity,
            color=curve.colour,
            linestyle=curve.linestyle,
            linewidth=2,
            label=f"{curve.label}, AUC {_with_interval(area)}",
        )
        counts = curve.confusion
        _draw_point(
            axes,
            curve,
            wilson(counts.fp, counts.fp + counts.tn),
            wilson(counts.tp, counts.tp + counts.fn),
        )
    axes.axhline(
        target, color=GREY, linewidth=1, linestyle=(0, (1, 2)), label=_target(target)
    )
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", label="chance")
    axes.set_xlabel("False-positive rate: share of non-melanomas flagged")
    axes.set_ylabel("Sensitivity: share of melanomas flagged")
    axes.set_title(title)
    _unit_square(axes)
    _legend_below(figure, axes, title=_POINT_NOTE, columns=1)
    return figure


def draw_precision_recall(
    curves: Sequence[Curve],
    areas: Sequence[Interval],
    *,
    target: float,
    title: str,
) -> Figure:
    """Draw precision-recall curves as steps, with each operating point.

    Steps, because average precision does not interpolate between scores.

    Args:
        curves: the models, all on the same test set.
        areas: PR-AUC (average precision) of each model, in the same order.
        target: sensitivity that was aimed at, drawn as a line.
        title: figure title.
    """
    figure = _square_figure(len(curves) + 2)
    axes = figure.add_subplot()
    for curve, area in zip(curves, areas, strict=True):
        precision, recall, _ = precision_recall_curve(
            curve.test.label, curve.test.score
        )
        # scikit-learn closes the curve with a made-up point of recall 0, precision 1;
        # the precision at the first melanoma found is the one to be carried there.
        found = recall > 0
        recall, precision = recall[found], precision[found]
        axes.step(
            np.append(recall, 0.0),
            np.append(precision, precision[-1]),
            where="post",
            color=curve.colour,
            linestyle=curve.linestyle,
            linewidth=1.8,
            label=f"{curve.label}, AP {_with_interval(area)}",
        )
        counts = curve.confusion
        _draw_point(
            axes,
            curve,
            wilson(counts.tp, counts.tp + counts.fn),
            wilson(counts.tp, counts.tp + counts.fp),
        )
    prevalence = float(curves[0].test.label.mean())
    axes.axvline(
        target, color=GREY, linewidth=1, linestyle=(0, (1, 2)), label=_target(target)
    )
    axes.axhline(
        prevalence,
        color=GREY,
        linewidth=1,
        linestyle="--",
        label=f"chance = prevalence {prevalence:.1%}",
    )
    axes.set_xlabel("Recall = sensitivity: share of melanomas flagged")
    axes.set_ylabel("Precision = PPV: share of flagged that are melanoma")
    axes.set_title(title)
    _unit_square(axes)
    _legend_below(figure, axes, title=_POINT_NOTE, columns=1)
    return figure


def draw_threshold(curves: Sequence[Curve], *, target: float, title: str) -> Figure:
    """Draw sensitivity, specificity and PPV against the threshold, with Wilson bands.

    Args:
        curves: the models, one panel each.
        target: sensitivity that was aimed at, drawn as a line.
        title: figure title.
    """
    figure, panels = _panels(len(curves), title)
    limits = _score_limits(curves)
    for axes, curve in zip(panels, curves, strict=True):
        label, score = curve.test.label, curve.test.score
        # Each rate is constant for thresholds from just above one score up to the
        # next, so the observed scores are the right ends of the steps.
        thresholds = np.unique(score)
        tp = _at_or_above(score[label == 1], thresholds)
        fp = _at_or_above(score[label == 0], thresholds)
        num_positives, num_negatives = int(label.sum()), int((1 - label).sum())
        shown_at = _onto_axis(thresholds)
        for name, successes, trials, colour, style in (
            ("sensitivity", tp, np.full_like(tp, num_positives), BLUE, "-"),
            (
                "specificity",
                num_negatives - fp,
                np.full_like(fp, num_negatives),
                ORANGE,
                "--",
            ),
            ("PPV", tp, tp + fp, PURPLE, "-."),
        ):
            low, high = proportion_confint(
                successes, trials, alpha=1 - CONFIDENCE, method="wilson"
            )
            axes.fill_between(
                shown_at, low, high, step="pre", color=colour, alpha=0.2, linewidth=0
            )
            axes.step(
                shown_at,
                successes / trials,
                where="pre",
                color=colour,
                linestyle=style,
                linewidth=2,
                label=name,
            )
        axes.axhline(
            target,
            color=GREY,
            linewidth=1,
            linestyle=(0, (1, 2)),
            label=_target(target),
        )
        _draw_threshold_line(axes, curve.threshold)
        _score_axis(axes, limits, "Threshold on the score (logit scale)")
        axes.set_ylim(-0.02, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(alpha=0.25)
        _panel_title(axes, curve)
    for axes in panels:
        axes.set_ylabel("Share, with 95 % band")
    _legend_below(figure, panels[0], title=None, columns=2)
    return figure


def draw_score_histograms(curves: Sequence[Curve], *, title: str) -> Figure:
    """Draw the scores of each class as shares of that class, so that both are seen.

    Args:
        curves: the models, one panel each.
        title: figure title.
    """
    figure, panels = _panels(len(curves), title)
    limits = _score_limits(curves)
    edge_logit = math.log((1 - _EDGE) / _EDGE)
    logits = np.linspace(-edge_logit, edge_logit, _HISTOGRAM_BINS + 1)
    edges = 1 / (1 + np.exp(-logits))
    # The outer edges must hold the clipped scores in spite of rounding.
    edges[0], edges[-1] = _EDGE, 1 - _EDGE
    for axes, curve in zip(panels, curves, strict=True):
        for value, name, colour, hatch in (
            (0, "not melanoma", BLUE, "///"),
            (1, "melanoma", VERMILION, "\\\\\\"),
        ):
            of_class = _onto_axis(curve.test.score[curve.test.label == value])
            share = np.histogram(of_class, edges)[0] / of_class.size
            axes.stairs(share, edges, fill=True, color=colour, alpha=0.25)
            axes.stairs(
                share,
                edges,
                edgecolor=colour,
                linewidth=1.6,
                hatch=hatch,
                label=f"{name} (n = {of_class.size})",
            )
        _draw_threshold_line(axes, curve.threshold)
        _score_axis(axes, limits, "Score = P(melanoma), logit scale")
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        _panel_title(axes, curve)
    for axes in panels:
        axes.set_ylabel("Share of the class per bin")
    _legend_below(figure, panels[0], title=None, columns=1)
    return figure


_POINT_NOTE = "markers: operating points, 95 % intervals"


def _with_interval(area: Interval) -> str:
    return f"{area['value']:.3f} ({area['low']:.3f}–{area['high']:.3f})"


def _target(target: float) -> str:
    return f"target sensitivity {100 * target:.6g} %"


def _draw_point(axes: Axes, curve: Curve, x: Interval, y: Interval) -> None:
    """Mark the operating point with the intervals of both of its rates."""
    if x["value"] is None or y["value"] is None:
        return
    axes.errorbar(
        x["value"],
        y["value"],
        xerr=[[x["value"] - x["low"]], [x["high"] - x["value"]]],
        yerr=[[y["value"] - y["low"]], [y["high"] - y["value"]]],
        color=curve.colour,
        marker=curve.marker,
        markersize=9,
        markeredgecolor=BLACK,
        capsize=3,
        linewidth=1.2,
        zorder=5,
    )


def _draw_threshold_line(axes: Axes, threshold: float) -> None:
    axes.axvline(
        float(_onto_axis(np.asarray([threshold]))[0]),
        color=BLACK,
        linewidth=1.4,
        linestyle=":",
        label="frozen threshold",
    )


def _panels(count: int, title: str) -> tuple[Figure, Sequence[Axes]]:
    """Return a figure with `count` panels, one below another, that share an axis."""
    figure = Figure(figsize=(WIDTH, 0.9 + 3.4 * count), layout="constrained")
    figure.suptitle(title)
    return figure, list(figure.subplots(count, 1, squeeze=False, sharex=True)[:, 0])


def _square_figure(rows: int) -> Figure:
    """Return a figure for a square panel with a legend of some rows below it."""
    return Figure(figsize=(WIDTH, 5.8 + 0.2 * rows), layout="constrained")


def _unit_square(axes: Axes) -> None:
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    axes.set_box_aspect(1)
    axes.grid(alpha=0.25)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def _legend_below(
    figure: Figure, axes: Axes, *, title: str | None, columns: int
) -> None:
    """Put the legend of one panel under the figure, where it hides no curve."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        fontsize="small",
        title=title,
        ncols=columns,
    )


def _panel_title(axes: Axes, curve: Curve) -> None:
    axes.set_title(
        f"{curve.label}\nfrozen threshold {curve.threshold:.4g}", fontsize="medium"
    )


def _score_limits(curves: Sequence[Curve]) -> tuple[float, float]:
    """Return the ticks around all scores and thresholds of all models."""
    ticks = np.asarray(list(_TICKS))
    scores = _onto_axis(
        np.concatenate([np.append(c.test.score, c.threshold) for c in curves])
    )
    return (
        float(ticks[ticks <= min(scores.min(), 0.1)].max()),
        float(ticks[ticks >= max(scores.max(), 0.9)].min()),
    )


def _score_axis(axes: Axes, limits: tuple[float, float], label: str) -> None:
    """Spread scores near 0 and 1, where rare classes put most of them."""
    axes.set_xscale("logit")
    ticks = {at: text for at, text in _TICKS.items() if limits[0] <= at <= limits[1]}
    axes.set_xticks(
        list(ticks),
        labels=list(ticks.values()),
        rotation=45,
        ha="right",
        rotation_mode="anchor",
    )
    axes.set_xlim(limits)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(label)


def _onto_axis(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Move scores of 0 and 1, which a logit axis cannot show, onto its ends."""
    return np.clip(scores, _EDGE, 1 - _EDGE)


def _at_or_above(
    scores: npt.NDArray[np.float64], thresholds: npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]:
    """Count the scores at or above each threshold."""
    below = np.searchsorted(np.sort(scores), thresholds, side="left")
    return scores.size - below.astype(np.int64)
