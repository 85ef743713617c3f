"""Every published layout of HAM10000 is read, and every mistake in one is named."""

import collections
import csv
import errno
import http.server
import os
import threading
import urllib.error
import zipfile

import numpy as np
import pytest
from PIL import Image

from mela_jax.data import ham10000
from mela_jax.data.builders import Ham10000
from mela_jax.data.ham10000 import download_ham10000, extract_zip
from mela_jax.data.published import HAM10000 as DIAGNOSES
from mela_jax.data.published import read_published
from mela_jax.errors import UserError

HEADER = ("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization")
ROWS = [
    (f"HAM_{number // 2}", f"ISIC_{number}", dx, "histo", age, "male", "back")
    for number, (dx, age) in enumerate(
        zip(DIAGNOSES, ("80.0", "", "5", "35.0", "50.0", "60.0", "70.0"), strict=True)
    )
]


def write_image(path, value=0):
    """Write a small picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = "PNG" if path.suffix.lower() == ".png" else "JPEG"
    Image.fromarray(np.full((6, 8, 3), value, np.uint8)).save(path, kind)


def write_table(path, rows=ROWS, header=HEADER, separator=","):
    """Write a metadata table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        quoting = csv.QUOTE_ALL if separator == "\t" else csv.QUOTE_MINIMAL
        writer = csv.writer(file, delimiter=separator, quoting=quoting)
        writer.writerow(header)
        writer.writerows(rows)


def make_layout(root, layout):
    """Write the seven images of `ROWS` in one of the published layouts."""
    names = [row[1] for row in ROWS]
    if layout == "kaggle":
        write_table(root / "HAM10000_metadata.csv")
        folders = ["HAM10000_images_part_1"] * 3 + ["HAM10000_images_part_2"] * 4
        # Kaggle's archive has further tables and the parts a second time.
        (root / "hmnist_8_8_L.csv").write_text("pixel0000,label\n1,2\n")
        write_image(root / "ham10000_images_part_1" / "ISIC_0.jpg")
        write_image(root / "HAM10000_segmentations_lesion" / "ISIC_0.png")
    elif layout == "dataverse":
        write_table(root / "HAM10000_metadata")
        folders = ["any name/deeper"] * 7
        write_image(root / "ISIC2018_Task3_Test_Images" / "ISIC_99.jpg")
        write_table(root / "ISIC2018_Task3_Test_GroundTruth.csv", [ROWS[0]])
    elif layout == "dataverse_tab":
        write_table(root / "HAM10000_metadata.tab", separator="\t")
        folders = ["."] * 7
    elif layout == "flat":
        write_table(root / "my table.csv")
        folders = ["."] * 7
        write_image(root / "ISIC_0_segmentation.png")
    else:
        truth = "ISIC2018_Task3_Training_GroundTruth"
        marks = [
            (row[1], *("1.0" if row[2] == dx else "0.0" for dx in DIAGNOSES))
            for row in ROWS
        ]
        header = ("image", *(dx.upper() for dx in DIAGNOSES))
        write_table(root / truth / f"{truth}.csv", marks, header)
        write_table(
            root / "ISIC2018_Task3_Training_LesionGroupings.csv",
            [(row[1], row[0], "histopathology") for row in ROWS],
            ("image", "lesion_id", "diagnosis_confirm_type"),
        )
        folders = ["ISIC2018_Task3_Training_Input"] * 7
        (root / folders[0]).mkdir()
        (root / folders[0] / "LICENSE.txt").write_text("CC BY-NC")
    suffixes = [".jpg", ".JPG", ".jpeg", ".png", ".PNG", ".JPEG", ".jpg"]
    for name, folder, suffix in zip(names, folders, suffixes, strict=True):
        write_image(root / folder / f"{name}{suffix}")


@pytest.mark.parametrize(
    "layout", ["kaggle", "dataverse", "dataverse_tab", "flat", "isic"]
)
def test_layouts(tmp_path, layout):
    """The same seven images come from every layout."""
    make_layout(tmp_path, layout)
    records = read_published(tmp_path)
    assert [(r.lesion_id, r.image_id, r.dx) for r in records] == [r[:3] for r in ROWS]
    assert [r.label for r in records] == [0, 0, 0, 0, 1, 0, 0]
    assert {r.dx_type for r in records} == {"histo"}
    if layout != "isic":
        assert [r.age for r in records] == [row[4] for row in ROWS]
        assert records[0].localization == "back"
    assert all(os.path.isfile(r.path) for r in records)


@pytest.mark.parametrize("layout", ["kaggle", "isic"])
def test_without_the_column_no_source_is_known(tmp_path, layout):
    """Older releases, and ISIC's files, do not name the source."""
    make_layout(tmp_path, layout)
    assert {r.source for r in read_published(tmp_path)} == {""}


