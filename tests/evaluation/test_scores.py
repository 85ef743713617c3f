"""Predictions files: exact round trip, and every mistake named with its row."""

import csv
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mela_jax.errors import UserError
from mela_jax.evaluation.classes import ClassScores
from mela_jax.evaluation.isic import read_scores
from mela_jax.evaluation.scores import (
    Predictions,
    check_binary,
    join_details,
    pool,
    read_predictions,
    write_predictions,
)
from mela_jax.labels import LabelSpace

HEADER = "image_id,lesion_id,label,score\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "student_val.csv"
    path.write_text(text, encoding="utf-8")
    return path


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_scores_read_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, scores: list[float]
) -> None:
    path = tmp_path_factory.mktemp("scores") / "p.csv"
    names = [f"i{k}" for k in range(len(scores))]
    lesions = [f"l{k // 2}" for k in range(len(scores))]
    labels = np.arange(len(scores)) % 2
    write_predictions(path, Predictions(names, lesions, labels, np.asarray(scores)))
    back = read_predictions(path)
    assert back.score.tobytes() == np.asarray(scores).tobytes()
    assert (back.image_id, back.lesion_id) == (names, lesions)
    np.testing.assert_array_equal(back.label, labels)


def test_float32_scores_are_kept_as_the_same_number(tmp_path: Path) -> None:
    score: npt.NDArray[Any] = np.asarray([0.1, 0.7], np.float32)
    path = tmp_path / "new" / "p.csv"
    write_predictions(
        path, Predictions(["a", "b"], ["a", "b"], np.asarray([0, 1]), score)
    )
    np.testing.assert_array_equal(read_predictions(path).score, score.astype(float))
    assert os.listdir(path.parent) == ["p.csv"], "no temporary file is left"


def test_names_with_commas_quotes_and_unicode_survive(tmp_path: Path) -> None:
    names = ['a,"b"', "Muttermal ä"]
    path = tmp_path / "p.csv"
    write_predictions(
        path, Predictions(names, names, np.asarray([0, 1]), np.asarray([0.0, 1.0]))
    )
    assert read_predictions(path).image_id == names


