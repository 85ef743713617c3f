"""The HTML report: one file, no network; words and figures here, layout in templates/.

The template is Jinja2's with everything escaped; what it shows is worked out here.
"""

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mela_jax.evaluation.rates import FEW_LESIONS
from mela_jax.report import words
from mela_jax.report.checklist import ABOUT, fill_checklist
from mela_jax.report.wording import (
    BY,
    find_class_models,
    find_leader,
    make_environment,
    model_label,
)

RATES = ("sensitivity", "specificity", "ppv", "npv")
SCALINGS = {"platt": "Platt scaling", "temperature": "temperature scaling"}
# Diagnoses that are cancer, or become it, though they count as "not melanoma".
OTHER_CANCERS = ("ak", "akiec", "bcc", "scc")


@dataclass(frozen=True)
class Plot:
    """A plot of the report.

    Attributes:
        title: what it shows.
        caption: how to read it.
        png: the picture.
    """

    title: str
    caption: str
    png: bytes

    @property
    def uri(self) -> str:
        """The picture as a data URI."""
        return data_uri(self.png, "image/png")


@dataclass(frozen=True)
class Thumbnail:
    """A lesion on the contact sheet.

    Attributes:
        image_id: its name.
        jpeg: the picture; None where it was not found.
        score: P(melanoma).
        note: what is known of it.
    """

    image_id: str
    jpeg: bytes | None
    score: float
    note: str

    @property
    def uri(self) -> str | None:
        """The picture as a data URI."""
        return None if self.jpeg is None else data_uri(self.jpeg, "image/jpeg")


def data_uri(content: bytes, kind: str) -> str:
    """Return bytes as a data URI of a media type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def render(
    metrics: Mapping[str, Any],
    *,
    plots: Mapping[str, Plot],
    missed: Sequence[Thumbnail],
    alarms: Sequence[Thumbnail],
    about: Mapping[str, str],
) -> str:
    """Return report.html.

    Args:
        metrics: what metrics.json holds.
        plots: name -> plot, in the order of the report.
        missed: every missed melanoma of the leading model.
        alarms: its most confident false alarms.
        about: key of `checklist.ABOUT` -> text.
    """
    leader = find_leader(metrics["models"])
    # The leader's column first: on a telephone the others are out of sight.
    models = {leader: metrics["models"][leader], **metrics["models"]}
    class_models = find_class_models(models)
    test = models[leader]["test"]
    template = make_environment().get_template("report.html.j2")
    return template.render(
        metrics=metrics,
        models=models,
        labels={name: model_label(name, models) for name in models},
        leader=leader,
        model=models[leader],
        test=test,
        point=test["operating_point"],
        shown=test["operating_point"]["by_lesion"],
        grids=[_grid(test["operating_point"]["by_lesion"], name) for name in RATES[:2]],
        on_target=_on_target(test, metrics["target_sensitivity"]),
        guarantee=_guarantee(models[leader]),
        comparisons=list(_comparisons(metrics["comparisons"], models)),
        groups=_groups(test["subgroups"]),
        class_models=class_models,
        argmax=_argmax(models[class_models[0]]["test"]) if class_models else None,
        recalls=_recalls({name: models[name] for name in class_models}),
        rate_names=RATES,
        by_names=BY,
        other_cancers=OTHER_CANCERS,
        plots=plots,
        missed=missed,
        alarms=alarms,
        about=about,
        asks=ABOUT,
        checklist=fill_checklist(metrics, leader, about),
        scaling=SCALINGS,
        missed_lesions=_of_lesions(test["missed"]),
        few_lesions=[
            (test[f"{key}_lesions"], word)
            for key, word in (("positive", "melanoma"), ("negative", "other"))
            if test[f"{key}_lesions"] < FEW_LESIONS
        ],
        zero_width=[
            name
            for name, model in models.items()
            if model["test"]["roc_auc"]["low"] == model["test"]["roc_auc"]["high"]
        ],
    )


def _grid(shown: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return how many of a hundred dots are filled: right decisions first."""
    filled = words.hundredths(shown[name]["value"])
    # A single miss must not be rounded away.
    if filled == 100 and shown[name]["value"] < 1:
        filled = 99
    return {"name": name, "right": filled, "wrong": 100 - filled}


