"""Reporting items of STARD-AI, TRIPOD+AI and CLAIM, filled in or marked missing.

Numbers are those of STARD 2015, on which STARD-AI (Sounderajah et al. 2025, Nature
Medicine) builds, and of TRIPOD+AI (Collins et al. 2024, doi:10.1136/bmj-2023-078378).
CLAIM (2024 update, Radiology: Artificial Intelligence) asks for much the same under
numbers of its own; it is named where it asks for more. The wording is ours. What the
scores show is filled in from them; what only the people who made the study know is
taken from `about`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mela_jax.evaluation import words

Model = Mapping[str, Any]

# What may be told of a study: key -> what is asked for.
ABOUT = {
    "title": "name of the model or study",
    "intended_use": "who is to use it, on whom, for what decision",
    "data": "where the images come from: centres, years, cameras",
    "eligibility": "which lesions were taken, and which left out",
    "sampling": "consecutive, random or convenience series",
    "reference_standard": "how it was known what a lesion is",
    "blinding": "whether those who set the diagnosis knew the score",
    "skin_types": "which skin types are represented",
    "training_data": "what the model was trained on",
    "model": "architecture, input, version",
    "missing_data": "images or labels that are missing, and what was done",
    "limitations": "limits beyond those that the report states",
    "ethics": "approval, consent and licence of the data",
    "funding": "who paid, and who gains",
    "registration": "registration and protocol",
    "availability": "where code, weights and data are",
    "patient_involvement": "whether patients had a say",
}


@dataclass(frozen=True)
class Item:
    """One item of the checklist.

    Attributes:
        refs: its numbers in the guidelines.
        asks: what it asks for.
        answer: what this report says; None where it is missing.
    """

    refs: str
    asks: str
    answer: str | None


def fill_checklist(
    metrics: Mapping[str, Any], leader: str, about: Mapping[str, str]
) -> list[Item]:
    """Fill in what can be filled in.

    Args:
        metrics: what metrics.json holds.
        leader: the model that the report is about.
        about: key of `ABOUT` -> text.
    """
    model = metrics["models"][leader]

    def told(key: str) -> Callable[[Model], str | None]:
        return lambda _: about.get(key)

    items: tuple[tuple[str, str, Callable[[Model], str | None]], ...] = (
        ("STARD 1, TRIPOD+AI 1", "Named as a study of diagnostic accuracy", _title),
        ("STARD 3, TRIPOD+AI 3", "Intended use, clinical role", told("intended_use")),
        ("STARD 5", "Whether data came before or after the test", _retrospective),
        ("STARD 6, TRIPOD+AI 6", "Who was eligible", told("eligibility")),
        ("STARD 7-8, TRIPOD+AI 5", "Where and when; sources of data", told("data")),
        ("STARD 9", "Consecutive, random or convenience series", told("sampling")),
        ("STARD 10a, TRIPOD+AI 12, CLAIM", "The index test: the model", told("model")),
        ("STARD 10b-11, TRIPOD+AI 8", "Reference standard", told("reference_standard")),
        ("STARD 12a, TRIPOD+AI 15", "Cut-off, and whether it was set beforehand", _cut),
        ("STARD 13", "Blinding of test and reference", told("blinding")),
        ("STARD 14, TRIPOD+AI 12", "Methods for estimates and comparisons", _methods),
        ("STARD 15-16, TRIPOD+AI 11", "Missing data", told("missing_data")),
        ("STARD 17, TRIPOD+AI 14", "Variation in accuracy; fairness", _groups),
        ("STARD 18, TRIPOD+AI 10", "Sample size", _sample_size),
        ("TRIPOD+AI 12a, CLAIM", "How data were split, at which level", _splits),
        ("TRIPOD+AI 7, CLAIM", "Training data, preparation", told("training_data")),
        ("STARD 20, TRIPOD+AI 20", "Participants: age, sex, body site", _participants),
        ("STARD 20, TRIPOD+AI 14", "Skin types represented", told("skin_types")),
        ("STARD 21", "Diagnoses among those with and without melanoma", _diagnoses),
        ("STARD 23", "Cross tabulation of test against reference", _cross),
        ("STARD 24, TRIPOD+AI 23", "Estimates of accuracy with intervals", _estimates),
        ("TRIPOD+AI 23, CLAIM", "Calibration", _calibration),
        ("CLAIM", "Failure analysis: which cases are wrong", _failures),
        ("STARD 25", "Adverse events of the test", lambda _: None),
        ("STARD 26, TRIPOD+AI 26", "Limitations", _limits(about)),
        ("STARD 27, TRIPOD+AI 27", "Implications for practice", _implications),
        ("TRIPOD+AI 17", "Ethics and consent", told("ethics")),
        ("STARD 28-29, TRIPOD+AI 18", "Registration, protocol", told("registration")),
        ("STARD 30, TRIPOD+AI 18", "Funding and interests", told("funding")),
        ("TRIPOD+AI 18, CLAIM", "Code, weights and data", told("availability")),
        ("TRIPOD+AI 19", "Involvement of patients", told("patient_involvement")),
    )  # fmt: skip
    return [Item(refs, asks, answer(model)) for refs, asks, answer in items]


def _title(model: Model) -> str:
    return "Yes: the title and the first sentence of this report."


def _retrospective(model: Model) -> str:
    return "After: scores of existing, labelled images. No patient was followed."


def _cut(model: Model) -> str:
    point = model["test"]["operating_point"]
    return (
        f"{point['threshold']:.4g}, {model['policy']} policy, chosen on validation for "
        f"{words.target(point['target_sensitivity'])} sensitivity before the test set "
        "was measured."
    )


def _methods(model: Model) -> str:
    return (
        "Named beside each table; formulas and sources in docs/evaluation.md. "
        f"{model['test']['replicates']} bootstrap replicates over lesions."
    )


def _groups(model: Model) -> str | None:
    columns = sorted({row["by"] for row in model["test"]["subgroups"]})
    return (
        f"By {', '.join(columns)}: see \u201cWho it fails\u201d." if columns else None
    )


def _sample_size(model: Model) -> str:
    test = model["test"]
    return (
        f"{test['n']} images of {test['lesions']} lesions, {test['positives']} images "
        "of melanoma; what there was, no calculation beforehand. The guarantee says "
        "how many melanomas it takes."
    )


def _splits(model: Model) -> str:
    return (
        "Validation and test share no image and no lesion_id: checked here. Whether "
        "training shares any with them cannot be seen from scores."
    )


def _participants(model: Model) -> str | None:
    known = {row["by"] for row in model["test"]["subgroups"]}
    if not known & {"age", "sex", "localization"}:
        return None
    return "Counts by age band, sex and body site: see \u201cWho it fails\u201d."


def _diagnoses(model: Model) -> str | None:
    rows = model["test"]["false_alarms_by_dx"]
    if not rows:
        return None
    return "Not melanoma: " + ", ".join(f"{r['dx']} {r['n']}" for r in rows) + "."


def _cross(model: Model) -> str:
    c = model["test"]["operating_point"]["confusion"]
    return (
        f"Melanoma: {c['tp']} flagged, {c['fn']} missed. "
        f"Other: {c['fp']} flagged, {c['tn']} let pass."
    )


def _estimates(model: Model) -> str:
    return f"ROC-AUC {words.number(model['test']['roc_auc'])} and all tables."


def _calibration(model: Model) -> str:
    slope = model["test"]["calibration"]["score"]["slope"]
    return f"Slope {words.number(slope, 2)}, ECE, Brier score, reliability diagram."


def _failures(model: Model) -> str:
    test = model["test"]
    return (
        f"All {len(test['missed'])} missed melanomas and the false alarms are listed "
        "in metrics.json; see \u201cWhat it got wrong\u201d."
    )


def _limits(about: Mapping[str, str]) -> Callable[[Model], str | None]:
    extra = f" {about['limitations']}" if about.get("limitations") else ""
    return lambda _: f"See \u201cBefore you rely on these figures\u201d.{extra}"


def _implications(model: Model) -> str:
    return "What it means for 1,000 people, by prevalence; the decision curve."
