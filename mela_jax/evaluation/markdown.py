"""The words of the report: from the figures of metrics.json to Markdown."""

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_ROLES = {
    "teacher": "Teacher",
    "student": "Distilled student",
    "baseline": "Undistilled student",
}

# Whose figures lead the report: the first of these that was run.
_LEADERS = ("student", "baseline", "teacher")

_COMPARISONS = {
    "student_minus_baseline": (
        "Distilled student against the same student without distillation",
        "the distilled student",
        "the undistilled one",
    ),
    "student_minus_teacher": (
        "Distilled student against its teacher",
        "the distilled student",
        "the teacher",
    ),
}

_FIGURES = {
    "roc_auc": "ROC-AUC",
    "specificity": "specificity",
    "sensitivity": "sensitivity",
}

_PLOTS = {
    "roc": (
        "ROC curves",
        "ROC curves with each model's operating point. Up and to the left is better.",
    ),
    "precision_recall": (
        "Precision-recall curves",
        "Precision against recall. The dashed line is what guessing would give, and "
        "it, like the whole plot, moves with the prevalence.",
    ),
    "threshold": (
        "Sensitivity, specificity and PPV against the threshold",
        "What other thresholds would have done on the test set. The dotted line is the "
        "frozen threshold; it was chosen on validation, not here.",
    ),
    "scores": (
        "Scores by class",
        "Each class is drawn as shares of its own images, so that the rarer one shows.",
    ),
    "training": (
        "Training curves",
        "Loss and validation figures by epoch. Losses of different models are "
        "different functions and cannot be compared with each other.",
    ),
}