def test_source_and_words_for_not_known(tmp_path):
    """The column `dataset` is the source; "not known" in any words reads as empty."""
    make_layout(tmp_path, "kaggle")
    sources = ("vidir_modern", "", "NaN", "unknown", "None", " rosendahl ", "na")
    rows = [
        (*row[:5], "unknown", "NULL", s) for row, s in zip(ROWS, sources, strict=True)
    ]
    write_table(tmp_path / "HAM10000_metadata.csv", rows, (*HEADER, "dataset"))
    records = read_published(tmp_path)
    found = [r.source for r in records]
    assert found == ["vidir_modern", "", "", "", "", "rosendahl", ""]
    assert {(r.sex, r.localization) for r in records} == {("", "")}


def test_real_folder(ham10000_small):
    """The real copy has the known numbers of images, lesions, melanomas and sources."""
    records = read_published(ham10000_small)
    assert len(records) == 10_015
    assert len({r.lesion_id for r in records}) == 7470
    assert sum(r.label for r in records) == 1113
    assert records == sorted(records, key=lambda r: r.image_id)
    melanomas = collections.Counter(r.source for r in records if r.label)
    assert melanomas == {
        "vidir_molemax": 24,
        "vidir_modern": 680,
        "rosendahl": 342,
        "vienna_dias": 67,
    }


def change_row(number, **cells):
    """Return `ROWS` with some cells of a row changed."""
    rows = [dict(zip(HEADER, row, strict=True)) for row in ROWS]
    rows[number] |= cells
    return [tuple(row.values()) for row in rows]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            change_row(2, dx="carcinoma"),
            "line 4: dx is 'carcinoma'; it must be one of "
            "akiec, bcc, bkl, df, mel, nv, vasc",
        ),
        (change_row(2, dx=""), "line 4: dx is ''"),
        (change_row(2, lesion_id=""), "line 4: the image has no lesion_id"),
        (
            change_row(2, image_id="ISIC_1"),
            "line 4: image 'ISIC_1' was already in line 3",
        ),
        (change_row(2, age="old"), "line 4: age 'old' is not a number"),
        ([], "no rows"),
    ],
)
def test_bad_rows(tmp_path, rows, message):
    """A bad line is named with its number."""
    make_layout(tmp_path, "kaggle")
    write_table(tmp_path / "HAM10000_metadata.csv", rows)
    with pytest.raises(UserError, match=message):
        read_published(tmp_path)


def test_bad_folders(tmp_path):
    """A folder that is absent, empty, without table or with two is named."""
    with pytest.raises(UserError, match="no data folder"):
        read_published(tmp_path / "absent")
    with pytest.raises(UserError, match="is empty"):
        read_published(tmp_path)
    write_image(tmp_path / "ISIC_0.jpg")
    with pytest.raises(UserError, match="no table"):
        read_published(tmp_path)
    write_table(tmp_path / "a.csv", [("x", "y")], ("image_id", "dx"))
    with pytest.raises(UserError, match="no column lesion_id"):
        read_published(tmp_path)
    write_table(tmp_path / "a.csv")
    write_table(tmp_path / "b.csv")
    with pytest.raises(UserError, match=r"several tables \(a.csv, b.csv\)"):
        read_published(tmp_path)
    (tmp_path / "HAM10000_metadata.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8|NUL"):
        read_published(tmp_path)


def test_mismatch_counts_both_ways(tmp_path):
    """Counts and the first five of what is missing and of what is too much."""
    make_layout(tmp_path, "kaggle")
    part = tmp_path / "HAM10000_images_part_2"
    (part / "ISIC_3.png").unlink()
    for number in range(10, 17):
        write_image(part / f"ISIC_{number}.jpg")
    with pytest.raises(UserError) as info:
        read_published(tmp_path)
    message = str(info.value)
    assert "1 of 7 images that HAM10000_metadata.csv names are not there" in message
    assert "(ISIC_3)" in message
    assert "7 of 13 images are not named" in message
    assert (
        "ISIC_10.jpg, ISIC_11.jpg, ISIC_12.jpg, ISIC_13.jpg, ISIC_14.jpg ...)"
        in message
    )
    assert "\n" not in message


def test_two_different_images_of_one_name(tmp_path):
    """Copies at two sizes in one folder are refused, as one would be taken blindly."""
    make_layout(tmp_path, "flat")
    (tmp_path / "small").mkdir()
    Image.effect_noise((30, 30), 50).save(tmp_path / "small" / "ISIC_0.jpg")
    with pytest.raises(UserError, match="two different images are called 'ISIC_0'"):
        read_published(tmp_path)


def test_isic_tables(tmp_path):
    """Rows of the ISIC tables that make no sense are named."""
    make_layout(tmp_path, "isic")
    groupings = tmp_path / "ISIC2018_Task3_Training_LesionGroupings.csv"
    rows = [(row[1], row[0]) for row in ROWS[1:]]
    write_table(groupings, rows, ("image", "lesion_id"))
    with pytest.raises(UserError, match=r"1 of 7 images .* not in it \(ISIC_0\)"):
        read_published(tmp_path)
    groupings.unlink()
    with pytest.raises(UserError, match="no ISIC2018_Task3_Training_LesionGroupings"):
        read_published(tmp_path)
    write_table(groupings, [(row[1], row[0]) for row in ROWS], ("image", "lesion_id"))
    truth = "ISIC2018_Task3_Training_GroundTruth"
    header = ("image", *(dx.upper() for dx in DIAGNOSES))
    write_table(tmp_path / truth / f"{truth}.csv", [("ISIC_0", *"1100000")], header)
    with pytest.raises(UserError, match="line 2: exactly one of .* must be 1"):
        read_published(tmp_path)


