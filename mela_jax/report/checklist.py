"""Reporting items of STARD-AI, TRIPOD+AI and CLAIM, filled in or marked missing.

Numbers are those of STARD-AI (Sounderajah et al. 2025,
doi:10.1038/s41591-025-03953-8), TRIPOD+AI (Collins et al. 2024,
doi:10.1136/bmj-2023-078378) and the 2024 update of CLAIM (Tejani et al. 2024,
doi:10.1148/ryai.240300). The wording is ours. What the scores show is filled in from
them; what only the people who made the study know is taken from `about`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mela_jax.report import words

Model = Mapping[str, Any]

# Columns that tell of the person.
_PERSONAL = {"age", "sex", "localization"}

# What may be told of a study: key -> what is asked for.
ABOUT = {
    "title": "name of the model or study",
    "intended_use": "who is to use it, on whom, for what decision",
    "data": "where the images come from: centres, years, routine or study",
    "eligibility": "which lesions were taken, and which left out",
    "sampling": "consecutive, random or convenience series",
    "acquisition": "cameras, settings, and what was done to the images",
    "reference_standard": "how it was known what a lesion is",
    "annotation": "who labelled the images, and with what experience",
    "blinding": "whether those who set the diagnosis knew the score",
    "representativeness": "how the lesions differ from those it is meant for",
    "skin_types": "which skin types are represented",
    "external_data": "whether the test set is from elsewhere than the training set",
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
    metrics: Mapping[str, Any],
    leader: str,
    about: Mapping[str, str],
    *,
    name: Callable[[str], str] = str,
) -> list[Item]:
    """Fill in what can be filled in.

    Args:
        metrics: what metrics.json holds.
        leader: the model that the report is about.
        about: key of `ABOUT` -> text.
        name: puts the key of a column or a diagnosis into words.
    """
    model = metrics["models"][leader]

    def told(key: str) -> Callable[[Model], str | None]:
        return lambda _: about.get(key)

    items: tuple[tuple[str, str, Callable[[Model], str | None]], ...] = (
        (
            "STARD-AI 1; TRIPOD+AI 1; CLAIM 1",
            "Named as a study of an AI's diagnostic accuracy",
            _title,
        ),
        ("STARD-AI 2; TRIPOD+AI 2; CLAIM 2", "Structured summary", _nothing),
        (
            "STARD-AI 3, 15d; TRIPOD+AI 3a, 3b; CLAIM 3",
            "Intended use, users, place in care",
            told("intended_use"),
        ),
        (
            "TRIPOD+AI 3c",
            "Skin types represented; known inequalities",
            told("skin_types"),
        ),
        ("STARD-AI 4; TRIPOD+AI 4; CLAIM 4", "Objectives", _objectives),
        (
            "STARD-AI 5; CLAIM 5",
            "Whether data were collected before or after the test",
            _retrospective,
        ),
        ("STARD-AI 6; TRIPOD+AI 17", "Ethics committee, consent", told("ethics")),
        (
            "STARD-AI 7, 8; TRIPOD+AI 6b; CLAIM 8",
            "Who was eligible, and how they were found",
            told("eligibility"),
        ),
        (
            "STARD-AI 9, 11; TRIPOD+AI 5a, 5b, 6a; CLAIM 7",
            "Where and when; source of the data",
            told("data"),
        ),
        ("STARD-AI 10", "Consecutive, random or convenience series", told("sampling")),
        (
            "STARD-AI 12; TRIPOD+AI 8b; CLAIM 16, 17",
            "Who labelled the images, and how",
            told("annotation"),
        ),
        (
            "STARD-AI 13, 14; TRIPOD+AI 7; CLAIM 9, 13",
            "Devices, acquisition, preparation of images",
            told("acquisition"),
        ),
        (
            "STARD-AI 15a; TRIPOD+AI 12c, 22; CLAIM 22",
            "The index test: the model",
            told("model"),
        ),
        (
            "STARD-AI 15b; TRIPOD+AI 12a; CLAIM 25",
            "How it was developed, on what data",
            told("training_data"),
        ),
        (
            "STARD-AI 15c; TRIPOD+AI 15",
            "Cut-off, and whether it was set beforehand",
            _cut,
        ),
        (
            "STARD-AI 16a, 16b, 16c; TRIPOD+AI 8a; CLAIM 14, 15",
            "Reference standard",
            told("reference_standard"),
        ),
        (
            "STARD-AI 17a, 17b; TRIPOD+AI 8c",
            "Blinding of test and reference",
            told("blinding"),
        ),
        (
            "STARD-AI 18; TRIPOD+AI 12e; CLAIM 28, 29",
            "Methods for estimates and comparisons",
            _methods,
        ),
        ("STARD-AI 19", "Indeterminate results", _indeterminate),
        ("STARD-AI 20; TRIPOD+AI 11; CLAIM 12", "Missing data", told("missing_data")),
        (
            "STARD-AI 21; TRIPOD+AI 23a",
            "Accuracy in parts of the test set",
            _groups(name),
        ),
        ("STARD-AI 22; TRIPOD+AI 10; CLAIM 21", "Sample size", _sample_size),
        ("STARD-AI 23; CLAIM 39", "Which cases are wrong", _failures),
        ("TRIPOD+AI 14", "What was done for fairness", _nothing),
        ("CLAIM 19, 20", "How data were split, at which level", _splits),
        ("CLAIM 30, 31", "Robustness; explainability", _nothing),
        (
            "STARD-AI 24; TRIPOD+AI 20a; CLAIM 35",
            "Flow of participants, with a diagram",
            _nothing,
        ),
        (
            "STARD-AI 25; TRIPOD+AI 20b, 20c; CLAIM 36",
            "Participants: age, sex, body site",
            _participants(name),
        ),
        ("STARD-AI 26a", "Severity: how advanced the melanomas are", _nothing),
        ("STARD-AI 26b", "Diagnoses of those without melanoma", _diagnoses(name)),
        ("STARD-AI 27", "Time between test and reference standard", _nothing),
        (
            "STARD-AI 28; TRIPOD+AI 5a",
            "Whether the data are like the people it is meant for",
            told("representativeness"),
        ),
        (
            "STARD-AI 29; TRIPOD+AI 16; CLAIM 33",
            "External data, and how they differ",
            told("external_data"),
        ),
        ("STARD-AI 30", "Cross tabulation of test against reference", _cross),
        (
            "STARD-AI 31; TRIPOD+AI 23a; CLAIM 37, 38",
            "Estimates of accuracy with intervals",
            _estimates,
        ),
        ("TRIPOD+AI 12e, 12f, 24", "Calibration, recalibration", _calibration),
        ("STARD-AI 32", "Adverse events", _nothing),
        ("STARD-AI 33; TRIPOD+AI 26; CLAIM 40", "Limitations", _limits(about)),
        (
            "STARD-AI 34; TRIPOD+AI 25; CLAIM 41",
            "Implications for practice",
            _implications,
        ),
        ("STARD-AI 35", "Ethical considerations of use", _ethical_note),
        (
            "STARD-AI 36, 37; TRIPOD+AI 18c, 18d; CLAIM 34, 42",
            "Registration, protocol",
            told("registration"),
        ),
        (
            "STARD-AI 38, 39; TRIPOD+AI 18a, 18b; CLAIM 44",
            "Funding and interests",
            told("funding"),
        ),
        (
            "STARD-AI 40a; TRIPOD+AI 18e, 18f; CLAIM 43",
            "Code, weights and data",
            told("availability"),
        ),
        ("STARD-AI 40b", "Whether outputs are kept and can be audited", _audit),
        ("TRIPOD+AI 19", "Involvement of patients", told("patient_involvement")),
    )
    return [Item(refs, asks, answer(model)) for refs, asks, answer in items]


def _nothing(model: Model) -> None:
    """Neither scores nor `about` can answer it."""


def _title(model: Model) -> str:
    return "The first sentence of this report, with sensitivity and specificity."


def _objectives(model: Model) -> str:
    return (
        "How many melanomas the model flags, and how many other lesions, at a threshold"
        " chosen beforehand. No hypothesis was set."
    )


def _retrospective(model: Model) -> str:
    return (
        "This report was made afterwards, from scores of images whose diagnosis was "
        "known. It does not know whether they were collected for it."
    )


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


def _indeterminate(model: Model) -> str:
    return (
        "No score is: an image without one is refused. Doubtful diagnoses: not known "
        "from scores."
    )


def _groups(name: Callable[[str], str]) -> Callable[[Model], str | None]:
    def answer(model: Model) -> str | None:
        columns = sorted({name(row["by"]) for row in model["test"]["subgroups"]})
        if not columns:
            return None
        return f"By {', '.join(columns)}; exploratory: see \u201cWho it fails\u201d."

    return answer


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


def _participants(name: Callable[[str], str]) -> Callable[[Model], str | None]:
    def answer(model: Model) -> str | None:
        known = {row["by"] for row in model["test"]["subgroups"]} & _PERSONAL
        if not known:
            return None
        return (
            f"Of the test set, by {', '.join(sorted(map(name, known)))}: see \u201cWho "
            "it fails\u201d. Of training and validation: not shown."
        )

    return answer


def _diagnoses(name: Callable[[str], str]) -> Callable[[Model], str | None]:
    def answer(model: Model) -> str | None:
        rows = model["test"]["false_alarms_by_dx"]
        if not rows:
            return None
        counted = (f"{name(row['dx'])} {row['n']}" for row in rows)
        return f"Images: {', '.join(counted)}."

    return answer


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
    fitted = model["calibration"]
    recalibrated = (
        f"none is possible: {model['uncalibrated']}"
        if fitted is None
        else f"{fitted['method']}, fitted on validation and shown beside the score"
    )
    return (
        f"Slope {words.number(slope, 2)}, ECE, Brier score, reliability diagram. "
        f"Recalibration: {recalibrated}."
    )


def _failures(model: Model) -> str:
    test = model["test"]
    return (
        f"All {len(test['missed'])} images of missed melanomas and all false alarms are"
        " in metrics.json; see \u201cWhat it got wrong\u201d."
    )


def _limits(about: Mapping[str, str]) -> Callable[[Model], str | None]:
    extra = f" {about['limitations']}" if about.get("limitations") else ""
    return lambda _: f"See \u201cBefore you rely on these figures\u201d.{extra}"


def _implications(model: Model) -> str:
    return "What it means for 1,000 people, by prevalence; the decision curve."


def _ethical_note(model: Model) -> str:
    return "The ethical note of the model card; \u201cWho it fails\u201d."


def _audit(model: Model) -> str:
    return (
        "Every figure is in metrics.json beside this file, made from CSV files with a "
        "score for each image."
    )
