"""A user's CSV is read, or what is wrong with it is said."""

import collections
import logging

import numpy as np
import pytest
from PIL import Image

from mela_jax.data.builders import UserCsv
from mela_jax.data.user_csv import read_user_csv
from mela_jax.errors import UserError
from mela_jax.labels import make_label_space


@pytest.fixture
def folder(tmp_path):
    """Return a folder with three pictures."""
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "sub/b, c.bmp", "sub/d.jpg"):
        Image.new("RGB", (6, 4), "red").save(tmp_path / name)
    return tmp_path


def test_reads(folder):
    """Relative and absolute paths, both spellings of labels, groups or none."""
    (folder / "labels.csv").write_text(
        f'\ufeffpath,label,group\n"sub/b, c.bmp", Melanoma ,g1\n'
        f"a.png,0,\n{folder}/sub/d.jpg,1,g1\n",
        encoding="utf-8",
    )
    records = read_user_csv(folder)
    assert records == read_user_csv(folder / "labels.csv")
    by_id = {r.image_id: r for r in records}
    assert list(by_id) == sorted(by_id)
    assert by_id["sub/b, c.bmp"].lesion_id == "g1"
    assert by_id["a.png"].lesion_id == "a.png"
    assert by_id["a.png"].path == str(folder / "a.png")
    assert [by_id[i].label for i in ("sub/b, c.bmp", "a.png")] == [1, 0]
    assert by_id[f"{folder}/sub/d.jpg"].label == 1


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("path;label\na.png;1.0\nsub/d.jpg;0.0\n", [1, 0]),
        ("path\tlabel\na.png\tmalignant\nsub/d.jpg\tbenign\n", [1, 0]),
        ("File,Target\na.png,TRUE\nsub/d.jpg,False\n", [1, 0]),
        ("image_path,label\na.png,mel\nsub/d.jpg,nv\n", [1, 0]),
        ('path,diagnosis\na.png,"Melanoma, NOS"\nsub/d.jpg,Nevus\n', [1, 0]),
        ("path,MEL,NV,BCC\na.png,1,0,0\nsub/d.jpg,0,0,1\n", [1, 0]),
    ],
)
def test_tables_of_other_spellings_say_the_same(folder, text, labels):
    (folder / "labels.csv").write_text(text)
    records = read_user_csv(folder)
    assert [r.label for r in records] == labels
    assert [r.image_id for r in records] == ["a.png", "sub/d.jpg"]


@pytest.mark.parametrize("column", ["group", "lesion_id", "Patient ID", "lesion"])
def test_images_that_any_column_groups_stay_together(folder, column):
    (folder / "labels.csv").write_text(
        f"path,label,{column}\na.png,1,G\nsub/d.jpg,0,G\n"
    )
    assert {r.lesion_id for r in read_user_csv(folder)} == {"G"}