def test_other_columns_and_order_do_not_matter(tmp_path: Path) -> None:
    path = write(tmp_path, "\ufeffscore,sex,label,image_id,lesion_id\n0.5,male,1,a,b\n")
    read = read_predictions(path)
    assert (read.image_id, read.lesion_id) == (["a"], ["b"])
    assert (read.label.tolist(), read.score.tolist()) == ([1], [0.5])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("image_id,lesion_id,label\na,x,1\n", "no column score"),
        (HEADER, "no rows"),
        (HEADER + "a,a,1,0.5\nb,b,0,nan\n", "line 3: score 'nan'"),
        (HEADER + "a,a,1,inf\n", "line 2: score 'inf'"),
        (HEADER + "a,a,1,1.0000001\n", "line 2: score '1.0000001'"),
        (HEADER + "a,a,1,-0.1\n", "line 2: score '-0.1'"),
        (HEADER + "a,a,1,high\n", "line 2: score 'high'"),
        (HEADER + "a,a,1\n", "line 2: score ''"),
        (HEADER + "a,a,2,0.5\n", "line 2: label is '2'"),
        (HEADER + "a,a,,0.5\n", "line 2: label is ''"),
        ("image_id,label,dx,score\na,1,nv,0.5\n", "label '1' and diagnosis 'nv'"),
        (HEADER + ",a,1,0.5\n", "line 2: the image has no name"),
        (
            HEADER + "a,x,1,0.5\nb,x,0,0.5\na,x,1,0.5\n",
            "line 4: image 'a' was already",
        ),
        ("image_id,label,score,age\na,1,0.5,old\n", "line 2: age 'old'"),
        ("image_id,label,score,age\na,1,0.5,-1\n", "line 2: age '-1'"),
        ("image_id,label,score,age\na,1,0.5,200\n", "line 2: age '200'"),
    ],
)
def test_each_mistake_names_file_and_row(
    tmp_path: Path, text: str, message: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError, match="student_val.csv") as caught:
        read_predictions(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_made_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    one = Predictions(["a"], ["a"], np.asarray([1]), np.asarray([0.5]))
    with pytest.raises(UserError, match="cannot write"):
        write_predictions(tmp_path / "file" / "p.csv", one)


def test_a_failed_write_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p.csv"
    old = Predictions(["a"], ["a"], np.asarray([1]), np.asarray([0.25]))
    write_predictions(path, old)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    new = Predictions(["b"], ["b"], np.asarray([1]), np.asarray([0.5]))
    with pytest.raises(UserError, match="No space left on device"):
        write_predictions(path, new)
    assert read_predictions(path).image_id == ["a"]
    assert os.listdir(tmp_path) == ["p.csv"]


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([], [], "no scores"),
        ([1], [0.5, 0.5], "shape"),
        ([[1]], [[0.5]], "shape"),
        ([0, 2], [0.5, 0.5], "label 2 of image number 2"),
        ([0, -1], [0.5, 0.5], "neither 0 nor 1"),
        ([0, 1], [0.5, math.nan], "image number 2"),
        ([0, 1], [math.inf, 0.5], "image number 1"),
        ([0, 1], [1.5, 0.5], "not a number from 0 to 1"),
    ],
)
def test_unfit_arrays_are_refused(
    labels: list[int], scores: list[float], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check_binary(labels, scores)


@pytest.mark.parametrize(
    ("images", "lesions", "message"),
    [
        (["a", "a"], ["x", "x"], "occurs twice"),
        (["a", ""], ["x", "x"], "empty"),
        (["a"], ["x", "x"], "1 image ids"),
    ],
)
def test_unfit_names_are_refused(
    images: list[str], lesions: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        Predictions(images, lesions, np.asarray([0, 1]), np.asarray([0.1, 0.2]))


def test_details_are_kept_cleaned_and_written(tmp_path: Path) -> None:
    text = (
        "image_id,label,score,sex,age,camera\na,1,0.5,unknown,55.0,x\nb,0,0.1,nan,,y\n"
    )
    found = read_predictions(write(tmp_path, text))
    # Without lesion_id every image is a lesion; of sex nothing is known.
    assert found.lesion_id == ["a", "b"]
    assert not found.repeats_lesions
    assert found.details == {"age": ["55.0", ""]}
    path = tmp_path / "again.csv"
    write_predictions(path, found)
    assert path.read_text().splitlines()[0] == "image_id,lesion_id,label,score,age"
    assert read_predictions(path).details == found.details


def test_pooling_keeps_every_image_once() -> None:
    a = Predictions(["a", "b"], ["x", "y"], np.array([0, 1]), np.array([0.1, 0.9]))
    b = Predictions(["c"], ["z"], np.array([1]), np.array([0.4]), {"sex": ["female"]})
    both = pool([a, b])
    assert both.image_id == ["a", "b", "c"]
    assert both.score.tolist() == [0.1, 0.9, 0.4]
    assert both.details == {"sex": ["", "", "female"]}
    with pytest.raises(UserError, match="occurs twice"):
        pool([a, a])


def test_metadata_is_joined_by_image(tmp_path: Path) -> None:
    held = Predictions(["a", "b"], ["a", "b"], np.array([0, 1]), np.array([0.1, 0.9]))
    table = tmp_path / "metadata.csv"
    table.write_text(
        "lesion_id,image_id,dx,age\nl1,b,mel,50\nl1,a,nv,\n,other,nv,old\n,other,,\n"
    )
    found = join_details(held, table)
    assert found.lesion_id == ["l1", "l1"]
    assert found.details == {"dx": ["nv", "mel"], "age": ["", "50"]}
    for text, message in (
        ("image_id,dx\na,nv\n", "1 of 2 scored images are not in it .b."),
        ("image_id,dx\na,nv\na,nv\nb,nv\n", "line 3: image 'a' was already in line 2"),
        ("image_id,age\na,old\nb,3\n", "metadata.csv, line 2: age 'old'"),
        ("name\na\n", "no column image_id"),
    ):
        table.write_text(text)
        with pytest.raises(UserError, match=message):
            join_details(held, table)


def with_classes(names: tuple[str, ...], melanoma: int, seed: int = 0) -> Predictions:
    """Draw 30 images of some classes, scored as a network's logits would be."""
    rng = np.random.default_rng(seed)
    labels = LabelSpace(names, melanoma)
    truth = rng.integers(0, len(names), size=30)
    score = labels.probabilities(rng.normal(scale=20, size=(30, len(names))))
    ids = [f"i{seed}_{k}" for k in range(30)]
    return Predictions(
        ids,
        ids,
        labels.is_melanoma(truth).astype(int),
        score[:, melanoma],
        {"sex": ["male"] * 30, "dx": [names[k] for k in truth]},
        ClassScores(names, truth, score, melanoma),
    )


@pytest.mark.parametrize(
    ("names", "melanoma"),
    [
        (("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"), 4),
        (("benign", "malignant, melanoma"), 1),
        (("melanoma of the eye", "mel", "melanoma"), 0),
    ],
)
def test_classes_read_back_bit_for_bit_whatever_melanoma_is_called(
    tmp_path: Path, names: tuple[str, ...], melanoma: int
) -> None:
    path = tmp_path / "p.csv"
    held = with_classes(names, melanoma)
    write_predictions(path, held)
    with path.open(newline="") as file:
        header = next(csv.reader(file))
    assert header[:4] == ["image_id", "lesion_id", "label", "score"]
    assert header[4:] == ["sex", "dx", *(f"p_{name}" for name in names)]
    for back in (read_predictions(path), pool([read_scores(path)])):
        assert held.classes is not None and back.classes is not None
        assert (back.classes.names, back.classes.melanoma) == (names, melanoma)
        assert back.classes.score.tobytes() == held.classes.score.tobytes()
        np.testing.assert_array_equal(back.classes.truth, held.classes.truth)
        assert back.score.tobytes() == held.score.tobytes()
        assert back.details == held.details
    assert read_scores(path, melanoma_only=True).classes is None


def test_classes_survive_pooling_and_joining(tmp_path: Path) -> None:
    a, b = with_classes(("x", "y", "z"), 2), with_classes(("z", "X", "y"), 0, seed=1)
    both = pool([a, b])
    assert both.classes is not None
    assert (both.classes.names, both.classes.melanoma) == (("x", "y", "z"), 2)
    np.testing.assert_array_equal(both.classes.score[:, 2], both.score)
    with pytest.raises(UserError, match="not the same classes"):
        pool([a, with_classes(("x", "y", "z"), 1, seed=1)])
    table = tmp_path / "m.csv"
    rows = "".join(f"{name},{k}\n" for k, name in enumerate(a.image_id))
    table.write_text("image_id,age\n" + rows)
    assert join_details(a, table).classes is a.classes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label,score,p_m,p_n\n1,0.75,0.75,0.25\n", "no column dx"),
        ("label,score,dx,p_m,p_n\n1,0.75,wart,0.75,0.25\n", "dx 'wart' is none of"),
        ("label,score,dx,p_m,p_n\n1,0.75,,0.75,0.25\n", "dx '' is none of"),
        ("label,score,dx,p_m,p_n\n1,0.75,m,0.75,\n", "line 2: p_n '' is not a number"),
        ("label,score,dx,p_m,p_n\n1,0.75,m,0.75,1.2\n", "line 2: p_n '1.2'"),
        ("label,score,dx,p_m,p_n\n1,0.75,m,0.7,0.3\n", "melanoma is none of"),
        ("label,score,dx,p_m,p_n\n0,0.75,m,0.75,0.75\n0,1,n,1,1\n", "melanoma is none"),
        ("label,score,dx,p_m,p_m\n1,0.75,m,0.75,0.75\n", "'p_m' twice"),
    ],
)
def test_mistakes_in_classes_are_named(tmp_path: Path, text: str, message: str) -> None:
    header, *rows = text.splitlines()
    lines = [f"image_id,{header}", *(f"i{k},{row}" for k, row in enumerate(rows))]
    with pytest.raises(UserError, match="student_val.csv") as caught:
        read_predictions(write(tmp_path, "\n".join(lines)))
    assert message in str(caught.value)


def test_a_single_column_of_that_form_is_no_class(tmp_path: Path) -> None:
    path = write(tmp_path, "image_id,label,score,p_value\na,1,0.5,7\n")
    assert read_predictions(path).classes is None


def test_class_scores_refuse_what_does_not_fit() -> None:
    score = np.full((2, 2), 0.5)
    for truth, melanoma in (([0, 2], 0), ([-1, 0], 0), ([0, 1], 2)):
        with pytest.raises(ValueError, match="2"):
            ClassScores(("a", "b"), np.asarray(truth), score, melanoma)
    with pytest.raises(UserError, match="are melanoma"):
        ClassScores(("a", "b"), np.asarray([0, 1]), score)
