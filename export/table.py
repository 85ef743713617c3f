"""The words of the export: from its metrics.json to Markdown and to the terminal."""

from collections.abc import Iterator, Mapping
from typing import Any


def report_text(metrics: Mapping[str, Any]) -> str:
    """Return report.md of an export.

    Args:
      metrics: what metrics.json holds.
    """
    return "\n".join(_lines(metrics)) + "\n"


def summary(metrics: Mapping[str, Any]) -> str:
    """Return the table for the terminal."""
    head = ("file", "MB", "threshold", "val AUC", "sensitivity", "specificity", "flips")
    rows = [head]
    for name, file in metrics["files"].items():
        test = file["test"]
        point = test["operating_point"]
        rows.append(
            (
                name,
                f"{file['bytes'] / 1e6:.2f}",
                f"{point['threshold']:.4g}",
                f"{file['val']['roc_auc']['value']:.3f}",
                _rate(point["sensitivity"]),
                _rate(point["specificity"]),
                f"{test['against_float']['flips']['all']} of {test['n']}",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    lines += [f"{name}: {_story(f)}" for name, f in metrics["files"].items()]
    return "\n".join(line.rstrip() for line in lines)


def _lines(metrics: Mapping[str, Any]) -> Iterator[str]:
    files = metrics["files"]
    yield "# The exported files, each with its own operating point"
    yield ""
    if any(file["made_up_data"] for file in files.values()):
        yield "> **MADE-UP LESIONS.** These figures say nothing about real skin."
        yield ""
    yield (
        "Every file was run by LiteRT on validation and test. Its threshold is the "
        "highest at which **this file** reaches the target sensitivity on validation; "
        "the checkpoint's threshold is not reused. Test figures come with 95 % "
        "intervals. *Flips* are the images whose decision is not that of the "
        "float model with the float model's threshold."
    )
    yield ""
    yield (
        "| File | MB | Threshold | ROC-AUC, val | ROC-AUC, test | Sensitivity, test |"
        " Specificity, test | Flips, test | Melanomas newly missed / found |"
    )
    yield "| --- |" + " ---: |" * 8
    for name, file in files.items():
        test = file["test"]
        point, flips = test["operating_point"], test["against_float"]["flips"]
        yield (
            f"| {name} | {file['bytes'] / 1e6:.2f} | {point['threshold']:.4g} "
            f"| {file['val']['roc_auc']['value']:.4f} | {_area(test['roc_auc'])} "
            f"| {_rate(point['sensitivity'])} | {_rate(point['specificity'])} "
            f"| {flips['all']} of {test['n']} "
            f"| {flips['melanomas_now_missed']} / {flips['melanomas_now_flagged']} |"
        )
    yield ""
    yield "## Beside the float model"
    yield ""
    yield (
        "What the same files do on the test set if the float model's old threshold is "
        "kept, and how far their logits are from the float model's."
    )
    yield ""
    yield (
        "| File | Logit, largest difference | RMS | ROC-AUC, change | Sensitivity at "
        "the old threshold | Specificity at it | Flips at it |"
    )
    yield "| --- |" + " ---: |" * 6
    for name, file in files.items():
        against = file["test"]["against_float"]
        kept = against["at_float_threshold"]
        yield (
            f"| {name} | {against['logit_max']:.2g} | {against['logit_rmse']:.2g} "
            f"| {against['roc_auc']:+.4f} | {100 * kept['sensitivity']:.1f} % "
            f"| {100 * kept['specificity']:.1f} % | {kept['flips']['all']} |"
        )
    yield ""
    yield "## How each was made"
    yield ""
    for name, file in files.items():
        yield f"- **{name}**: {_story(file)}"
    for name, file in files.items():
        for split in ("val", "test"):
            if file[split]["operating_point"]["flags_everyone"]:
                yield ""
                yield f"> **WARNING: {name} flags every image of {split}.**"
    yield ""
    yield "This is not a diagnosis."


def _story(file: Mapping[str, Any]) -> str:
    """Say how a file was made, and what was tried before."""
    text = f"{file['network']} ({file['model']}), recipe {file['recipe']}"
    if file["quantization_calibration"]:
        calibration = file["quantization_calibration"]
        text += (
            f"; calibrated on {calibration['images']} training images "
            f"({calibration['melanomas']} melanomas, seed {calibration['seed']})"
        )
    for attempt in file["attempts"]:
        loss = attempt["loss"]
        verdict = "within" if attempt["within_tolerance"] else "NOT within"
        text += (
            f"; {attempt['recipe']} lost {loss['roc_auc']:.4f} ROC-AUC and "
            f"{100 * loss['specificity']:.1f} points of specificity on validation, "
            f"{verdict} the tolerance"
        )
    return text + "."


def _rate(rate: Mapping[str, Any]) -> str:
    low, high = 100 * rate["low"], 100 * rate["high"]
    return f"{100 * rate['value']:.1f} % ({low:.1f}-{high:.1f})"


def _area(area: Mapping[str, Any]) -> str:
    return f"{area['value']:.4f} ({area['low']:.3f}-{area['high']:.3f})"
