"""The cache holds what `load_square` gives, whole, whoever else is at work."""

import logging
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from mela_jax.data import cache as cache_module
from mela_jax.data.cache import fingerprint, open_cache
from mela_jax.data.image_io import load_square
from mela_jax.data.input_pipeline import make_eval_batches, make_train_batches
from mela_jax.data.records import Record
from mela_jax.data.views import AugmentSettings, Views
from mela_jax.errors import UserError
from tests.locks import wait_until_blocked

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


def test_epochs_and_further_runs_decode_nothing(tmp_path, records, monkeypatch):
    """Pillow opens each file once, whatever is then done with the images."""
    opened = []
    real = Image.open

    def spy(path, *arguments, **options):
        opened.append(str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(Image, "open", spy)
    for _run in range(2):
        images = open_in(tmp_path / "cache", records).images
        labels, rows = np.zeros(20, np.int32), np.arange(20)
        settings = AugmentSettings(True, True, 0.5, 0.1, 0.1, 0.1, 0.1)
        num_batches = 0
        for _batch in make_train_batches(
            images,
            labels,
            rows,
            image_size=16,
            batch_size=5,
            seed=0,
            start_step=0,
            num_steps=12,  # three epochs
            views=Views(settings),
        ):
            num_batches += 1
        for _batch in make_eval_batches(
            images, labels, rows, image_size=16, batch_size=5
        ):
            num_batches += 1
        assert num_batches == 16
        assert sorted(opened) == sorted(record.path for record in records)


def test_a_changed_image_gives_its_new_pixels(tmp_path, records):
    """The cache is built anew when one file has other content, of the same length."""
    old = np.array(open_in(tmp_path / "cache", records).images)
    for record in records:  # uncompressed: only the pixels change
        Image.fromarray(old[0]).save(record.path, format="BMP")
    old = np.array(open_in(tmp_path / "cache", records).images)
    assert (old == old[0]).all()
    before = os.stat(records[7].path)
    Image.fromarray(255 - old[0]).save(records[7].path, format="BMP")
    # The system's clock may tick less often than this test writes.
    os.utime(records[7].path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert os.path.getsize(records[7].path) == before.st_size
    new = open_in(tmp_path / "cache", records).images
    np.testing.assert_array_equal(new[7], 255 - old[0])
    np.testing.assert_array_equal(np.delete(new, 7, 0), np.delete(old, 7, 0))


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
    for name, content in (("bad.json", "["), ("bad.json", ""), ("images.npy", "")):
        (target / name).write_text(content)
        np.testing.assert_array_equal(open_in(folder, records).images, expected)
        os.remove(target / name)
        np.testing.assert_array_equal(open_in(folder, records).images, expected)
    assert not leftover.exists()
    assert [p.name for p in folder.iterdir() if p.is_dir()] == [target.name]


WORKER = """
import resource, signal, sys, time
from pathlib import Path
from mela_jax.data import cache as cache_module
from mela_jax.data.cache import open_cache
from mela_jax.data.records import Record
from mela_jax.data.views import AugmentSettings, Views
from mela_jax.errors import UserError

limit, hang, size, folder, *paths = sys.argv[1:]
real = cache_module.load_square

def load_square(path, **options):
    if path == hang:
        time.sleep(3600)
    return real(path, **options)

cache_module.load_square = load_square
if int(limit):
    # The nearest thing to a full disk that needs no rights: no file may grow longer.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
assert "tensorflow" not in sys.modules and "jax" not in sys.modules
try:
    cache = open_cache(
        [Record(p, p, 0, p) for p in paths],
        size=int(size), crop="center", directory=folder, on_bad_image="error",
    )
except UserError as error:
    sys.exit(str(error))
# Not ru_maxrss: that begins with the memory of the process that started this one.
status = Path("/proc/self/status")
lines = status.read_text().splitlines() if status.exists() else ["VmHWM: -1 kB"]
print(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
print(cache.images.sum())
"""


def start(folder, records, *, limit=0, hang="", size=16):
    """Start a process that opens the cache and never comes past the image `hang`."""
    paths = [r.path for r in records]
    options = [str(limit), hang, str(size), str(folder)]
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, *options, *paths],
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
    assert [out.split()[1:] for out, _ in results] == [[total], [total]], results
    assert len([p for p in (tmp_path / "cache").iterdir() if p.is_dir()]) == 1


def test_killed_while_building_the_one_that_waits_takes_over(tmp_path, records):
    """Of a half-built cache nothing is used and nothing stays."""
    folder = tmp_path / "cache"
    killed = start(folder, records, hang=records[15].path)
    deadline = time.monotonic() + 300
    while not any(p.stat().st_size for p in folder.glob(".*-*/images.npy")):
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    waiting = start(folder, records)
    wait_until_blocked(waiting)
    assert [p.name[0] for p in folder.iterdir() if p.is_dir()] == ["."]
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    out, error = waiting.communicate(timeout=300)
    assert waiting.returncode == 0, error
    assert [p.name[0] != "." for p in folder.iterdir() if p.is_dir()] == [True]
    images = open_in(folder, records).images
    assert out.split()[1] == str(images.sum())
    for row, record in enumerate(records):
        np.testing.assert_array_equal(images[row], load_square(record.path, **OPTIONS))


def test_memory_does_not_grow_with_the_number_of_images(tmp_path, records):
    """Building ten times the images takes no more of it (60 MB of them here)."""
    peaks = []
    for number in (7, 70):
        process = start(tmp_path / str(number), records * number, size=120)
        out, error = process.communicate(timeout=300)
        assert process.returncode == 0, error
        peaks.append(int(out.split()[0]))  # KiB
    if -1 in peaks:
        pytest.skip("only Linux tells a process's peak of memory in /proc")
    assert peaks[1] - peaks[0] < 15_000


def test_full_disk(tmp_path, records):
    """One line says how much is needed; nothing is left; later it works."""
    process = start(tmp_path / "cache", records, limit=5000)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "cannot keep decoded images" in error and "MB are needed" in error
    assert error.strip().count("\n") == 0
    assert [p for p in (tmp_path / "cache").iterdir() if p.is_dir()] == []
    assert open_in(tmp_path / "cache", records).readable.all()
