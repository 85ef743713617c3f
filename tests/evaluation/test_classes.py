"""Tables with a score of every diagnosis: the forms that are read, and the mistakes."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from mela_jax.errors import UserError
from mela_jax.evaluation.classes import TIED, ClassScores, pool_classes
from mela_jax.evaluation.isic import read_scores
from mela_jax.evaluation.scores import Predictions, pool

SCORES = "image,MEL,NV,BCC\nISIC_1,0.7,0.1,0.2\nISIC_2,0.05,0.9,0.3\n"
ONE_HOT = "image,NV,BCC,MEL,score_weight\nISIC_2,0,1.0,0,1\nISIC_1,0,0,1,0\n"
BY_NAME = "image_id,lesion_id,dx,sex\nISIC_1,a,mel,male\nISIC_2,b,BCC,\n"
TOGETHER = (
    "image_id,MEL,dx,NV,lesion_id,BCC,label,sex\n"
    "ISIC_1,0.7,mel,0.1,a,0.2,1,male\nISIC_2,0.05,bcc,0.9,b,0.3,0,\n"
)


def write(folder: Path, scores: str, truth: str | None) -> tuple[Path, Path | None]:
    (folder / "scores.csv").write_text(scores)
    if truth is None:
        return folder / "scores.csv", None
    (folder / "truth.csv").write_text(truth)
    return folder / "scores.csv", folder / "truth.csv"


@pytest.mark.parametrize(
    ("scores", "truth"),
    [(SCORES, ONE_HOT), (SCORES, BY_NAME), (TOGETHER, None)],
    ids=["one-hot", "by name", "together"],
)
@pytest.mark.parametrize("melanoma_only", [False, True])
def test_every_form_is_read(
    scores: str, truth: str | None, melanoma_only: bool, tmp_path: Path
) -> None:
    found = read_scores(*write(tmp_path, scores, truth), melanoma_only=melanoma_only)
    assert found.image_id == ["ISIC_1", "ISIC_2"]
    assert found.label.tolist() == [1, 0]
    assert found.score.tolist() == [0.7, 0.05]
    if truth != ONE_HOT:
        assert found.lesion_id == ["a", "b"]
        assert found.details == {"dx": ["mel", "bcc"], "sex": ["male", ""]}
    if melanoma_only:
        assert found.classes is None
        return
    assert found.classes is not None
    assert found.classes.names == ("MEL", "NV", "BCC")
    assert found.classes.truth.tolist() == [0, 2]
    assert found.classes.score.tolist() == [[0.7, 0.1, 0.2], [0.05, 0.9, 0.3]]
    assert found.classes.not_summing_to_1 == 1


def test_a_binary_truth_and_two_columns_stay_binary(tmp_path: Path) -> None:
    binary = "image_name,target\nISIC_1,1\nISIC_2,0\n"
    assert read_scores(*write(tmp_path, SCORES, binary)).classes is None
    two = "image_id,melanoma,seborrheic_keratosis\nISIC_1,0.7,0.1\nISIC_2,0.05,0\n"
    hot = "image_id,melanoma,seborrheic_keratosis\nISIC_1,1,0\nISIC_2,0,0\n"
    assert read_scores(*write(tmp_path, two, hot)).classes is None
    own = "image_id,label,score,MEL,NV,BCC\nISIC_1,1,0.7,1,2,3\n"
    assert read_scores(*write(tmp_path, own, None)).classes is None


@pytest.mark.parametrize(
    ("scores", "truth", "message"),
    [
        (SCORES.replace("0.9", "nan"), ONE_HOT, "line 3: NV 'nan' is not a number"),
        (SCORES.replace("0.9", "3.2"), ONE_HOT, "line 3: NV '3.2' is.*not logits"),
        (SCORES.replace("0.9", ""), ONE_HOT, "line 3: NV ''"),
        (SCORES, ONE_HOT.replace("BCC", "DF"), "bcc, df lack a match"),
        (SCORES, ONE_HOT.replace("0,1.0,0", "0,0,0"), "line 2: has not a 1"),
        (SCORES, ONE_HOT.replace("0,1.0,0", "1,1,0"), "line 2: has not a 1"),
        (SCORES, ONE_HOT.replace("0,1.0,0", "x,1,0"), "line 2: NV 'x'"),
        (SCORES, BY_NAME.replace("BCC", "scc"), "dx 'scc' is none of the classes"),
        (SCORES, BY_NAME.replace("dx", "label").replace("mel", "1"), "label '1' is no"),
        (
            SCORES,
            ONE_HOT.replace("ISIC_2", "ISIC_3"),
            "1 of 2 scored images are not in it",
        ),
        (
            SCORES.replace("ISIC_2", "ISIC_1"),
            ONE_HOT,
            "line 3: image 'ISIC_1' was already in line 2",
        ),
        (SCORES.replace(",0.3", ""), ONE_HOT, "line 3: BCC ''"),
        (SCORES.replace("NV", "BCC"), ONE_HOT, "'BCC' twice"),
        (SCORES.replace("NV", "melanoma"), ONE_HOT, "2 of the classes"),
        (SCORES.replace("ISIC_2", ""), ONE_HOT, "line 3: the image has no name"),
        (SCORES, None, "no column dx or label"),
        (TOGETHER.replace(",1,male", ",0,male"), None, "label '0' contradicts dx"),
    ],
)
def test_mistakes_are_named(
    scores: str, truth: str | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        read_scores(*write(tmp_path, scores, truth))


def test_a_shared_highest_score_is_no_decision() -> None:
    scores = np.asarray([[0.2, 0.4, 0.4], [0.0, 0.0, 0.0], [0.5, 0.4, 0.1]])
    found = ClassScores(("MEL", "NV", "DF"), np.zeros(3, dtype=np.int64), scores)
    assert found.decision.tolist() == [TIED, TIED, 0]
    assert found.not_summing_to_1 == 1


@given(
    st_numpy.arrays(
        np.float64,
        st.tuples(st.integers(1, 20), st.integers(3, 6)),
        elements=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    )
)
def test_the_decision_is_above_every_other_score(scores: np.ndarray) -> None:
    names = ("MEL", *(f"C{k}" for k in range(1, scores.shape[1])))
    truth = np.zeros(len(scores), dtype=np.int64)
    for row, decided in zip(
        scores, ClassScores(names, truth, scores).decision, strict=True
    ):
        others = np.delete(row, decided) if decided != TIED else row
        assert (row[decided] > others).all() == (decided != TIED)


def test_pooled_files_are_matched_by_name() -> None:
    first = ClassScores(("MEL", "NV", "DF"), np.asarray([0, 2]), np.eye(3)[[0, 2]])
    second = ClassScores(("df", "mel", "nv"), np.asarray([0, 1]), np.eye(3)[[0, 1]])
    both = pool_classes([first, second])
    assert both is not None
    assert both.truth.tolist() == [0, 2, 2, 0]
    np.testing.assert_array_equal(both.score, np.eye(3)[[0, 2, 2, 0]])
    assert pool_classes([None, None]) is None
    for other in (
        None,
        ClassScores(("MEL", "NV", "BCC"), np.asarray([0]), np.eye(3)[:1]),
    ):
        with pytest.raises(UserError, match="not the same classes"):
            pool_classes([first, other])

    def part(name: str, classes: ClassScores) -> Predictions:
        melanoma = classes.melanoma
        ids = [f"{name}{k}" for k in range(2)]
        label = (classes.truth == melanoma).astype(int)
        return Predictions(ids, ids, label, classes.score[:, melanoma], classes=classes)

    pooled = pool([part("a", first), part("b", second)])
    assert pooled.classes is not None and pooled.label.tolist() == [1, 0, 0, 1]
    with pytest.raises(ValueError, match="disagree"):
        Predictions(["a", "b"], ["a", "b"], [0, 0], [1.0, 0.0], classes=first)  # type: ignore[arg-type]