def _on_target(test: Mapping[str, Any], target: float) -> str:
    """Say whether the sensitivity on the test set kept what was aimed at."""
    figure = test["operating_point"]["by_lesion"]["sensitivity"]
    value, low = figure["value"], figure["low"]
    start = f"On the test set the sensitivity is {words.percent(value)}"
    if value < target <= figure["high"]:
        return (
            f"{start}: below the target of {words.target(target)}. The interval goes "
            f"up to {words.percent(figure['high'])}, so chance alone may explain it."
        )
    if value < target:
        return f"{start}: below the target of {words.target(target)}, beyond chance."
    if low < target:
        return (
            f"{start}, which reaches the target, but the interval goes down to "
            f"{words.percent(low)}, so a true sensitivity below the target is not "
            "ruled out."
        )
    return f"{start}, and its whole interval reaches the target."


def _guarantee(model: Mapping[str, Any]) -> str | None:
    """Say in words what validation lets one promise."""
    found = model["guarantee"]
    if found is None:
        return None
    confidence = words.target(1 - found["delta"])
    target = words.target(found["target"])
    lesions = f"{found['units']} melanoma lesion{'s' * (found['units'] != 1)}"
    if found["threshold"] is None:
        return (
            f"Validation has {lesions}: too few to promise {target} sensitivity at "
            f"{confidence} confidence. That takes {found['units_needed']} with no miss "
            f"among them, {found['units_needed'] - found['units']} more. What these "
            "could promise, flagging every one of them, is "
            f"{words.percent(found['most'])}."
        )
    misses = found["allowed_misses"]
    return (
        f"Validation has {lesions}. At {confidence} confidence they allow "
        f"{misses} miss{'es' * (misses != 1)}, which sets the guaranteed threshold at "
        f"{found['threshold']:.4g}: for new lesions of the same kind the sensitivity "
        f"is at least {target}, unless this validation set was one of the unlucky "
        f"{words.target(found['delta'])}."
    )


def _comparisons(
    comparisons: Mapping[str, Mapping[str, Any]], models: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yield each comparison with a verdict in words."""
    for name, found in comparisons.items():
        a, b = (model_label(key, models) for key in name.split("_minus_"))
        rows = []
        for key, label in (
            ("roc_auc", "ROC-AUC"),
            ("specificity", "specificity"),
            ("sensitivity", "sensitivity"),
        ):
            figure = found[key]
            digits, scale = (4, 1) if key == "roc_auc" else (1, 100)
            difference, low, high = (
                words.signed(scale * figure[part], digits)
                for part in ("difference", "low", "high")
            )
            unit = "" if key == "roc_auc" else "\N{NO-BREAK SPACE}points"
            better = "better" if figure["difference"] > 0 else "worse"
            rows.append(
                {
                    "label": label,
                    "difference": f"{difference}{unit}",
                    "interval": f"{low} to {high}".replace(" ", "\N{NO-BREAK SPACE}"),
                    "p": words.p_value(figure["p"]),
                    "test": figure["test"],
                    "verdict": f"{a} is {better}"
                    if figure["shown"]
                    else "no difference shown",
                }
            )
        signs = [
            found[key]["shown"] * (1 if found[key]["difference"] > 0 else -1)
            for key in ("specificity", "sensitivity")
        ]
        yield {
            "title": f"{a} minus {b}",
            "replicates": found["roc_auc"]["replicates"],
            "rows": rows,
            "trade": signs[0] * signs[1] < 0,
        }


def _of_lesions(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return " of 9 lesions" where images are fewer lesions, or nothing."""
    lesions = len({row["lesion_id"] for row in rows})
    return f" of {lesions} lesions" if lesions < len(rows) else ""


def _argmax(test: Mapping[str, Any]) -> dict[str, int]:
    """Return how many melanomas the highest score finds, and the threshold."""
    multiclass = test["multiclass"]
    at = multiclass["classes"].index(multiclass["melanoma"])
    row = multiclass["confusion"][at]
    flagged = test["operating_point"]["confusion"]["tp"]
    return {"found": row[at], "n": sum(row), "flagged": flagged}


def _recalls(models: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any] | None]]:
    """Return each diagnosis' sensitivity by model, None where it is not scored."""
    rows: dict[str, list[Mapping[str, Any] | None]] = {}
    for number, model in enumerate(models.values()):
        for row in model["test"]["multiclass"]["per_class"]:
            found = rows.setdefault(row["name"], [None] * len(models))
            found[number] = row["by_lesion"]["sensitivity"]
    return rows


def _groups(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Return the rows of the subgroup table under their column."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["by"], []).append(row)
    return groups
