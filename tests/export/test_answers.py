"""What exporting cost: counted by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.answers import Answers, _against
from export.file_metadata import logit_threshold
from mela_jax.evaluation.classes import ClassScores
from mela_jax.evaluation.scores import Predictions
from mela_jax.tflite import to_probability


def answers(labels, scores) -> Answers:
    names = [f"i{i}" for i in range(len(labels))]
    score = np.asarray(scores, np.float64)
    predictions = Predictions(names, names, np.asarray(labels), score)
    return Answers(np.log(score / (1 - score)), predictions)


def test_flips_are_counted_by_what_they_do():
    labels = [1, 1, 1, 1, 0, 0, 0, 0]
    before = answers(labels, [0.9, 0.8, 0.2, 0.6, 0.7, 0.1, 0.3, 0.55])
    after = answers(labels, [0.9, 0.4, 0.7, 0.6, 0.2, 0.6, 0.3, 0.45])
    found = _against(
        before,
        after,
        before=before.predictions.score >= 0.5,
        float_threshold=0.5,
        threshold=0.4,
    )
    kept = found["at_float_threshold"]
    assert kept["flips"] == {
        "all": 5,
        "melanomas_now_missed": 1,
        "melanomas_now_flagged": 1,
        "others_now_flagged": 1,
        "others_now_let_pass": 2,
    }
    assert kept["sensitivity"] == 3 / 4
    assert kept["specificity"] == 3 / 4
    # At its own threshold 0.4 the file flags the second melanoma and the last other.
    assert found["flips"]["all"] == 3
    assert found["flips"]["melanomas_now_missed"] == 0
    assert found["class_flips"] is None
    difference = after.logits - before.logits
    assert found["logit_max"] == np.abs(difference).max()
    assert found["logit_rmse"] == pytest.approx(np.std(difference, mean=0.0))


def test_class_flips_are_changes_of_the_most_probable_class():
    def scored(rows):
        score = np.array(rows)
        classes = ClassScores(("nv", "mel", "bkl"), np.array([1, 0, 2]), score)
        names = ["a", "b", "c"]
        predictions = Predictions(names, names, [1, 0, 0], score[:, 1], {}, classes)
        return Answers(np.zeros(3), predictions)

    before = scored([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1], [0.4, 0.25, 0.35]])
    after = scored([[0.3, 0.4, 0.3], [0.2, 0.5, 0.3], [0.35, 0.25, 0.4]])
    for file, flips in ((after, 2), (before, 0)):
        found = _against(
            before,
            file,
            before=before.predictions.score >= 0.5,
            float_threshold=0.5,
            threshold=0.5,
        )
        assert found["class_flips"] == flips


@given(
    st.floats(-60, 60, width=32),
    st.floats(0.05, 4),
    st.floats(-3, 3),
    st.integers(-3, 3),
)
def test_comparing_the_logit_decides_as_comparing_the_probability(
    logit, slope, intercept, steps
):
    calibration = {"a": slope, "b": intercept}
    threshold = float(to_probability(np.float64(logit), calibration))
    found = logit_threshold(threshold, calibration)
    assert found == np.float32(found) and found <= logit
    # Around both: the floats next to them, and a way off.
    for centre in (logit, found):
        near = np.float32(centre)
        for _ in range(abs(steps)):
            near = np.nextafter(near, np.float32(np.sign(steps) * np.inf))
        for other in (float(near), centre + 0.01 * steps, centre + 5.0 * steps):
            other = float(np.float32(other))
            probability = to_probability(np.float64(other), calibration)
            assert (probability >= threshold) == (other >= found)
