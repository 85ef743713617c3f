"""The plot of what a file costs in time against what it is worth."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from mela_jax.errors import UserError
from mela_jax.report.plots import BLACK, BLUE, GREEN, ORANGE, VERMILION, png_bytes

_COLOURS = (BLUE, VERMILION, GREEN, ORANGE, BLACK)
_MARKERS = "osD^v"


def latency_plot(results: Sequence[Mapping[str, Any]], *, num_threads: int) -> bytes:
    """Return a PNG of latency against specificity on test, one point a file.

    Args:
        results: from `tflite_bench.host.benchmark`.
        num_threads: that they were run with, for the axis.

    Raises:
        UserError: no file says its specificity.
    """
    known = [r for r in results if r["operating_point"]]
    if not known:
        raise UserError(
            "--plot: none of the files says its specificity; give files of "
            "export.to_tflite"
        )
    figure = Figure(figsize=(8.0, 5.5), layout="constrained")
    axes = figure.subplots()
    for i, result in enumerate(known):
        point, times = result["operating_point"], result["latency_ms"]["xnnpack"]
        specificity, sensitivity = point["specificity"], point["sensitivity"]
        value = specificity["value"]
        axes.errorbar(
            times["median"],
            value,
            yerr=[[value - specificity["low"]], [specificity["high"] - value]],
            xerr=[[times["median"] - times["min"]], [times["p90"] - times["median"]]],
            color=_COLOURS[i % len(_COLOURS)],
            marker=_MARKERS[i // len(_COLOURS) % len(_MARKERS)],
            markersize=8,
            capsize=3,
            label=f"{Path(result['model']).stem}: sensitivity "
            f"{100 * sensitivity['value']:.1f} %, {result['bytes'] / 1e6:.2f} MB",
        )
    axes.set_xlim(left=0)
    axes.set_xlabel(
        f"latency of one image in ms, {num_threads} thread(s): median, fastest to "
        "90th percentile"
    )
    axes.set_ylabel("specificity on test, 95 % interval")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_title("Each file at its own operating point")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="best")
    return png_bytes(figure)
