"""Reporting items of STARD-AI, TRIPOD+AI and CLAIM, filled in or marked missing.

Numbers are those of STARD-AI (Sounderajah et al. 2025,
doi:10.1038/s41591-025-03953-8), TRIPOD+AI (Collins et al. 2024,
doi:10.1136/bmj-2023-078378) and the 2024 update of CLAIM (Tejani et al. 2024,
doi:10.1148/ryai.240300). The wording, in templates/checklist.j2, is ours.
What the scores show is filled in from them; what only the people who made the study
know is taken from `about`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mela_jax.report.wording import make_environment

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
) -> list[Item]:
    """Fill in what can be filled in.

    Args:
        metrics: what metrics.json holds.
        leader: the model that the report is about.
        about: key of `ABOUT` -> text.
    """
    # One line per item: a line end within an answer would be taken for the next item.
    told = {key: " ".join(about.get(key, "").split()) for key in ABOUT}
    template = make_environment().get_template("checklist.j2")
    lines = template.render(model=metrics["models"][leader], about=told).splitlines()
    items = (line.split(" |", 2) for line in lines)
    return [
        Item(refs, asks.strip(), answer.strip() or None) for refs, asks, answer in items
    ]
