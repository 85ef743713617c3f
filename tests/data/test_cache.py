"""The cache holds what `load_square` gives, whole, whoever else is at work."""

import logging
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from mela_jax.data import cache as cache_module
from mela_jax.data.cache import fingerprint, open_cache
from mela_jax.data.image_io import load_square
from mela_jax.data.records import Record
from mela_jax.errors import UserError

OPTIONS = {"size": 16, "crop": "center"}


@pytest.fixture
def records(tmp_path):
    """Return twenty records of noise."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    result = []
    for number in range(20):
        path = tmp_path / "images" / f"{number}.png"
        pixels = rng.integers(0, 256, (20 + number, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        result.append(Record(str(number), str(number), number % 2, str(path)))
    return result


def open_in(folder, records, on_bad_image="error"):
    """Open the cache at the size of these tests."""
    return open_cache(records, directory=folder, on_bad_image=on_bad_image, **OPTIONS)


def test_holds_the_squares_and_decodes_once(tmp_path, records, monkeypatch):
    """Rows are in the order of the records; a second opening decodes nothing."""
    cache = open_in(tmp_path / "cache", records)
    assert cache.images.dtype == np.uint8 and cache.readable.all() and cache.bad == []
    for row, record in enumerate(records):
        expected = load_square(record.path, **OPTIONS)
        np.testing.assert_array_equal(cache.images[row], expected)
    monkeypatch.setattr(cache_module, "load_square", None)
    again = open_in(tmp_path / "cache", records)
    np.testing.assert_array_equal(again.images, cache.images)
    assert isinstance(again.images, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        again.images[0] = 0


def test_whatever_changes_the_pixels_changes_the_name(records):
    """Order, size, crop, and the files' size and time are in the fingerprint."""
    names = {
        fingerprint(records, **OPTIONS),
        fingerprint(records[::-1], **OPTIONS),
        fingerprint(records[:-1], **OPTIONS),
        fingerprint(records, size=17, crop="center"),
        fingerprint(records, size=16, crop="pad"),
    }
    os.utime(records[3].path, ns=(0, 1))
    names.add(fingerprint(records, **OPTIONS))
    os.remove(records[3].path)
    names.add(fingerprint(records, **OPTIONS))
    assert len(names) == 7


def test_bad_images(tmp_path, records, caplog):
    """Either the count and the first five, or skipped, counted and logged."""
    for number in range(2, 9):
        with open(records[number].path, "wb") as file:
            file.write(b"no picture")
    with pytest.raises(UserError) as info:
        open_in(tmp_path / "cache", records)
    message = str(info.value)
    assert message.startswith("7 of 20 images cannot be read: ")
    assert "6.png" in message and "7.png" not in message and "skip" in message
    with caplog.at_level(logging.WARNING):
        cache = open_in(tmp_path / "cache", records, on_bad_image="skip")
    assert "left out 7 of 20" in caplog.text
    assert len(cache.bad) == 7 and "2.png" in cache.bad[0]
    assert np.flatnonzero(~cache.readable).tolist() == list(range(2, 9))
    assert (cache.images[2] == 0).all()
    with pytest.raises(ValueError, match="error or skip"):
        open_in(tmp_path / "cache", records, on_bad_image="ignore")


def test_damaged_or_left_over_files_are_built_anew(tmp_path, records):
    """A cut cache, and what a killed process left, are replaced."""
    folder = tmp_path / "cache"
    expected = np.array(open_in(folder, records).images)
    (target,) = (p for p in folder.iterdir() if p.is_dir())
    leftover = folder / f".{target.name}-killed"
    leftover.mkdir()
    for damage in (100, 0):
        os.truncate(target / "images.npy", damage)
        np.testing.assert_array_equal(open_in(folder, records).images, expected)
    (target / "bad.json").write_text("[")
    np.testing.assert_array_equal(open_in(folder, records).images, expected)
    assert not leftover.exists()
    assert [p.name for p in folder.iterdir() if p.is_dir()] == [target.name]


WORKER = """
import resource, signal, sys
from mela_jax.data.cache import open_cache
from mela_jax.data.records import Record
from mela_jax.errors import UserError

limit, folder, *paths = sys.argv[1:]
if int(limit):
    # The nearest thing to a full disk that needs no rights: no file may grow longer.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
assert "tensorflow" not in sys.modules and "jax" not in sys.modules
try:
    cache = open_cache(
        [Record(p, p, 0, p) for p in paths],
        size=16, crop="center", directory=folder, on_bad_image="error",
    )
except UserError as error:
    sys.exit(str(error))
print(cache.images.sum())
"""


def start(folder, records, *, limit=0):
    """Start a process that opens the cache."""
    paths = [r.path for r in records]
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(limit), str(folder), *paths],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


def test_two_processes_at_once(tmp_path, records):
    """Both get the whole cache, and one copy of it stays."""
    processes = [start(tmp_path / "cache", records) for _ in range(2)]
    results = [process.communicate(timeout=60) for process in processes]
    total = str(open_in(tmp_path / "cache", records).images.sum())
    assert [out.strip() for out, _ in results] == [total, total], results
    assert len([p for p in (tmp_path / "cache").iterdir() if p.is_dir()]) == 1


def test_full_disk(tmp_path, records):
    """One line says how much is needed; nothing is left; later it works."""
    process = start(tmp_path / "cache", records, limit=5000)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "cannot keep decoded images" in error and "MB are needed" in error
    assert error.strip().count("\n") == 0
    assert [p for p in (tmp_path / "cache").iterdir() if p.is_dir()] == []
    assert open_in(tmp_path / "cache", records).readable.all()
