"""The CSV formats of the ISIC challenges."""

from pathlib import Path

import numpy as np
import pytest

from mela_jax.errors import UserError
from mela_jax.evaluation.isic import read_isic, read_scores, write_isic

FORMS = {
    "2018": "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC\nISIC_1,0.7,0.1,0,0,0.2,0,0\n"
    "ISIC_2,0.05,0.9,0,0,0,0,0.05\n",
    "2017": "image_id,melanoma,seborrheic_keratosis\nISIC_1,0.7,0.1\nISIC_2,0.05,0\n",
    "2020": "image_name,target\nISIC_1,0.7\nISIC_2,0.05\n",
    "2016": "ISIC_1,0.7\nISIC_2,0.05\n",
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read(form: str, tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_text(FORMS[form])
    assert read_isic(path) == {"ISIC_1": 0.7, "ISIC_2": 0.05}


def test_scores_meet_their_truth(tmp_path: Path) -> None:
    scores, truth = tmp_path / "scores.csv", tmp_path / "truth.csv"
    scores.write_text(FORMS["2018"])
    truth.write_text("ISIC_2,benign\nISIC_1,malignant\n")
    found = read_scores(scores, truth)
    assert found.image_id == found.lesion_id == ["ISIC_1", "ISIC_2"]
    assert found.label.tolist() == [1, 0]
    assert found.score.tolist() == [0.7, 0.05]
    truth.write_text("ISIC_1,malignant\nISIC_3,benign\n")
    with pytest.raises(UserError, match="1 have a score only, 1 a label only"):
        read_scores(scores, truth)
    truth.write_text("image_name,target\nISIC_1,0.5\nISIC_2,0\n")
    with pytest.raises(UserError, match=r"the label 0\.5"):
        read_scores(scores, truth)


def test_what_is_written_reads_back_to_the_same_bits(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((2, 50))
    names = [f"ISIC_{k:07d}" for k in range(50)]
    for scores in (
        {"target": values[0]},
        {"NV": values[1], "MEL": values[0]},
    ):
        path = tmp_path / "isic.csv"
        write_isic(path, names, scores)
        assert read_isic(path) == dict(zip(names, values[0].tolist(), strict=True))
    assert path.read_text().splitlines()[0] == "image,NV,MEL"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("image,NV\nISIC_1,0.5\n", "no column MEL"),
        ("name,score\na,0.5\n", "header name,score is unknown"),
        ("image,MEL\nISIC_1,0.5\nISIC_1,0.6\n", "row 3: ISIC_1 occurs twice"),
        ("image,MEL\nISIC_1,nan\n", "row 2: 'nan' is not a number"),
        ("image,MEL\nISIC_1\n", "row 2: too short"),
        ("image,MEL\nISIC_1,1.5\n", "row 2: '1.5'"),
        ("image,MEL\n", "no rows"),
    ],
)
def test_mistakes_are_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_isic(path)


def test_wrong_scores_are_not_written(tmp_path: Path) -> None:
    path = tmp_path / "isic.csv"
    for names, scores, message in (
        (["a"], {"NV": [0.5]}, "target, or of MEL"),
        (["a", "a"], {"target": [0.5, 0.5]}, "named twice"),
        (["a"], {"target": [0.5, 0.5]}, "2 scores"),
        (["a"], {"target": [float("nan")]}, "not a number"),
    ):
        with pytest.raises(UserError, match=message):
            write_isic(path, names, scores)
    assert not path.exists()
