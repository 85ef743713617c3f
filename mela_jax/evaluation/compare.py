"""Two models on the same test images: what one gains over the other."""

from typing import Any

import numpy as np
import numpy.typing as npt

from mela_jax.errors import UserError
from mela_jax.evaluation.bootstrap import paired_difference
from mela_jax.evaluation.measure import Settings
from mela_jax.evaluation.scores import Predictions


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

    Args:
        a: scores of a.
        b: scores of b.
        settings: replicates and seed.
        threshold_a: frozen operating point of a.
        threshold_b: frozen operating point of b.
        names: of the models, for messages.

    Returns:
        "split": "test", and the three differences of `bootstrap.paired_difference`,
        each with "shown": whether the interval leaves out zero **and** p is below 0.05.

    Raises:
        UserError: the images or their labels differ, or there is one class only.
    """
    differences = paired_difference(
        a.label,
        a.lesion_id,
        a.score,
        _in_order_of(a, b, names),
        threshold_a=threshold_a,
        threshold_b=threshold_b,
        num_bootstrap=settings.num_bootstrap,
        seed=settings.seed,
    )
    return {
        "split": "test",
        **{
            name: {
                **figure,  # type: ignore[dict-item]
                "shown": (figure["low"] > 0 or figure["high"] < 0)  # type: ignore[index]
                and figure["p"] < 0.05,  # type: ignore[index]
            }
            for name, figure in differences.items()
        },
    }


def _in_order_of(
    first: Predictions, second: Predictions, names: tuple[str, str]
) -> npt.NDArray[np.float64]:
    """Return the scores of `second` in the image order of `first`."""
    row = {image_id: i for i, image_id in enumerate(second.image_id)}
    if set(row) != set(first.image_id):
        difference = len(set(row) ^ set(first.image_id))
        raise UserError(
            f"test predictions of {names[0]} and {names[1]} differ in "
            f"{difference} image(s); score both models on the same images"
        )
    order = np.asarray([row[image_id] for image_id in first.image_id])
    wrong = np.flatnonzero(second.label[order] != first.label)
    if wrong.size:
        raise UserError(
            f"test predictions of {names[0]} and {names[1]} disagree on the label "
            f"of {first.image_id[int(wrong[0])]}; score both on the same data"
        )
    return second.score[order]