def test_a_third_image_joins_two(folder):
    """What one table calls a lesion of a patient holds all images of both together."""
    (folder / "labels.csv").write_text(
        "path,label,lesion_id,patient_id\n"
        'a.png,1,L1,P1\nsub/d.jpg,0,L2,P1\n"sub/b, c.bmp",0,L2,\n'
    )
    assert {r.lesion_id for r in read_user_csv(folder)} == {"P1"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label,target\na.png,1,0\n", "label is '1' and target is '0'"),
        ("path,label,dx\na.png,malignant,bcc\n", "'malignant' and diagnosis 'bcc'"),
        (
            "path,label,group\na.png,1,\nsub/d.jpg,0,NA\n",
            "group are empty in every row",
        ),
        ("path,label,age\na.png,1,-1\n", "line 2: age '-1'"),
        ("path,label,age\na.png,1,999\n", "line 2: age '999'"),
        ("path,image_id,label\na.png,b,1\n", "path is 'a.png' and image_id is 'b'"),
    ],
)
def test_what_the_report_would_refuse_is_refused_here(folder, text, message):
    (folder / "labels.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_user_csv(folder)


def test_diagnosis_and_source(folder):
    """They may be there, in any case and order; what is not known is empty."""
    (folder / "labels.csv").write_text(
        "Source,path,DX,label,licence\n"
        "Clinic A,a.png, MEL ,1,CC-0\n"
        "unknown,sub/d.jpg,nan,0,\n"
    )
    first, second = read_user_csv(folder)
    assert (first.dx, first.source) == ("mel", "Clinic A")
    assert (second.dx, second.source) == ("", "")


def test_real_images_of_other_clinics(shared):
    """Their table is read as it is."""
    folder = shared / "data" / "isic_extra"
    if not folder.is_dir():
        pytest.skip(f"no images of other clinics: {folder} is absent")
    records = read_user_csv(folder)
    assert (len(records), sum(r.label for r in records)) == (13_509, 4646)
    assert all((r.dx == "mel") == (r.label == 1) for r in records)
    melanomas = collections.Counter(r.source for r in records if r.label)
    assert (melanomas["isic2017"], melanomas["acral-bcn"]) == (397, 339)
    assert len(melanomas) > 10 and "" not in melanomas
    spaces = make_label_space("diagnoses", records, melanoma="mel")
    assert set(spaces.names) == {"mel", "nv", "bkl", "benign"}


def test_two_columns_suffice_and_unnamed_images_are_told(folder, caplog):
    """Without groups every image is its own; images left out are counted."""
    (folder / "labels.csv").write_text("path,label\nsub/d.jpg,other\n")
    with caplog.at_level(logging.WARNING):
        (record,) = read_user_csv(folder)
    assert record.lesion_id == "sub/d.jpg"
    assert (record.dx, record.source) == ("", "")
    assert "does not name 1 images" in caplog.text and "b, c.bmp" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,group\na.png,1\n", r"no column label.* \(it has path, group\)"),
        ("", "is empty"),
        ("path,label\n", "no rows"),
        ("path,label\na.png,2\n", "line 2: label is '2'; .*melanoma, and 0"),
        ("path,label\na.png,\n", "line 2: label is ''"),
        ("path,label\na.png\n", "line 2: label is ''"),
        ("path,label\n,1\n", "line 2: the image has no name"),
        ("path,label\na.png,1\n./sub/../a.png,1\n", "line 3: .*same file as 'a.png'"),
        ("path,label\nsub/b, c.bmp,1,g,h\n", "line 2: has 5 cells"),
        ("path,label\nx.png,1\ny.png,1\na.png,0\n", r"2 of 3 .*\(x.png, y.png\)"),
        ("path,label\n\xff,1\n", "line 2: is not UTF-8"),
    ],
)
def test_mistakes(folder, text, message):
    """Each mistake is one line with its place."""
    (folder / "labels.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=message) as info:
        read_user_csv(folder)
    assert "\n" not in str(info.value)


def test_absent(tmp_path):
    """A folder without labels.csv is named."""
    with pytest.raises(UserError, match=r"no CSV .*labels.csv"):
        read_user_csv(tmp_path)


def test_tfds_builder(folder):
    """The builder stores upright RGB of any format."""
    tfds = pytest.importorskip("tensorflow_datasets")
    table = 'path,label,dx,source\nsub/d.jpg,1,mel,A\n"sub/b, c.bmp",0,,\n'
    (folder / "labels.csv").write_text(table)
    builder = UserCsv(data_dir=str(folder / "tfds"))
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(
            manual_dir=str(folder), compute_stats="skip"
        )
    )
    examples = list(tfds.as_numpy(builder.as_dataset(split="train")))
    by_id = {e["image_id"].decode(): e for e in examples}
    melanoma = by_id["sub/d.jpg"]
    assert (melanoma["label"], melanoma["dx"], melanoma["source"]) == (1, b"mel", b"A")
    np.testing.assert_array_equal(
        by_id["sub/b, c.bmp"]["image"], np.full((4, 6, 3), [255, 0, 0])
    )
