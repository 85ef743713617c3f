"""Made-up lesions are repeatable, say that they are made up, and can be learnt from."""

import collections
import io
import os

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from mela_jax.data.builders import Phantom, PhantomConfig
from mela_jax.data.load import DATASETS, load_records
from mela_jax.data.phantom import (
    draw_lesion,
    make_lesion,
    read_phantom,
    write_phantom,
)
from mela_jax.errors import UserError


def snapshot(folder):
    """Return the content of every file of a folder."""
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_one_in_four_is_positive_and_some_have_two_images():
    """The prevalence is exact in every block of four; the classes overlap."""
    lesions = [make_lesion(seed=5, index=index) for index in range(2000)]
    labels = np.array([lesion.label for lesion in lesions])
    assert (labels.reshape(-1, 4).sum(axis=1) == 1).all()
    assert np.mean([lesion.num_images for lesion in lesions]) == pytest.approx(
        1.25, abs=0.03
    )
    causes = np.array([(s.asymmetry, s.border, s.colours) for s in lesions])
    assert causes.min() >= 0 and causes.max() <= 1
    for cause in causes.T:
        assert 0.9 < roc_auc_score(labels, cause) < 0.98
    assert 0.98 < roc_auc_score(labels, causes.sum(axis=1)) < 0.999


def test_the_diagnosis_follows_from_the_properties():
    """Melanomas are melanomas, the others of the kind of their largest property."""
    lesions = [make_lesion(seed=3, index=index) for index in range(400)]
    counts = collections.Counter(lesion.dx for lesion in lesions)
    assert set(counts) == {"mel", "bkl", "df", "nv"}
    assert counts["mel"] == 100 == sum(lesion.label for lesion in lesions)
    assert min(counts.values()) > 60
    for lesion in lesions:
        assert (lesion.dx == "mel") == (lesion.label == 1)
        largest = max(lesion.asymmetry, lesion.border, lesion.colours)
        if lesion.dx == "nv":
            assert lesion.colours == largest


def test_lesions_stay_as_they_have_been():
    """Properties and mean colours of the first three, as drawn before any dx."""
    known = (
        (0, 1, 0.13708744809704188, 0.2968356459385938, 0.3672203412737133, 174.8),
        (0, 1, 0.31975403303176275, 0.13531287100778605, 0.15610066225348224, 152.2),
        (1, 2, 0.6109728473485216, 0.9566078346998478, 0.47482586439784175, 167.8),
    )
    for index, (label, num_images, *properties, colour) in enumerate(known):
        lesion = make_lesion(seed=1, index=index)
        assert (lesion.label, lesion.num_images) == (label, num_images)
        found = [lesion.asymmetry, lesion.border, lesion.colours]
        assert found == pytest.approx(properties, rel=1e-12)
        picture = draw_lesion(seed=1, index=index, view=0, size=32)
        assert picture.mean() == pytest.approx(colour, abs=0.1)


