"""Two models on the same test images: what one gains over the other."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mela_jax.errors import UserError
from mela_jax.evaluation.bootstrap import bootstrap, percentile_limits
from mela_jax.evaluation.intervals import FloatArray, auc_difference_p, mcnemar_p
from mela_jax.evaluation.measure import Settings
from mela_jax.evaluation.scores import Predictions, require_both_classes
from mela_jax.vocabulary import PictureNames


def compare(
    a: Predictions,
    b: Predictions,
    settings: Settings,
    *,
    threshold_a: float,
    threshold_b: float,
    names: tuple[str, str] = ("a", "b"),
) -> dict[str, Any]:
    """Compare two models on the same test images, in any order; a minus b.

    Both models are scored on the same resampled lesions, so what makes a test set
    easy or hard cancels. Specificity and sensitivity are each at the model's own
    frozen threshold; a gain in one means little if it is paid for in the other.
    The models' `names` are for messages.

    Returns:
        "split": "test"; for "roc_auc", "specificity" and "sensitivity" the
        "difference"; "low" and "high", its percentile interval; "replicates", how many
        were used; "p" of the "test": DeLong's for ROC-AUC (Obuchowski's where images
        repeat a lesion), McNemar's for the decisions (Yang's clustered one where images
        repeat a lesion); "shown": whether the interval leaves out zero **and** p is
        below 0.05.

    Raises:
        UserError: the images or their labels differ, or there is one class only.
    """
    b = Predictions(a.image_id, a.lesion_id, a.label, _in_order_of(a, b, names))
    label = a.label
    require_both_classes(label, "paired comparison")
    right_a = (a.score >= threshold_a) == (label == 1)
    right_b = (b.score >= threshold_b) == (label == 1)
    # +1 where only a is right, -1 where only b is: a weighted mean of it over one
    # class is the difference of the two rates.
    gain = right_a.astype(np.float64) - right_b
    classes = {"specificity": 0, "sensitivity": 1}
    columns: dict[str, FloatArray] = {}
    for rate, value in classes.items():
        of_class = (label == value).astype(np.float64)
        columns |= {f"{rate} gain": gain * of_class, f"{rate} images": of_class}
    count, seed = settings.num_bootstrap, settings.seed
    drawn_a, drawn_b = (
        bootstrap(split, num_bootstrap=count, seed=seed, columns=columns)
        for split in (a, b)
    )

    def figure(
        observed: float, replicates: FloatArray, p: float, test: str
    ) -> dict[str, Any]:
        low, high = percentile_limits(replicates)
        return {
            "difference": observed,
            "low": low,
            "high": high,
            "replicates": drawn_a.num_replicates,
            "p": p,
            "test": test,
            "shown": (low > 0 or high < 0) and p < 0.05,
        }

    def gained(drawn: Mapping[str, Any], rate: str) -> Any:
        return drawn[f"{rate} gain"] / drawn[f"{rate} images"]

    lesions, clustered = np.asarray(a.lesion_id), a.repeats_lesions
    found = {
        "roc_auc": figure(
            drawn_a.observed["roc_auc"] - drawn_b.observed["roc_auc"],
            drawn_a.replicates["roc_auc"] - drawn_b.replicates["roc_auc"],
            auc_difference_p(label, a.score, b.score, a.lesion_id),
            "DeLong, clustered (Obuchowski)" if clustered else "DeLong",
        )
    }
    for rate, value in classes.items():
        held = label == value
        found[rate] = figure(
            gained(drawn_a.observed, rate),
            gained(drawn_a.replicates, rate),
            mcnemar_p(right_a[held], right_b[held], lesions[held].tolist()),
            "McNemar, clustered (Yang)" if clustered else "McNemar, exact",
        )
    return {"split": "test", **found}


def _in_order_of(
    first: Predictions, second: Predictions, names: tuple[str, str]
) -> FloatArray:
    """Return the scores of `second` in the image order of `first`."""
    spelt = PictureNames(second.image_id)
    order = [k for name in first.image_id if (k := spelt.find(name)) is not None]
    different = len(first.image_id) + len(second.image_id) - 2 * len(set(order))
    if different or len(order) > len(set(order)):
        raise UserError(
            f"test predictions of {names[0]} and {names[1]} differ in "
            f"{different} image(s); score both models on the same images"
        )
    wrong = np.flatnonzero(second.label[order] != first.label)
    if wrong.size:
        raise UserError(
            f"test predictions of {names[0]} and {names[1]} disagree on the label "
            f"of {first.image_id[int(wrong[0])]}; score both on the same data"
        )
    return second.score[order]
