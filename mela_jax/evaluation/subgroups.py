"""Who the model fails: figures by sex, age, body site, diagnosis and source."""

from collections import Counter
from typing import Any

import numpy as np

from mela_jax.evaluation.bootstrap import Resampled
from mela_jax.evaluation.classes import BoolArray
from mela_jax.evaluation.intervals import auc_interval
from mela_jax.evaluation.rates import RATES, Rates
from mela_jax.evaluation.scores import Predictions

# Lower ends of the age bands, in years.
AGE_BANDS = (0, 30, 45, 60, 75)
# Fewer melanomas, or fewer others, than this tell next to nothing: marked.
FEW = 10
UNKNOWN = "unknown"


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


def add_groups(
    split: Predictions, flagged: BoolArray, rates: Rates
) -> dict[tuple[str, str], BoolArray]:
    """Find the groups of a test set and add their sensitivity and specificity.

    Flagged, bool [N], is the decision at the frozen threshold.

    Returns:
        (column, value) -> which images are of that group, bool [N]; for each value of
        each known column, unknown ones included, in the order of `DETAILS`. None for
        columns with one value.
    """
    groups: dict[tuple[str, str], BoolArray] = {}
    for by, texts in split.details.items():
        names = [age_band(t) if by == "age" else t or UNKNOWN for t in texts]
        values = sorted(set(names), key=lambda name: (name == UNKNOWN, name))
        if len(values) > 1:
            groups |= {(by, value): np.asarray(names) == value for value in values}
    for (by, name), held in groups.items():
        rates.add_decision(
            f"{by}={name}", flagged, split.label == 1, among=held, rates=RATES[:2]
        )
    return groups


def group_figures(
    split: Predictions,
    by: str,
    name: str,
    held: BoolArray,
    rates: Rates,
    drawn: Resampled,
) -> dict[str, Any]:
    """Return a row of the subgroup table, for a group of `add_groups`.

    "few_positives" and "few_negatives": fewer than `FEW` images of the class. "roc_auc"
    is None with one class only.
    """
    label, lesions = split.label[held], np.asarray(split.lesion_id)[held]
    positives, negatives = int(label.sum()), int((1 - label).sum())
    both = positives and negatives
    return {
        "by": by,
        "group": name,
        "n": int(label.size),
        "positives": positives,
        "roc_auc": auc_interval(label, split.score[held], lesions.tolist())
        if both
        else None,
        **rates.by_lesion(f"{by}={name}", drawn),
        "few_positives": positives < FEW,
        "few_negatives": negatives < FEW,
    }


def false_alarms_by_diagnosis(
    split: Predictions, flagged: BoolArray
) -> list[dict[str, Any]]:
    """Return which diagnoses fill the false positives, the most frequent first.

    Rows with "dx", "flagged" (images), "n" (images of that diagnosis that are not
    melanoma) and "share" of all false positives; [] without diagnoses.
    """
    if "dx" not in split.details:
        return []
    dx = np.asarray([text or UNKNOWN for text in split.details["dx"]])
    other = split.label == 0
    images, alarms = (Counter(dx[held].tolist()) for held in (other, flagged & other))
    rows = [
        {
            "dx": name,
            "flagged": alarms[name],
            "n": n,
            "share": alarms[name] / max(alarms.total(), 1),
        }
        for name, n in images.items()
    ]
    return sorted(rows, key=lambda row: (-row["flagged"], row["dx"]))


def list_images(
    split: Predictions, held: BoolArray, *, highest_first: bool
) -> list[dict[str, Any]]:
    """List some images, bool [N], by score, with what is known of them."""
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