def model_label(name: str, models: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a model's name for tables and legends, such as "Teacher (resnet50)".

    Args:
        name: "teacher", "student" or "baseline".
        models: all models of the report.
    """
    return f"{_ROLES[name]} ({models[name]['name']})"


def report_text(
    metrics: Mapping[str, Any],
    *,
    num_lesions: Mapping[str, int],
    plot_names: Sequence[str],
    num_bootstrap: int,
) -> str:
    """Return report.md.

    Args:
        metrics: what metrics.json holds.
        num_lesions: model -> number of lesions in its test set.
        plot_names: plots to show, each a PNG beside the report.
        num_bootstrap: replicates behind the paired comparisons.
    """
    models = metrics["models"]
    leader = next(name for name in _LEADERS if name in models)
    sections: list[Iterable[str]] = [
        _opening(metrics, leader),
        _figures(models, "test", "Test set"),
        _figures(models, "val", "Validation set"),
        _comparisons(metrics["comparisons"], models, num_bootstrap),
        _caveats(metrics, leader, num_lesions[leader]),
        _plots(plot_names),
        _provenance(metrics["run"]),
    ]
    return "\n\n".join("\n".join(section) for section in sections) + "\n"


def _opening(metrics: Mapping[str, Any], leader: str) -> Iterable[str]:
    """Yield the title, the warnings and the sentences for a patient."""
    model = metrics["models"][leader]
    point = model["test"]["operating_point"]
    sensitivity, specificity = point["sensitivity"], point["specificity"]
    made_up = metrics["made_up_data"]
    yield "# What this model finds, and what it misses"
    yield ""
    if made_up:
        yield (
            "> **MADE-UP LESIONS.** Every figure here is about drawings made by a "
            "program. It shows that the software runs. It says nothing about skin."
        )
        yield ""
    kind = "made-up melanomas" if made_up else "melanomas"
    yield (
        f"**Of 100 {kind} like those in the test set, this model flags "
        f"{_of_hundred(sensitivity)} and misses {_of_hundred(_rest(sensitivity))}; of "
        f"100 spots that are not melanoma it flags "
        f"{_of_hundred(_rest(specificity))}. It is not a diagnosis: have a spot that "
        "worries you, or that changes, seen by a doctor whatever the model says.**"
    )
    yield ""
    yield (
        "The numbers in brackets are 95 % intervals: how far the truth may lie from "
        "the figure because only so many images were tested. The model is the "
        f"{_ROLES[leader].lower()}, {_plain(model['name'])}."
    )
    yield ""
    yield _on_target(point, metrics["target_sensitivity"])
    for name in metrics["models"]:
        for split, where in (("test", "test"), ("val", "validation")):
            if metrics["models"][name][split]["operating_point"]["flags_everyone"]:
                yield ""
                yield (
                    f"> **WARNING: the {_ROLES[name].lower()} flags every image of the "
                    f"{where} set.** At this threshold it tells no melanoma from "
                    "anything else; its sensitivity of 100 % is worth nothing."
                )


def _on_target(point: Mapping[str, Any], target: float) -> str:
    """Say whether the sensitivity on the test set kept what was aimed at."""
    value, low = point["sensitivity"]["value"], point["sensitivity"]["low"]
    start = (
        f"The threshold ({point['threshold']:.4g}) was chosen on the validation set to "
        f"catch at least {_target(target)} of its melanomas, and then left alone."
    )
    if value < target:
        return (
            f"{start} **On the test set the sensitivity is {_percent(value)}: below "
            f"the target of {_target(target)}.**"
        )
    if low < target:
        return (
            f"{start} On the test set the sensitivity is {_percent(value)}, which "
            f"reaches the target, but the interval goes down to {_percent(low)}, so a "
            "true sensitivity below the target is not ruled out."
        )
    return (
        f"{start} On the test set the sensitivity is {_percent(value)}, and its whole "
        "interval reaches the target."
    )


def _figures(
    models: Mapping[str, Mapping[str, Any]], split: str, title: str
) -> Iterable[str]:
    """Yield one table: a row per figure, a column per model."""
    first = next(iter(models.values()))[split]
    yield f"## {title}"
    yield ""
    yield (
        f"{first['n']} images, {first['positives']} of them melanomas: a prevalence of "
        f"{_percent(first['positives'] / first['n'])}."
        + (
            " The thresholds were chosen on these images, and the checkpoints too, so "
            "these figures flatter."
            if split == "val"
            else " Figures with 95 % intervals."
        )
    )
    yield ""
    yield _row("", [_plain(model_label(name, models)) for name in models])
    yield "| --- |" + " ---: |" * len(models)
    splits = [model[split] for model in models.values()]
    points = [figures["operating_point"] for figures in splits]
    counts = [point["confusion"] for point in points]
    target = _target(points[0]["target_sensitivity"])
    yield _row("ROC-AUC", [_area(figures["roc_auc"]) for figures in splits])
    yield _row(
        "PR-AUC (average precision)", [_area(figures["pr_auc"]) for figures in splits]
    )
    yield _row("Threshold, frozen", [f"{point['threshold']:.4g}" for point in points])
    yield _row(
        f"Specificity at the {target} sensitivity threshold",
        [_rate(point["specificity"]) for point in points],
    )
    yield _row(
        f"Sensitivity (target {target})",
        [
            _rate(point["sensitivity"])
            + (
                ", **below target**"
                if point["sensitivity"]["value"] < point["target_sensitivity"]
                else ""
            )
            for point in points
        ],
    )
    yield _row(
        f"PPV at prevalence {_percent(first['positives'] / first['n'])}",
        [_rate(point["ppv"]) for point in points],
    )
    yield _row("NPV at the same", [_rate(point["npv"]) for point in points])
    yield _row("Melanomas flagged / missed", [f"{c['tp']} / {c['fn']}" for c in counts])
    yield _row("Others flagged / let pass", [f"{c['fp']} / {c['tn']}" for c in counts])
    yield _row(
        "Flags every image",
        ["**YES**" if point["flags_everyone"] else "no" for point in points],
    )
    if split == "test":
        sizes = list(models.values())
        yield _row("Parameters", [_amount(model["params"]) for model in sizes])
        yield _row("FLOPs per image", [_amount(model["flops"]) for model in sizes])


def _comparisons(
    comparisons: Mapping[str, Mapping[str, Any]],
    models: Mapping[str, Mapping[str, Any]],
    num_bootstrap: int,
) -> Iterable[str]:
    """Yield the paired differences with a verdict in words."""
    yield "## Which is better, on the same test images"
    yield ""
    if not comparisons:
        yield "Nothing to compare: fewer than two comparable models were run."
        return
    yield (
        f"Differences with 95 % intervals from {num_bootstrap} paired resamplings of "
        "lesions; specificity and sensitivity are each at the model's own frozen "
        "threshold. Where the interval holds zero, no difference was shown, which is "
        "not to say that there is none."
    )
    for name, figures in comparisons.items():
        title, a, b = _COMPARISONS[name]
        yield ""
        yield f"**{title}**"
        yield ""
        yield "| Figure | Difference | 95 % interval | In words |"
        yield "| --- | ---: | ---: | --- |"
        for key, label in _FIGURES.items():
            figure = figures[key]
            scale, unit = (1, "") if key == "roc_auc" else (100, " points")
            digits = 4 if key == "roc_auc" else 1
            difference, low, high = (
                f"{_signed(scale * figure[part], digits)}"
                for part in ("difference", "low", "high")
            )
            yield (
                f"| {label} | {difference}{unit} | {low} to {high} "
                f"| {_verdict(figure, a, b)} |"
            )
        verdicts = {key: _sign(figures[key]) for key in ("specificity", "sensitivity")}
        if verdicts["specificity"] * verdicts["sensitivity"] < 0:
            yield ""
            yield (
                "Specificity and sensitivity differ in opposite directions: the "
                "two thresholds trade one for the other, so by this alone neither is "
                "better."
            )


def _caveats(
    metrics: Mapping[str, Any], leader: str, num_lesions: int
) -> Iterable[str]:
    """Yield what a reader must know before believing a figure."""
    test = metrics["models"][leader]["test"]
    prevalence = _percent(test["positives"] / test["n"])
    target = _target(metrics["target_sensitivity"])
    yield "## Before you rely on these figures"
    yield ""
    yield (
        f"- **PPV and NPV belong to this prevalence.** {prevalence} of the test images "
        "are melanomas. Where melanoma is rarer, as among people who check "
        "their own moles, the same model's PPV is much lower and its NPV higher. "
        "Sensitivity and specificity do not depend on prevalence in this way."
    )
    yield (
        f"- **{target} is a target, not a promise.** The threshold is the highest one "
        "that reaches it on validation; on new images the sensitivity may be lower. "
        f"On this test set it is "
        f"{_rate(test['operating_point']['sensitivity'])}."
    )
    yield (
        '- **"Not melanoma" is not "harmless".** Other skin cancers count as not '
        "melanoma here, and letting one pass counts as correct."
    )
    yield (
        "- **Like the test set** means: the same kind of camera, clinic, skin and "
        "selection of lesions. For others, these figures are a guess."
    )
    repeats = test["n"] - num_lesions
    yield (
        "- Intervals of sensitivity, specificity, PPV and NPV are Wilson's, which "
        "take images as independent. "
        + (
            f"The {test['n']} test images show {num_lesions} lesions, so these "
            "intervals are somewhat too narrow."
            if repeats
            else "Every test image here shows a lesion of its own."
        )
    )
    yield (
        "- Intervals of ROC-AUC and PR-AUC and of the paired differences come from "
        "resampling lesions. They cover the choice of test lesions, not the luck of "
        "one training run: another seed would give other figures."
    )
    yield (
        "- PR-AUC is average precision, without interpolation. Guessing gives it a "
        f"value near the prevalence, {prevalence}."
    )
    if any(
        model["test"]["roc_auc"]["low"] == model["test"]["roc_auc"]["high"]
        for model in metrics["models"].values()
    ):
        yield (
            "- An interval of no width (melanomas and others perfectly apart, or all "
            "scores equal) is a limit of the bootstrap, not certainty."
        )


def _plots(plot_names: Sequence[str]) -> Iterable[str]:
    """Yield the plots, each with what it shows."""
    yield "## Plots"
    for name in plot_names:
        alt, caption = _PLOTS[name]
        yield ""
        yield f"![{alt}]({name}.png)"
        yield ""
        yield f"*{alt}.* {caption}"
    if "training" not in plot_names:
        yield ""
        yield "There are no training curves: no history was recorded."


def _provenance(run: Mapping[str, str]) -> Iterable[str]:
    """Yield what was run."""
    yield "## How it was made"
    yield ""
    if not run:
        yield "Nothing was recorded."
        return
    yield "| | |"
    yield "| --- | --- |"
    for key, value in run.items():
        yield _row(_plain(key), [_plain(value)])


def _row(head: str, cells: Sequence[str]) -> str:
    return f"| {head} | " + " | ".join(cells) + " |"


def _plain(text: str) -> str:
    """Keep free text from being read as Markdown table syntax or HTML."""
    one_line = " ".join(str(text).split())
    return html.escape(one_line, quote=False).replace("|", "\\|")


def _percent(value: float) -> str:
    """Return a share as percent, never rounding an imperfect one up to 100 %."""
    percent = 100 * value
    if percent < 100 and round(percent, 1) == 100:
        return "over 99.9 %"
    return f"{percent:.1f} %"


def _target(target: float) -> str:
    """Return a target as percent, without needless digits."""
    return f"{100 * target:.6g} %"


def _rate(rate: Mapping[str, Any]) -> str:
    if rate["value"] is None:
        return "undefined: no such image"
    return (
        f"{_percent(rate['value'])} ({100 * rate['low']:.1f}–{100 * rate['high']:.1f})"
    )


def _area(area: Mapping[str, Any]) -> str:
    return f"{area['value']:.3f} ({area['low']:.3f}–{area['high']:.3f})"


def _rest(rate: Mapping[str, Any]) -> dict[str, float]:
    """Return the complement of a rate and of its interval."""
    return {
        "value": 1 - rate["value"],
        "low": 1 - rate["high"],
        "high": 1 - rate["low"],
    }


def _of_hundred(rate: Mapping[str, Any]) -> str:
    """Return "about 95 (90 to 98)"; the interval is rounded outwards."""
    hundredfold = 100 * rate["value"]
    if hundredfold in (0, 100):
        count = "none" if hundredfold == 0 else "all"
    elif hundredfold < 0.5:
        count = "fewer than 1"
    elif hundredfold >= 99.5:
        count = "more than 99"
    else:
        count = f"about {hundredfold:.0f}"
    # The slack keeps 1 - 0.9 = 0.09999999999999998 from widening the interval.
    low = math.floor(100 * rate["low"] + 1e-9)
    high = math.ceil(100 * rate["high"] - 1e-9)
    return f"{count} ({low} to {high})"


def _sign(figure: Mapping[str, float]) -> int:
    """Return 1 or -1 for a difference whose interval leaves out zero, else 0."""
    return int(figure["low"] > 0) - int(figure["high"] < 0)


def _verdict(figure: Mapping[str, float], a: str, b: str) -> str:
    sign = _sign(figure)
    if sign == 0:
        return "no difference shown"
    return f"{a} is **{'better' if sign > 0 else 'worse'}** than {b}"


def _signed(value: float, digits: int) -> str:
    """Return the value with its sign, and a rounded zero without one."""
    text = f"{value:+.{digits}f}"
    if float(text) == 0:
        return text[1:]
    return text.replace("-", "\N{MINUS SIGN}")


def _amount(count: int) -> str:
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)
