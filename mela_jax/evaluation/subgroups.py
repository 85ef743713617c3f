"""Who the model fails: figures by sex, age, body site, diagnosis and source."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from mela_jax.evaluation.bootstrap import Resampled
from mela_jax.evaluation.intervals import auc_interval
from mela_jax.evaluation.rates import BoolArray, Rates
from mela_jax.evaluation.scores import DETAILS, Predictions

# Lower ends of the age bands, in years.
AGE_BANDS = (0, 30, 45, 60, 75)
# Fewer melanomas, or fewer others, than this tell next to nothing: marked.
FEW = 10
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Group:
    """Some images of a test set.

    Attributes:
        by: the column that makes the group.
        name: its value there.
        held: bool [N], which images are in it.
        sensitivity: its number in `Rates`.
        specificity: likewise.
    """

    by: str
    name: str
    held: BoolArray
    sensitivity: int
    specificity: int


def age_band(age: str) -> str:
    """Return the band of an age in years, such as "45-59"; "unknown" for "".

    >>> age_band("59.9"), age_band("80"), age_band("")
    ('45-59', '75+', 'unknown')
    """
    if not age:
        return UNKNOWN
    at = int(np.searchsorted(AGE_BANDS, float(age), side="right")) - 1
    low = AGE_BANDS[at]
    return f"{low}-{AGE_BANDS[at + 1] - 1}" if at + 1 < len(AGE_BANDS) else f"{low}+"


def ask_groups(split: Predictions, flagged: BoolArray, rates: Rates) -> list[Group]:
    """Find the groups of a test set and ask for their rates.

    Args:
        split: the test set; its details make the groups.
        flagged: [N], the decision at the frozen threshold.
        rates: takes the questions.

    Returns:
        A group for each value of each known column, unknown ones included, in the order
        of `DETAILS`; none for columns with one value.
    """
    melanoma = split.label == 1
    return [
        Group(
            by,
            name,
            held,
            rates.ask(flagged, among=held & melanoma),
            rates.ask(~flagged, among=held & ~melanoma),
        )
        for by, name, held in _groups(split)
    ]


def group_figures(
    split: Predictions, group: Group, rates: Rates, drawn: Resampled
) -> dict[str, Any]:
    """Return a row of the subgroup table.

    Returns:
        "by", "group", "n", "positives", "sensitivity", "specificity" (value None where
        no image counts), "roc_auc" (None with one class only), "few_positives" and
        "few_negatives": fewer than `FEW` images of the class.
    """
    label = split.label[group.held]
    positives, negatives = int(label.sum()), int((1 - label).sum())
    lesions = [x for x, held in zip(split.lesion_id, group.held, strict=True) if held]
    both = positives and negatives
    return {
        "by": group.by,
        "group": group.name,
        "n": int(label.size),
        "positives": positives,
        "roc_auc": auc_interval(label, split.score[group.held], lesions)
        if both
        else None,
        "sensitivity": rates.interval(group.sensitivity, drawn),
        "specificity": rates.interval(group.specificity, drawn),
        "few_positives": positives < FEW,
        "few_negatives": negatives < FEW,
    }


def false_alarms_by_diagnosis(
    split: Predictions, flagged: BoolArray
) -> list[dict[str, Any]]:
    """Return which diagnoses fill the false positives, the most frequent first.

    Returns:
        Rows with "dx", "flagged" (images), "n" (images of that diagnosis that are not
        melanoma) and "share" of all false positives; [] without diagnoses.
    """
    if "dx" not in split.details:
        return []
    dx = np.asarray([text or UNKNOWN for text in split.details["dx"]])
    other = split.label == 0
    alarms = int((flagged & other).sum())
    rows: list[dict[str, Any]] = [
        {
            "dx": str(name),
            "flagged": int((flagged & other & (dx == name)).sum()),
            "n": int((other & (dx == name)).sum()),
        }
        for name in np.unique(dx[other])
    ]
    for row in rows:
        row["share"] = row["flagged"] / alarms if alarms else 0.0
    return sorted(rows, key=lambda row: (-row["flagged"], row["dx"]))


def list_images(
    split: Predictions, held: BoolArray, *, highest_first: bool
) -> list[dict[str, Any]]:
    """List images by score, with what is known of them.

    Args:
        split: the test set.
        held: bool [N], which images.
        highest_first: in this order of scores.
    """
    rows = np.flatnonzero(held)
    scores = -split.score[rows] if highest_first else split.score[rows]
    rows = rows[np.argsort(scores, kind="stable")]
    return [
        {
            "image_id": split.image_id[row],
            "lesion_id": split.lesion_id[row],
            "score": float(split.score[row]),
            **{name: texts[row] for name, texts in split.details.items()},
        }
        for row in rows.tolist()
    ]


def _groups(split: Predictions) -> Iterator[tuple[str, str, BoolArray]]:
    for by in DETAILS:
        texts = split.details.get(by)
        if texts is None:
            continue
        names = [age_band(t) if by == "age" else t or UNKNOWN for t in texts]
        values = sorted(set(names), key=lambda name: (name == UNKNOWN, name))
        if len(values) < 2:
            continue
        column = np.asarray(names)
        for value in values:
            yield by, value, column == value
