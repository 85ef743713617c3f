"""How well the diagnoses are told apart, where a model scores every one of them.

The decision is the class with the highest score. It has no threshold, so it promises
nothing of melanoma; the operating point does that.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    recall_score,
)

from mela_jax.evaluation.bootstrap import Resampled, percentile_interval
from mela_jax.evaluation.classes import TIED, ClassScores, IntArray
from mela_jax.evaluation.intervals import auc_interval, macro_auc_interval
from mela_jax.evaluation.rates import RATES, Rates
from mela_jax.evaluation.scores import Predictions
from mela_jax.evaluation.subgroups import FEW


def class_selection_metrics(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, *, melanoma: int
) -> dict[str, float]:
    """Return figures of the arg-max by which the best checkpoint can be chosen.

    The decision is the class with the highest of the probabilities [N, K]; with one
    class, which is melanoma, P >= 0.5. Labels int [N] are indices of the true class;
    with one class 1 for melanoma, else 0.

    Returns:
        "macro_f1": mean F1 of the classes that are true or decided somewhere;
        "accuracy"; "melanoma_recall": share of melanomas that are decided to be
        melanoma, 0 where there is none. It rewards calling everything melanoma, and a
        checkpoint that does so is the best by it.

    Raises:
        ValueError: shapes do not fit.
    """
    truth, score = np.asarray(labels), np.asarray(probabilities)
    if score.ndim != 2 or truth.shape != score.shape[:1] or not truth.size:
        raise ValueError(f"labels {truth.shape} of probabilities {score.shape}")
    if score.shape[1] == 1:
        decision, melanoma = (score[:, 0] >= 0.5).astype(np.int64), 1
    else:
        decision = score.argmax(axis=1)
    return {
        "macro_f1": float(f1_score(truth, decision, average="macro", zero_division=0)),
        "accuracy": float(accuracy_score(truth, decision)),
        "melanoma_recall": float(
            recall_score(truth == melanoma, decision == melanoma, zero_division=0)
        ),
    }


def add_classes(classes: ClassScores, rates: Rates) -> None:
    """Add accuracy and the rates of every class against the rest."""
    truth, decision = classes.truth, classes.decision
    rates.add("accuracy", decision == truth, among=np.ones(truth.size, dtype=bool))
    for k in range(len(classes.names)):
        rates.add_decision(f"class {k}", decision == k, truth == k, rates=RATES[:3])


def class_figures(split: Predictions, rates: Rates, drawn: Resampled) -> dict[str, Any]:
    """Return "multiclass" of metrics.json, for a split whose classes are scored.

    See `docs/evaluation.md`, "All diagnoses"; besides, "not_summing_to_1" and "tied"
    count images whose scores do not add up to 1, and whose highest score is shared;
    "few" marks a class with fewer than `FEW` images.
    """
    classes = split.classes
    assert classes is not None, "only where every class is scored"
    truth, decision, k = classes.truth, classes.decision, len(classes.names)
    # Ties, -1, go into the last column.
    column = np.where(decision == TIED, k, decision)
    lesions = np.asarray(split.lesion_id)
    per_class = []
    for i, name in enumerate(classes.names):
        held = truth == i
        by_image, by_lesion = (
            auc_interval(held, classes.score[:, i], ids) if held.any() else None
            for ids in (None, split.lesion_id)
        )
        per_class.append(
            {
                "name": name,
                "n": int(held.sum()),
                "lesions": len(np.unique(lesions[held])),
                "few": bool(held.sum() < FEW),
                "roc_auc": by_image,
                "roc_auc_by_lesion": by_lesion,
                **rates.by_image(f"class {i}"),
                "by_lesion": rates.by_lesion(f"class {i}", drawn),
            }
        )
    return {
        "classes": list(classes.names),
        "melanoma": classes.names[classes.melanoma],
        "absent": [row["name"] for row in per_class if not row["n"]],
        "not_summing_to_1": classes.not_summing_to_1,
        "tied": int((decision == TIED).sum()),
        "accuracy": rates.interval("accuracy", drawn),
        "balanced_accuracy": balanced_accuracy(np.unique(truth), rates, drawn),
        "macro_roc_auc": macro_auc_interval(truth, classes.score, split.lesion_id),
        "confusion": confusion_matrix(truth, column, labels=range(k + 1))[:k].tolist(),
        "per_class": per_class,
    }


def balanced_accuracy(
    present: IntArray, rates: Rates, drawn: Resampled
) -> dict[str, Any]:
    """Return the mean sensitivity of the classes, the measure of ISIC 2018 and 2019.

    Classes that are not `present`, by their index, have none and are left out, as in
    scikit-learn.

    The interval is the percentile bootstrap over lesions, from the replicates in which
    each of the classes occurs. A class that is always right, or never, cannot vary
    under resampling; then the classes' own intervals are combined by square and add,
    half width = sqrt(sum of squared half widths) / K (Zou and Donner 2008,
    doi:10.1002/sim.3095). "method" says which, "replicates" how many were used.
    """
    names = [f"class {k} sensitivity" for k in present]
    found = [rates.interval(name, drawn) for name in names]
    values, lows, highs = (
        np.asarray([each[key] for each in found], dtype=np.float64)
        for key in ("value", "low", "high")
    )
    value = float(values.mean())
    if np.isin(values, (0, 1)).any():
        below, above = (
            np.sqrt(np.sum((values - ends) ** 2)) / len(found) for ends in (lows, highs)
        )
        return {
            "value": value,
            "low": max(value - float(below), 0.0),
            "high": min(value + float(above), 1.0),
            "method": "square and add",
            "replicates": 0,
        }
    replicates = np.mean([rates.replicates(name, drawn) for name in names], axis=0)
    return {
        **percentile_interval(value, replicates),
        "method": "bootstrap",
        "replicates": int(np.isfinite(replicates).sum()),
    }
