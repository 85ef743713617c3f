"""The plot of how the models were trained."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mela_jax.evaluation.plots import BLUE, GREEN, VERMILION, WIDTH

# Keys of a history row that are drawn: key -> (name, colour, line style).
_LOSSES = {
    "train/loss": ("training", BLUE, "-"),
    "val/loss": ("validation", VERMILION, "--"),
}
_QUALITIES = {
    "val/roc_auc": ("ROC-AUC", BLUE, "-"),
    "val/pr_auc": ("PR-AUC (average precision)", VERMILION, "--"),
    "val/specificity_at_target": ("specificity at target", GREEN, "-."),
}


def draw_training(
    histories: Mapping[str, Sequence[Mapping[str, Any]]], *, title: str
) -> Figure | None:
    """Draw losses and validation figures against the epoch, two panels per model.

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
        if any(_series(rows, key)[0] for key in (*_LOSSES, *_QUALITIES))
    }
    if not drawable:
        return None
    figure = Figure(figsize=(WIDTH, 0.6 + 5.0 * len(drawable)), layout="constrained")
    figure.suptitle(title)
    grid = figure.subplots(2 * len(drawable), 1, squeeze=False).reshape(-1, 2)
    for (label, rows), (loss_axes, quality_axes) in zip(
        drawable.items(), grid, strict=True
    ):
        _draw_series(loss_axes, rows, _LOSSES)
        _draw_series(quality_axes, rows, _QUALITIES)
        loss_axes.set_ylabel("Loss")
        quality_axes.set_ylabel("Validation figure")
        loss_axes.set_title(f"{label}: loss", fontsize="medium")
        quality_axes.set_title(f"{label}: validation", fontsize="medium")
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