def zip_layout(source, target):
    """Pack an unpacked ISIC layout the way it is published."""
    target.mkdir()
    for name in (
        "ISIC2018_Task3_Training_Input",
        "ISIC2018_Task3_Training_GroundTruth",
    ):
        with zipfile.ZipFile(target / f"{name}.zip", "w") as file:
            for path in sorted((source / name).iterdir()):
                file.write(path, f"{name}/{path.name}")
    table = "ISIC2018_Task3_Training_LesionGroupings.csv"
    (target / table).write_bytes((source / table).read_bytes())


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serve the published files from this machine."""
    make_layout(tmp_path / "source", "isic")
    zip_layout(tmp_path / "source", tmp_path / "served")
    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, directory=str(tmp_path / "served"), **kwargs)

        def log_message(self, *args):
            requests.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{httpd.server_port}/"
        monkeypatch.setattr(ham10000, "ISIC_URL", url)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield requests
        httpd.shutdown()
        thread.join()


def test_download(tmp_path, server):
    """The three files are fetched, unpacked and read, and not fetched twice."""
    target = tmp_path / "data"
    download_ham10000(target)
    assert len(read_published(target)) == 7
    assert len(server) == 3
    download_ham10000(target)
    assert len(server) == 3
    assert not [p for p in target.iterdir() if p.name.startswith(".")]


def test_no_network(tmp_path, monkeypatch):
    """Without a network, the message says what to place where."""

    def urlopen(*args, **kwargs):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(ham10000.urllib.request, "urlopen", urlopen)
    with pytest.raises(UserError) as info:
        download_ham10000(tmp_path / "data")
    message = str(info.value)
    for word in (*ham10000.DOWNLOADS, "isic-archive", str(tmp_path / "data")):
        assert word in message
    assert list((tmp_path / "data").iterdir()) == []


def test_full_disk(tmp_path, monkeypatch):
    """A full disk ends the download with one line and leaves no partial file."""

    def copy(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    make_layout(tmp_path / "source", "isic")
    zip_layout(tmp_path / "source", tmp_path / "served")
    monkeypatch.setattr(ham10000, "ISIC_URL", f"file://{tmp_path}/served/")
    monkeypatch.setattr(ham10000.shutil, "copyfileobj", copy)
    with pytest.raises(UserError, match="No space left"):
        download_ham10000(tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def test_archives_may_not_leave_their_folder(tmp_path):
    """A member with a path upwards, an absolute one or a link is refused."""
    target = tmp_path / "inner"
    target.mkdir()
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    for member in ("../evil.txt", "a/../../evil.txt", "/tmp/evil.txt", "..\\e", link):
        archive = tmp_path / "bad.zip"
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("good.txt", "good")
            file.writestr(member, "evil")
        with pytest.raises(UserError, match="do not trust"):
            extract_zip(archive, target)
        assert list(target.iterdir()) == []
    archive.write_bytes(archive.read_bytes()[:40])
    with pytest.raises(UserError, match=r"bad.zip is damaged"):
        extract_zip(archive, target)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.zip", "inner"]


def test_archive_without_top_folder(tmp_path):
    """Members without a common folder land in one named after the archive."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("x.txt", "x")
        file.writestr("sub/y.txt", "y")
    extract_zip(tmp_path / "a.zip", tmp_path)
    assert (tmp_path / "a" / "x.txt").read_text() == "x"
    assert (tmp_path / "a" / "sub" / "y.txt").read_text() == "y"


def test_tfds_builder(tmp_path):
    """The builder stores what the records say, from a manual folder."""
    tfds = pytest.importorskip("tensorflow_datasets")
    make_layout(tmp_path / "manual", "kaggle")
    write_table(
        tmp_path / "manual" / "HAM10000_metadata.csv",
        [(*row, "rosendahl") for row in ROWS],
        (*HEADER, "dataset"),
    )
    builder = Ham10000(data_dir=str(tmp_path / "tfds"))
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(
            manual_dir=str(tmp_path / "manual"), compute_stats="skip"
        )
    )
    examples = list(tfds.as_numpy(builder.as_dataset(split="train")))
    by_id = {e["image_id"].decode(): e for e in examples}
    assert set(by_id) == {row[1] for row in ROWS}
    melanoma = by_id["ISIC_4"]
    assert melanoma["label"] == 1 and DIAGNOSES[melanoma["dx"]] == "mel"
    assert melanoma["lesion_id"] == b"HAM_2" and melanoma["age"] == 50
    assert np.isnan(by_id["ISIC_1"]["age"])
    assert melanoma["image"].shape == (6, 8, 3)
    assert melanoma["source"] == b"rosendahl"
    assert set(melanoma) == {*HEADER, "source", "image", "label"}
