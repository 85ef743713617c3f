"""The plot of how the models were trained."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mela_jax.report.plots import BLUE, GREEN, VERMILION, WIDTH

# A model's panels: title -> keys of a history row: (name, colour, line style).
# Training minimises a weighted or focal loss, or one with a teacher's share, and so
# has a scale of its own beside the cross-entropy on validation.
_PANELS = {
    "training objective": {"train/loss": ("training", BLUE, "-")},
    "validation cross-entropy": {"val/loss": ("validation", VERMILION, "--")},
    "validation": {
        "val/roc_auc": ("ROC-AUC", BLUE, "-"),
        "val/pr_auc": ("PR-AUC (average precision)", VERMILION, "--"),
        "val/specificity_at_target": ("specificity at target", GREEN, "-."),
    },
}
_HEIGHT = 2.3  # of a panel, in inches


def draw_training(
    histories: Mapping[str, Sequence[Mapping[str, Any]]], *, title: str
) -> Figure | None:
    """Draw losses and validation figures against the epoch, three panels per model.

    Args:
        histories: model label -> rows with "epoch" and any of "train/loss",
            "val/loss", "val/roc_auc", "val/pr_auc" and "val/specificity_at_target...".
            What a row lacks, or holds as None or NaN, is left out.
        title: figure title.

    Returns:
        The figure, or None when there is nothing to draw.
    """
    drawable = {
        label: rows
        for label, rows in histories.items()
        if any(_series(rows, key)[0] for keys in _PANELS.values() for key in keys)
    }
    if not drawable:
        return None
    panels = [(label, panel) for label in drawable for panel in _PANELS]
    figure = Figure(figsize=(WIDTH, 0.6 + _HEIGHT * len(panels)), layout="constrained")
    figure.suptitle(title)
    grid = figure.subplots(len(panels), 1)
    for axes, (label, panel) in zip(grid, panels, strict=True):
        _draw_series(axes, drawable[label], _PANELS[panel])
        axes.set_title(f"{label}: {panel}", fontsize="medium")
    return figure


def _draw_series(
    axes: Axes,
    rows: Sequence[Mapping[str, Any]],
    styles: Mapping[str, tuple[str, str, str]],
) -> None:
    """Draw every series of `styles` that the rows hold."""
    drawn = False
    for key, (name, colour, style) in styles.items():
        epochs, values = _series(rows, key)
        if epochs:
            drawn = True
            axes.plot(
                epochs,
                values,
                color=colour,
                linestyle=style,
                marker="o",
                markersize=3,
                label=name,
            )
    axes.set_xlabel("Epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    if drawn:
        axes.legend(loc="best", fontsize="small")
    else:
        axes.text(0.5, 0.5, "not recorded", ha="center", transform=axes.transAxes)


def _series(
    rows: Sequence[Mapping[str, Any]], key: str
) -> tuple[list[float], list[float]]:
    """Return the epochs and finite values of the key, or of one that begins with it."""
    epochs, values = [], []
    for row in rows:
        for name, value in row.items():
            # "val/specificity_at_target" may carry the target behind it.
            if name.startswith(key) and value is not None and math.isfinite(value):
                epochs.append(float(row["epoch"]))
                values.append(float(value))
                break
    return epochs, values
