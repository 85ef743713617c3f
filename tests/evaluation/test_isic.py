"""The CSV formats of the ISIC challenges."""

from pathlib import Path

import pytest

from mela_jax.errors import UserError
from mela_jax.evaluation.isic import read_scores

FORMS = {
    "2018": "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC\nISIC_1,0.7,0.1,0,0,0.2,0,0\n"
    "ISIC_2,0.05,0.9,0,0,0,0,0.05\n",
    "2017": "image_id,melanoma,seborrheic_keratosis\nISIC_1,0.7,0.1\nISIC_2,0.05,0\n",
    "2020": "image_name,target\nISIC_1,0.7\nISIC_2,0.05\n",
    "2016": "ISIC_1,0.7\nISIC_2,0.05\n",
}
TRUTH = "ISIC_2,benign\nISIC_1,malignant\n"


def write(folder: Path, scores: str, truth: str = TRUTH) -> tuple[Path, Path]:
    (folder / "scores.csv").write_text(scores)
    (folder / "truth.csv").write_text(truth)
    return folder / "scores.csv", folder / "truth.csv"


@pytest.mark.parametrize("form", FORMS)
def test_every_form_meets_its_truth(form: str, tmp_path: Path) -> None:
    found = read_scores(*write(tmp_path, FORMS[form]))
    assert found.image_id == found.lesion_id == ["ISIC_1", "ISIC_2"]
    assert found.label.tolist() == [1, 0]
    assert found.score.tolist() == [0.7, 0.05]


@pytest.mark.parametrize(
    "truth",
    [
        "isic_id;Benign_Malignant;lesion_id\nISIC_2.jpg;benign;L\nISIC_1.jpg;malignant;L\n",
        "image_name,patient_id,target\nISIC_1,L,1.0\nISIC_2_downsampled,L,0.0\n",
        "image,MEL,NV,BCC,patient_id\nISIC_2,0,1.0,0,L\nISIC_1,1,0,0,L\n",
    ],
)
@pytest.mark.parametrize("form", ["2017", "2020", "2016"])
def test_lesions_and_patients_of_the_truth_are_not_lost(
    form: str, truth: str, tmp_path: Path
) -> None:
    found = read_scores(*write(tmp_path, FORMS[form], truth))
    assert found.label.tolist() == [1, 0]
    # As one lesion they count once in every interval.
    assert found.num_lesions == 1


@pytest.mark.parametrize(
    ("scores", "truth", "message"),
    [
        ("", TRUTH, "is empty"),
        ("image,NV\nISIC_1,0.5\nISIC_2,0\n", TRUTH, "no column score or target or mel"),
        ("name,score\na,0.5\n", TRUTH, "no column image_id or image or"),
        ("image,MEL\nISIC_1,0.5\nISIC_1,0.6\n", TRUTH, "line 3: image 'ISIC_1' was"),
        ("ISIC_1,0.5\nISIC_1,0.6\n", TRUTH, "line 2: image 'ISIC_1' was .* line 1"),
        ("image,MEL\nISIC_1,nan\nISIC_2,0\n", TRUTH, "line 2: MEL 'nan' is not a"),
        ("image,MEL\nISIC_1\nISIC_2,0\n", TRUTH, "line 2: MEL '' is not"),
        ("image,MEL\nISIC_1,1.5\nISIC_2,0\n", TRUTH, "line 2: MEL '1.5'"),
        ("image,MEL\n", TRUTH, "no rows"),
        (
            FORMS["2018"],
            TRUTH.replace("_2", "_3"),
            "1 of 2 scored images are not in it",
        ),
        (FORMS["2020"], FORMS["2016"], "truth.csv, line 1: target is '0.7'"),
        (FORMS["2020"], TRUTH.replace("benign", "fine"), "line 1: target is 'fine'"),
    ],
)
def test_mistakes_are_named(
    scores: str, truth: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        read_scores(*write(tmp_path, scores, truth))