def test_an_older_folder_gets_its_diagnoses_and_keeps_its_pictures(tmp_path):
    """The table from before there were any is completed."""
    write_phantom(tmp_path, num_lesions=5, seed=0, size=32)
    whole = snapshot(tmp_path)
    rows = [line.split(",") for line in whole["labels.csv"].decode().splitlines()]
    assert rows[0] == ["path", "label", "group", "dx"]
    old = "".join(",".join(row[:3]) + "\n" for row in rows)
    (tmp_path / "labels.csv").write_text(old)
    assert {r.dx for r in read_phantom(tmp_path)} == {""}
    times = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.png")}
    write_phantom(tmp_path, num_lesions=5, seed=0, size=32)
    assert snapshot(tmp_path) == whole
    assert {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.png")} == times
    assert "mel" in {r.dx for r in read_phantom(tmp_path)}


def test_a_lesion_depends_on_seed_and_number_alone(tmp_path):
    """More lesions leave the first ones as they are; another seed does not."""
    write_phantom(tmp_path / "few", num_lesions=4, seed=1, size=32)
    write_phantom(tmp_path / "more", num_lesions=9, seed=1, size=32)
    write_phantom(tmp_path / "other", num_lesions=4, seed=2, size=32)
    few, more, other = (snapshot(tmp_path / n) for n in ("few", "more", "other"))
    images = [name for name in few if name.endswith(".png")]
    assert len(images) >= 4
    assert all(more[name] == few[name] for name in images)
    assert all(other.get(name) != few[name] for name in images)
    picture = np.asarray(Image.open(io.BytesIO(few["phantom_00002_0.png"])))
    drawn = draw_lesion(seed=1, index=2, view=0, size=32)
    np.testing.assert_array_equal(picture, drawn)
    assert picture.dtype == np.uint8 and picture.shape == (32, 32, 3)
    again = draw_lesion(seed=1, index=2, view=1, size=32)
    assert np.abs(again.astype(int) - drawn).mean() > 2


def test_folder_says_that_it_is_made_up(tmp_path):
    """The records come through the user's CSV; a note lies beside the pictures."""
    records = load_records(
        name="phantom",
        directory=tmp_path,
        download=False,
        phantom_lesions=8,
        seed=0,
        phantom_size=32,
    )
    assert records == read_phantom(tmp_path)
    assert len({r.lesion_id for r in records}) == 8
    assert sum({r.lesion_id: r.label for r in records}.values()) == 2
    assert "MADE UP" in (tmp_path / "README.txt").read_text()
    assert '"made_up": true' in (tmp_path / "phantom.json").read_text()


def test_interrupted_writing_is_completed(tmp_path, monkeypatch):
    """Killed after any file, the same call completes the folder, and then rests."""
    write_phantom(tmp_path / "whole", num_lesions=5, seed=0, size=32)
    whole = snapshot(tmp_path / "whole")

    class Killed(BaseException):
        pass

    for survivors in range(len(whole)):
        folder = tmp_path / f"cut{survivors}"
        left = iter(range(survivors))

        def replace(source, target, left=left, real=os.replace):
            if next(left, None) is None:
                raise Killed
            real(source, target)

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(os, "replace", replace)
            write_phantom(folder, num_lesions=5, seed=0, size=32)
        write_phantom(folder, num_lesions=5, seed=0, size=32)
        assert snapshot(folder) == whole
    times = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    write_phantom(folder, num_lesions=5, seed=0, size=32)
    assert {p: p.stat().st_mtime_ns for p in folder.iterdir()} == times


def test_never_writes_into_another_folder(tmp_path):
    """A folder with other files or other lesions, or a file, is refused."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match="holds other files"):
        write_phantom(tmp_path / "photos", num_lesions=4, seed=0, size=32)
    with pytest.raises(UserError, match="is a file"):
        write_phantom(tmp_path / "photos/mine.jpg", num_lesions=4, seed=0, size=32)
    write_phantom(tmp_path / "a", num_lesions=4, seed=0, size=32)
    with pytest.raises(UserError, match="holds other made-up lesions"):
        write_phantom(tmp_path / "a", num_lesions=4, seed=1, size=32)
    with pytest.raises(UserError, match="at least"):
        write_phantom(tmp_path / "b", num_lesions=0, seed=0, size=32)
    with pytest.raises(UserError, match="holds no made-up lesions"):
        read_phantom(tmp_path / "photos")


def test_load_records_names_its_data_sets(tmp_path):
    """An unknown name, a missing folder and a needless download are refused."""
    common = {"phantom_lesions": 4, "seed": 0}
    with pytest.raises(UserError, match=", ".join(DATASETS)):
        load_records(name="isic", directory=tmp_path, download=False, **common)
    with pytest.raises(UserError, match="needs a folder"):
        load_records(name="ham10000", directory="", download=False, **common)
    with pytest.raises(UserError, match="cannot be downloaded"):
        load_records(name="csv", directory=tmp_path, download=True, **common)


def test_pictures_can_be_learnt_from():
    """Simple statistics of the pictures tell the classes apart, but not perfectly."""

    def statistics(picture):
        # Of the middle, where the lesion is: how spread its colours are.
        middle = picture[8:40, 8:40].reshape(-1, 3) / 255
        chroma = middle - middle.mean(axis=1, keepdims=True)
        ranks = np.percentile(chroma, [1, 10, 50, 90, 99], axis=0).ravel()
        light = np.percentile(middle.mean(axis=1), [1, 10, 50, 90, 99])
        return np.concatenate([ranks, light])

    lesions = range(480)
    features = np.array(
        [statistics(draw_lesion(seed=0, index=i, view=0, size=48)) for i in lesions]
    )
    labels = np.array([make_lesion(seed=0, index=i).label for i in lesions])
    features = StandardScaler().fit_transform(features)
    model = LogisticRegression(C=0.3).fit(features[:320], labels[:320])
    score = roc_auc_score(labels[320:], model.decision_function(features[320:]))
    assert 0.75 < score < 0.98


def test_tfds_builder(tmp_path):
    """The builder gives the pictures of the folder."""
    tfds = pytest.importorskip("tensorflow_datasets")
    config = PhantomConfig(name="tiny", num_lesions=4, seed=3, size=32)
    builder = Phantom(data_dir=str(tmp_path / "tfds"), config=config)
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(compute_stats="skip")
    )
    examples = list(tfds.as_numpy(builder.as_dataset(split="train")))
    write_phantom(tmp_path / "files", num_lesions=4, seed=3, size=32)
    records = {r.image_id: r for r in read_phantom(tmp_path / "files")}
    assert {e["image_id"].decode() for e in examples} == set(records)
    for example in examples:
        record = records[example["image_id"].decode()]
        assert example["lesion_id"].decode() == record.lesion_id
        assert example["label"] == record.label
        assert example["dx"].decode() == record.dx
        np.testing.assert_array_equal(example["image"], Image.open(record.path))
