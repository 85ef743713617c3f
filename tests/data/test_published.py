"""The layouts that people have on disk today, made up, each read as what it says."""

from pathlib import Path

import pytest

from mela_jax.data.load import DATASETS
from mela_jax.data.published import LAYOUTS
from mela_jax.data.records import Record
from mela_jax.errors import UserError
from tests.data.test_ham10000 import write_image


def write(root: Path, files: dict[str, str], images: list[str]) -> Path:
    """Write tables by their names, and pictures."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for k, name in enumerate(images):
        write_image(root / name, k)
    return root


ISIC_ARCHIVE = {
    "metadata.csv": (
        "isic_id,attribution,copyright_license,age_approx,anatom_site_general,"
        "diagnosis_1,diagnosis_2,diagnosis_3,diagnosis_confirm_type,lesion_id,"
        "patient_id,sex\n"
        "ISIC_1,A,CC-0,45,posterior torso,Malignant,Malignant melanocytic"
        ' proliferations (Melanoma),"Melanoma, NOS",histopathology,IL_1,IP_1,male\n'
        "ISIC_2,A,CC-BY,,,Benign,Benign melanocytic proliferations,Nevus,"
        "single image expert consensus,IL_2,IP_1,male\n"
        "ISIC_3,A,CC-BY,30,,Benign,Benign epidermal proliferations,"
        "Seborrheic keratosis,,IL_3,,female\n"
    )
}
ISIC_2019 = {
    "ISIC_2019_Training_GroundTruth.csv": (
        "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK\n"
        "ISIC_1,1.0,0.0,0,0,0,0,0,0,0\nISIC_2_downsampled,0,1.0,0,0,0,0,0,0,0\n"
        "ISIC_3,0,0,0,0,0,0,0,1.0,0\n"
    ),
    "ISIC_2019_Training_Metadata.csv": (
        "image,age_approx,anatom_site_general,lesion_id,sex\n"
        "ISIC_1,55.0,anterior torso,BCN_1,female\n"
        "ISIC_2_downsampled,30.0,,,male\nISIC_3,,,BCN_1,\n"
    ),
}
ISIC_2020 = (
    "image_name,patient_id,sex,age_approx,anatom_site_general_challenge,diagnosis,"
    "benign_malignant,target\n"
    "ISIC_1,IP_1,male,45.0,torso,melanoma,malignant,1\n"
    "ISIC_2,IP_1,male,45.0,torso,unknown,benign,0\n"
    "ISIC_3,IP_2,female,,,nevus,benign,0\n"
)
PAD_UFES_20 = {
    "metadata.csv": (
        "patient_id,lesion_id,smoke,age,gender,region,diagnostic,img_id,biopsed\n"
        "PAT_8,15,,40,MALE,ARM,MEL,PAT_8_15_820.png,True\n"
        "PAT_8,16,False,40,,NECK,NEV,PAT_8_16_1.png,False\n"
        "PAT_9,17,,77,FEMALE,FACE,SEK,PAT_9_17_2.png,False\n"
    )
}
IN = "ISIC_2019_Training_Input"
CASES = {
    "isic_archive": (ISIC_ARCHIVE, [f"ISIC_{k}.jpg" for k in (1, 2, 3)]),
    "isic_2019": (
        ISIC_2019,
        [f"{IN}/ISIC_1.jpg", f"{IN}/ISIC_2_downsampled.jpg", f"{IN}/ISIC_3.jpg"],
    ),
    "isic_2020": (
        {"train.csv": ISIC_2020, "test.csv": "image_name,patient_id\nISIC_9,IP_9\n"},
        [f"jpeg/train/ISIC_{k}.jpg" for k in (1, 2, 3)] + ["jpeg/test/ISIC_9.jpg"],
    ),
    "pad_ufes_20": (
        PAD_UFES_20,
        [
            "imgs_part_1/PAT_8_15_820.png",
            "imgs_part_2/PAT_8_16_1.png",
            "imgs_part_3/PAT_9_17_2.png",
        ],
    ),
}


def read(name: str, root: Path) -> list[Record]:
    files, images = CASES[name]
    return DATASETS[name](write(root, files, images))


@pytest.mark.parametrize("name", CASES)
def test_every_layout_says_the_same_kind_of_things(name, tmp_path):
    records = read(name, tmp_path)
    assert [r.label for r in records] == [1, 0, 0]
    assert records[0].dx == "mel"
    assert {r.source for r in records} == {LAYOUTS[name].source}
    assert all(Path(r.path).is_file() for r in records)


def test_a_collection_of_the_archive(tmp_path):
    first, second, third = read("isic_archive", tmp_path)
    assert [r.dx for r in (first, second, third)] == ["mel", "nv", "bkl"]
    assert [r.dx_type for r in (first, second)] == ["histo", "consensus"]
    # Two lesions of one patient stay together; where no patient is known, the lesion.
    assert first.lesion_id == second.lesion_id == "IP_1" and third.lesion_id == "IL_3"
    assert (first.age, first.sex) == ("45", "male")
    assert first.localization == "posterior torso"
    assert (second.age, second.localization) == ("", "")


def test_isic_2019_joins_its_tables_and_counts_what_has_no_lesion(tmp_path, caplog):
    first, second, third = read("isic_2019", tmp_path)
    assert [r.dx for r in (first, second, third)] == ["mel", "nv", "scc"]
    assert first.lesion_id == third.lesion_id == "BCN_1"
    assert second.image_id == "ISIC_2"
    assert second.lesion_id not in ("", "BCN_1")
    assert "1 of 3 images have no lesion_id" in caplog.text


def test_isic_2020_keeps_patients_together_and_leaves_the_test_set_out(tmp_path):
    records = read("isic_2020", tmp_path)
    assert [r.lesion_id for r in records] == ["IP_1", "IP_1", "IP_2"]
    assert [r.dx for r in records] == ["mel", "", "nv"]
    # The table of the archive, with lesions, instead of Kaggle's.
    (tmp_path / "train.csv").rename(tmp_path / "ISIC_2020_Training_GroundTruth_v2.csv")
    assert DATASETS["isic_2020"](tmp_path) == records


def test_pad_ufes_keeps_the_lesions_of_a_patient_together(tmp_path):
    records = read("pad_ufes_20", tmp_path)
    assert [r.dx for r in records] == ["mel", "nv", "bkl"]
    assert [r.lesion_id for r in records] == ["PAT_8", "PAT_8", "PAT_9"]
    assert records[2].image_id == "PAT_9_17_2"


@pytest.mark.parametrize("name", CASES)
def test_without_a_column_that_groups_nothing_is_read(name, tmp_path):
    root = tmp_path
    files, images = CASES[name]
    without = {
        table: text.replace("lesion_id", "weight").replace("patient_id", "height")
        for table, text in files.items()
    }
    write(root, without, images)
    with pytest.raises(UserError, match="no column lesion_id or patient_id"):
        DATASETS[name](root)


def test_label_and_diagnosis_that_contradict_each_other_are_refused(tmp_path):
    wrong = ISIC_2020.replace("melanoma,malignant,1", "nevus,malignant,1")
    write(tmp_path, {"train.csv": wrong}, [f"train/ISIC_{k}.jpg" for k in (1, 2, 3)])
    with pytest.raises(UserError, match="train.csv, line 2: .* contradict"):
        DATASETS["isic_2020"](tmp_path)


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    read("isic_archive", tmp_path)
    (tmp_path / "ISIC_2.jpg").unlink()
    (tmp_path / "ISIC_2.jpg").symlink_to("../.git/annex/objects/absent.jpg")
    with pytest.raises(UserError, match="1 images are links .*ISIC_2.jpg"):
        DATASETS["isic_archive"](tmp_path)
