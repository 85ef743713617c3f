"""The words of the export: from its metrics.json to Markdown, HTML and the terminal."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mela_jax.report.wording import make_environment

# Where the report of the run has a place for the exported files.
_PLACE = re.compile("(<!-- exported files -->).*(<!-- end of exported files -->)", re.S)
_NOT_A_DIAGNOSIS = "This is not a diagnosis."


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the report.

    Attributes:
      title: its heading.
      text: what the table shows.
      head: the table's column titles.
      rows: its cells.
    """

    title: str
    text: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]


def report_text(metrics: Mapping[str, Any]) -> str:
    """Return report.md of an export.

    Args:
      metrics: what metrics.json holds.
    """
    lines = []
    for number, section in enumerate(_sections(metrics)):
        lines += [f"{'#' * (2 if number else 1)} {section.title}", ""]
        if number == 0:
            for warning in _warnings(metrics):
                lines += [f"> **{warning}**", ""]
        lines += [section.text, "", f"| {' | '.join(section.head)} |"]
        lines += ["| --- |" + " ---: |" * (len(section.head) - 1)]
        lines += [f"| {' | '.join(row)} |" for row in section.rows]
        lines += [""]
    lines += ["## How each was made", ""]
    lines += [f"- **{name}**: {_story(f)}" for name, f in metrics["files"].items()]
    lines += ["", _NOT_A_DIAGNOSIS]
    return "\n".join(lines) + "\n"


def show_in(page: str, metrics: Mapping[str, Any]) -> str | None:
    """Return a run's report.html with the exported files, in place of earlier ones.

    Args:
      page: the report as it is.
      metrics: what metrics.json holds.

    Returns:
      The page, or None where it is from before it had a place for them.
    """
    if not _PLACE.search(page):
        return None
    template = make_environment().get_template("exported.html.j2")
    shown = template.render(
        sections=list(_sections(metrics)),
        warnings=list(_warnings(metrics)),
        stories={name: _story(file) for name, file in metrics["files"].items()},
    )
    return _PLACE.sub(lambda found: f"{found[1]}\n{shown}\n{found[2]}", page)


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


def _warnings(metrics: Mapping[str, Any]) -> Iterator[str]:
    """Yield what must not be overlooked."""
    files = metrics["files"]
    if any(file["made_up_data"] for file in files.values()):
        yield "MADE-UP LESIONS. These figures say nothing about real skin."
    for name, file in files.items():
        for split in ("val", "test"):
            if file[split]["operating_point"]["flags_everyone"]:
                yield f"WARNING: {name} flags every image of {split}."


def _sections(metrics: Mapping[str, Any]) -> Iterator[Section]:
    files = metrics["files"]
    yield Section(
        "The exported files, each with its own operating point",
        "Every file was run by LiteRT on validation and test. Its threshold is the "
        "highest at which this file reaches the target sensitivity on validation, and "
        "is on its calibrated probability; the checkpoint's threshold is not reused. "
        "Test figures come with 95 % intervals. Flips are the images whose decision is "
        "not that of the float model with the float model's threshold.",
        (
            "File",
            "MB",
            "Threshold",
            "ROC-AUC, val",
            "ROC-AUC, test",
            "Sensitivity, test",
            "Specificity, test",
            "Flips, test",
            "Melanomas newly missed / found",
        ),
        [_own_figures(name, file) for name, file in files.items()],
    )
    yield Section(
        "Beside the float model",
        "What the same files do on the test set if the float model's old threshold is "
        "kept, and how far their logits are from the float model's.",
        (
            "File",
            "Logit, largest difference",
            "RMS",
            "ROC-AUC, change",
            "Sensitivity at the old threshold",
            "Specificity at it",
            "Flips at it",
        ),
        [_beside_float(name, file) for name, file in files.items()],
    )
    if several := {n: f for n, f in files.items() if f["test"]["multiclass"]}:
        yield Section(
            "All classes",
            "What the same files say of every class on the test set, the decision "
            "being the most probable one: balanced accuracy is the mean sensitivity of "
            "the classes. It has no threshold and promises nothing of melanoma. "
            "Changes are the images whose most probable class is not that of the float "
            "model.",
            (
                "File",
                "Classes",
                "Balanced accuracy",
                "Accuracy",
                "Mean ROC-AUC",
                "Changes",
            ),
            [_all_classes(name, file) for name, file in several.items()],
        )


def _own_figures(name: str, file: Mapping[str, Any]) -> tuple[str, ...]:
    test = file["test"]
    point, flips = test["operating_point"], test["against_float"]["flips"]
    return (
        name,
        f"{file['bytes'] / 1e6:.2f}",
        f"{point['threshold']:.4g}",
        f"{file['val']['roc_auc']['value']:.4f}",
        _area(test["roc_auc"]),
        _rate(point["sensitivity"]),
        _rate(point["specificity"]),
        f"{flips['all']} of {test['n']}",
        f"{flips['melanomas_now_missed']} / {flips['melanomas_now_flagged']}",
    )


def _beside_float(name: str, file: Mapping[str, Any]) -> tuple[str, ...]:
    against = file["test"]["against_float"]
    kept = against["at_float_threshold"]
    return (
        name,
        f"{against['logit_max']:.2g}",
        f"{against['logit_rmse']:.2g}",
        f"{against['roc_auc']:+.4f}",
        f"{100 * kept['sensitivity']:.1f} %",
        f"{100 * kept['specificity']:.1f} %",
        f"{kept['flips']['all']}",
    )


def _all_classes(name: str, file: Mapping[str, Any]) -> tuple[str, ...]:
    test = file["test"]
    found = test["multiclass"]
    return (
        name,
        ", ".join(found["classes"]),
        _rate(found["balanced_accuracy"]),
        _rate(found["accuracy"]),
        _area(found["macro_roc_auc"]),
        f"{test['against_float']['class_flips']} of {test['n']}",
    )


def _story(file: Mapping[str, Any]) -> str:
    """Say how a file was made, and what was tried before."""
    text = f"{file['network']} ({file['model']}), recipe {file['recipe']}; "
    found = file["calibration"]
    text += (
        "its probability is not calibrated"
        if found["method"] == "none"
        else f"its probability is sigmoid({found['a']:.4g} * logit "
        f"{'-' if found['b'] < 0 else '+'} {abs(found['b']):.4g}), "
        f"{found['method']}, fitted to the float model"
    )
    if file["quantization_calibration"]:
        calibration = file["quantization_calibration"]
        text += (
            f"; 8-bit ranges from {calibration['images']} training images "
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
