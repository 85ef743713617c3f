"""The teacher's logits that are kept: those of the very views, never stale, whole."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from mela_jax import parallel, steps, teacher_cache
from mela_jax.data import input_pipeline
from mela_jax.data.input_pipeline import make_train_batches
from mela_jax.data.views import Views
from mela_jax.distill.teachers import Teacher as TeacherModel
from mela_jax.distill.teachers import Teachers
from mela_jax.errors import Stopped, UserError
from mela_jax.images import Images
from mela_jax.plan import count_views
from mela_jax.saved_models import Model, make_scorer
from mela_jax.state import Variables
from mela_jax.teacher_cache import read_view, write_view
from mela_jax.train import FitResult
from tests import tiny
from tests.events import read_events
from tests.job import Job
from tests.locks import wait_until_blocked
from tests.views import OFF

SETTINGS = tiny.SETTINGS
ROWS = tiny.images().rows["train"]


class Teacher:
    """The tiny network, frozen, which counts the batches that it is shown."""

    def __init__(self, *, seed: int = 11) -> None:
        """Make it; `seed` is that of its variables."""
        self.mesh = parallel.make_mesh()
        self.network = tiny.network(axis_name=parallel.BATCH_AXIS)
        self.variables = parallel.replicate(
            self.mesh, tiny.initial(self.network, seed=seed)
        )
        self.calls = 0
        self._step = make_scorer(self.network, self.mesh)

    def eval_step(self, variables: Variables, images: jax.Array) -> jax.Array:
        """Count and score."""
        self.calls += 1
        return self._step(variables, images)


@pytest.fixture(scope="module")
def shared_teacher() -> Teacher:
    """Return a teacher that compiles once for all tests."""
    return Teacher()


@pytest.fixture
def teacher(shared_teacher: Teacher) -> Teacher:
    """Return the teacher with its count at 0."""
    shared_teacher.calls = 0
    return shared_teacher


def logits_of(
    teacher: Teacher,
    directory: Path,
    *,
    eval_step: Callable[..., jax.Array] | None = None,
    variables: Variables | None = None,
    description: dict[str, Any] = tiny.DESCRIPTION,
    **changes: Any,
) -> np.ndarray:
    """Return the logits of two views: 5 batches each where they are not on disk."""
    model = Model(
        teacher.network,
        eval_step or teacher.eval_step,
        variables or teacher.variables,
        description,
    )
    return tiny.kept_logits(teacher.mesh, directory, teacher=model, **changes)


def files(directory: Path) -> list[Path]:
    return sorted((directory / "teacher_logits").glob("*.npz"))


@pytest.mark.parametrize("on_device", [False, True])
def test_they_are_those_of_the_batches_that_training_sees(
    teacher: Teacher, tmp_path: Path, on_device: bool, monkeypatch: pytest.MonkeyPatch
):
    render = jax.jit(steps.make_render(image_size=tiny.IMAGE_SIZE))
    if on_device:
        # The host's views would pass below: they differ by rounding only.
        monkeypatch.delattr(input_pipeline, "augment_batch")
    views = Views(SETTINGS, recurring=3, on_device=on_device)
    logits = logits_of(teacher, tmp_path, num_views=3, views=views)
    assert logits.shape == (3, 48, 1) and logits.dtype == np.float32
    outside = np.setdiff1d(np.arange(48), ROWS)
    assert np.isnan(logits[:, outside]).all()
    assert np.isfinite(logits[:, ROWS]).all()
    images, seen = tiny.images(), set()
    batches = make_train_batches(
        images.train,
        images.labels,
        ROWS,
        views=views,
        image_size=tiny.IMAGE_SIZE,
        batch_size=6,
        seed=4,
        start_step=0,
        num_steps=6 * 9,
    )
    alone = tiny.network(axis_name=None)
    variables = jax.device_get(teacher.variables)
    for batch in batches:
        pixels = render(batch) if on_device else batch["image"]
        expected = alone.apply(variables, pixels, train=False).logits
        found = logits[batch["view"], batch["index"]]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        seen |= set(batch["view"].tolist())
    assert seen == {0, 1, 2}
    # The views do differ, by much more than that tolerance.
    assert np.abs(logits[0, ROWS] - logits[1, ROWS]).max() > 1e-2


def test_a_second_time_the_teacher_is_not_asked(teacher: Teacher, tmp_path: Path):
    first = logits_of(teacher, tmp_path)
    assert teacher.calls == 10  # 37 rows in batches of 8, two views
    np.testing.assert_array_equal(logits_of(teacher, tmp_path), first)
    assert teacher.calls == 10
    # More views: only the new one is computed. Fewer: none.
    more = logits_of(teacher, tmp_path, num_views=3)
    assert teacher.calls == 15
    np.testing.assert_array_equal(more[:2], first)
    np.testing.assert_array_equal(logits_of(teacher, tmp_path, num_views=1), first[:1])
    assert teacher.calls == 15
    assert len(files(tmp_path)) == 3


def one_pixel() -> Images:
    """Return the images with the least possible change in one of them."""
    images = tiny.images()
    images.train[ROWS[20], 3, 5, 1] ^= 1
    return images


def one_row_less() -> Images:
    """Return the images with another training split."""
    images = tiny.images()
    return dataclasses.replace(images, rows={**images.rows, "train": ROWS[:-1]})


STALE: dict[str, Callable[[], dict[str, Any]]] = {
    "a pixel": lambda: {"pictures": one_pixel()},
    "the rows": lambda: {"pictures": one_row_less()},
    "image size": lambda: {"pictures": tiny.images(size=10)},
    "renderer": lambda: {"views": Views(SETTINGS, on_device=True)},
    "views of an image": lambda: {"views": Views(SETTINGS, per_image=2)},
    "seed": lambda: {"seed": 5},
    "batch size": lambda: {"batch_size": 16},
    "weights": lambda: {"variables": Teacher(seed=12).variables},
    **{
        f"network: {name}": lambda name=name: {
            "description": {**tiny.DESCRIPTION, name: "another"}
        }
        for name in ("model", "pool", "hidden", "compute_dtype")
    },
    **{
        f"augmentation: {field.name}": lambda name=field.name: {
            "views": Views(dataclasses.replace(SETTINGS, **{name: getattr(OFF, name)}))
        }
        for field in dataclasses.fields(SETTINGS)
    },
}


@pytest.mark.parametrize("what", STALE)
def test_logits_of_something_else_are_never_used(
    teacher: Teacher, tmp_path: Path, what: str
):
    before = logits_of(teacher, tmp_path)
    num_calls = 6 if what == "batch size" else 10
    kept = {path: path.read_bytes() for path in files(tmp_path)}
    teacher.calls = 0
    after = logits_of(teacher, tmp_path, **STALE[what]())
    assert teacher.calls == num_calls
    assert len(files(tmp_path)) == 4
    # The old ones stay, and are found again when the change is undone.
    assert {path: path.read_bytes() for path in kept} == kept
    np.testing.assert_array_equal(logits_of(teacher, tmp_path), before)
    assert teacher.calls == num_calls
    if not what.startswith("network") and what not in ("the rows", "batch size"):
        assert not np.array_equal(after, before, equal_nan=True)


@pytest.mark.parametrize("what", ["devices", "packages", "version"])
def test_another_machine_or_other_code_asks_the_teacher_anew(
    teacher: Teacher, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
):
    logits_of(teacher, tmp_path)
    if what == "devices":
        monkeypatch.setattr(parallel, "describe_devices", lambda: ["1 x gpu"])
    elif what == "packages":
        monkeypatch.setattr("importlib.metadata.version", lambda name: "0.0")
    else:
        monkeypatch.setattr(teacher_cache, "VERSION", teacher_cache.VERSION + 1)
    logits_of(teacher, tmp_path)
    assert teacher.calls == 20


def test_where_views_cannot_differ_all_seeds_share_them(
    teacher: Teacher, tmp_path: Path
):
    assert SETTINGS.is_random and not OFF.is_random
    first = logits_of(teacher, tmp_path, views=Views(OFF), num_views=1)
    again = logits_of(teacher, tmp_path, views=Views(OFF), num_views=1, seed=99)
    np.testing.assert_array_equal(first, again)
    assert teacher.calls == 5


# Damage.


def test_no_damage_to_a_file_changes_a_logit(tmp_path: Path):
    logits = np.random.default_rng(0).normal(size=(9, 1)).astype(np.float32)
    path, key = tmp_path / "view.npz", json.dumps({"seed": 0})
    assert read_view(path, key=key, shape=(9, 1)) is None
    write_view(path, logits, key=key)
    np.testing.assert_array_equal(read_view(path, key=key, shape=(9, 1)), logits)
    whole = path.read_bytes()
    unharmed = 0
    for position in range(len(whole)):
        torn = bytearray(whole)
        torn[position] ^= 0xFF
        path.write_bytes(torn)
        found = read_view(path, key=key, shape=(9, 1))
        if found is not None:
            np.testing.assert_array_equal(found, logits)
            unharmed += 1
        path.write_bytes(whole[:position])
        assert read_view(path, key=key, shape=(9, 1)) is None
    # Dates and the like. The numbers, the key and most of the rest are guarded.
    assert unharmed < len(whole) / 4


def test_a_file_that_is_not_what_its_name_says_is_not_used(tmp_path: Path):
    path, good = tmp_path / "view.npz", np.ones((4, 1), np.float32)
    for logits, key in (
        (good, "another"),
        (good[:3], "key"),
        (good.astype(np.float64), "key"),
        (np.array([[0], [1], [np.nan], [1]], np.float32), "key"),
        (good[:, 0], "key"),
        (np.hstack([good, good]), "key"),
    ):
        write_view(path, logits, key=key)
        assert read_view(path, key="key", shape=(4, 1)) is None
    write_view(path, good, key="key")
    assert read_view(path, key="key", shape=(4, 1)) is not None


def flip_a_bit(content: bytes) -> bytes:
    """Change the first logit's last bit, behind NumPy's header of 128 bytes."""
    torn = bytearray(content)
    torn[content.index(b"\x93NUMPY") + 128] ^= 1
    return bytes(torn)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content, other: content[:-7],
        lambda content, other: b"",
        lambda content, other: flip_a_bit(content),
        lambda content, other: other,
    ],
    ids=["cut", "empty", "a bit", "another view"],
)
def test_a_damaged_file_is_computed_anew(
    teacher: Teacher, tmp_path: Path, damage: Callable[[bytes, bytes], bytes]
):
    expected = logits_of(teacher, tmp_path)
    first, second = files(tmp_path)
    whole = first.read_bytes(), second.read_bytes()
    first.write_bytes(damage(*whole))
    assert first.read_bytes() != whole[0]
    np.testing.assert_array_equal(logits_of(teacher, tmp_path), expected)
    assert teacher.calls == 15
    np.testing.assert_array_equal(logits_of(teacher, tmp_path), expected)
    assert teacher.calls == 15


def test_a_folder_that_cannot_be_written_to_is_one_line(
    teacher: Teacher, tmp_path: Path
):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/x/.*: .*--config.data.cache_dir") as e:
        logits_of(teacher, tmp_path / "file" / "x")
    assert "\n" not in str(e.value) and teacher.calls == 0


def test_probabilities_are_refused_and_not_kept(teacher: Teacher, tmp_path: Path):
    def sigmoid(variables: Variables, images: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(teacher.eval_step(variables, images))

    with pytest.raises(UserError, match="probabilities, not logits"):
        logits_of(teacher, tmp_path, eval_step=sigmoid)
    assert files(tmp_path) == []


# Interruptions.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_keeps_the_views_that_are_whole(
    teacher: Teacher, tmp_path: Path, number: signal.Signals
):
    expected = logits_of(teacher, tmp_path / "whole")
    teacher.calls = 0

    def interrupted(variables: Variables, images: jax.Array) -> jax.Array:
        if teacher.calls == 7:
            os.kill(os.getpid(), number)
        return teacher.eval_step(variables, images)

    handler = signal.getsignal(number)
    with pytest.raises(Stopped, match="goes on from the last whole view"):
        logits_of(teacher, tmp_path / "torn", eval_step=interrupted)
    assert signal.getsignal(number) is handler
    assert teacher.calls == 8 and len(files(tmp_path / "torn")) == 1
    found = logits_of(teacher, tmp_path / "torn")
    assert teacher.calls == 13
    np.testing.assert_array_equal(found, expected)


WORKER = """
import sys, time
from pathlib import Path
import numpy as np
from tests import test_teacher_cache as tests

folder, hang_at, result = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
teacher = tests.Teacher()

def eval_step(variables, images):
    (folder / f"{result}.calls").write_text(str(teacher.calls + 1))
    time.sleep(3600 if teacher.calls + 1 == hang_at else 0.05)
    return teacher.eval_step(variables, images)

logits = tests.logits_of(teacher, folder / "cache", eval_step=eval_step)
np.save(folder / result, logits)
"""


def start(folder: Path, name: str, *, hang_at: int = 0) -> subprocess.Popen:
    """Start a process that wants two views and leaves them in a file.

    It never comes past the batch number `hang_at`.
    """
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(folder), str(hang_at), name],
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join(sys.path)}
        | {"JAX_NUM_CPU_DEVICES": "8"},
        stderr=subprocess.PIPE,
        text=True,
    )


def num_calls(folder: Path, name: str) -> int:
    """Return how many batches a process's teacher has been shown."""
    try:
        return int((folder / f"{name}.calls").read_text() or 0)
    except FileNotFoundError:
        return 0


def finish(process: subprocess.Popen) -> None:
    """Wait for a good end."""
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error[-3000:]


def test_of_two_processes_one_asks_the_teacher(teacher: Teacher, tmp_path: Path):
    pair = [start(tmp_path, name) for name in ("one", "two")]
    for process in pair:
        finish(process)
    assert num_calls(tmp_path, "one") + num_calls(tmp_path, "two") == 10
    expected = logits_of(teacher, tmp_path / "alone")
    for name in ("one", "two"):
        np.testing.assert_array_equal(np.load(tmp_path / f"{name}.npy"), expected)
    assert len(files(tmp_path / "cache")) == 2


def test_killed_in_the_middle_the_one_that_waits_takes_over(
    teacher: Teacher, tmp_path: Path
):
    killed = start(tmp_path, "killed", hang_at=7)  # in the second view
    deadline = time.monotonic() + 300
    while num_calls(tmp_path, "killed") < 7:
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    waiting = start(tmp_path, "waiting")
    wait_until_blocked(waiting)
    assert num_calls(tmp_path, "waiting") == 0
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert len(files(tmp_path / "cache")) == 1
    finish(waiting)
    assert num_calls(tmp_path, "waiting") == 5
    np.testing.assert_array_equal(
        np.load(tmp_path / "waiting.npy"), logits_of(teacher, tmp_path / "alone")
    )


# Training with them.


def train(
    teacher: Teacher,
    directory: Path,
    *,
    num_views: int,
    cached: bool,
    on_device: bool = False,
    epochs: int = 4,
) -> FitResult:
    """Distil the tiny network from the images, with dropout."""
    network = tiny.network(axis_name=parallel.BATCH_AXIS, dropout=0.3)
    views = Views(SETTINGS, recurring=num_views, on_device=on_device)
    kept = None
    if cached:
        folder, number = directory / "cache", min(num_views, epochs)
        kept = logits_of(teacher, folder, views=views, num_views=number)
    member = TeacherModel(teacher.network, teacher.variables, kept)
    # A teacher that does not run takes no room on the devices.
    assert Teachers([member]).frozen == (({} if cached else teacher.variables),)
    return tiny.fit(
        teacher.mesh,
        directory,
        model=network,
        terms=tiny.distill_terms(tiny.shapes_of(network, teacher.network), alpha=0.7),
        taught_by=Teachers([member]),
        views=views,
        seed=4,
        epochs=epochs,
    )


def assert_same_training(left: FitResult, right: FitResult) -> None:
    """Compare every figure of every epoch, and the weights, to float noise."""
    assert len(left.history) == len(right.history) == 4
    for ours, theirs in zip(left.history, right.history, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        jax.device_get(left.variables),
        jax.device_get(right.variables),
    )


@pytest.mark.parametrize(
    ("num_views", "on_device"), [(1, False), (3, False), (3, True)]
)
def test_kept_logits_train_as_a_teacher_in_the_step_does(
    teacher: Teacher, tmp_path: Path, num_views: int, on_device: bool
):
    options = {"num_views": num_views, "on_device": on_device}
    in_step, kept = (
        train(teacher, tmp_path / str(cached), cached=cached, **options)
        for cached in (False, True)
    )
    assert_same_training(kept, in_step)


def test_with_a_view_for_every_epoch_it_is_the_training_with_fresh_views(
    teacher: Teacher, tmp_path: Path
):
    fresh = train(teacher, tmp_path / "a", num_views=0, cached=False)
    kept = train(teacher, tmp_path / "b", num_views=4, cached=True)
    assert_same_training(kept, fresh)
    # The comparison would notice other views.
    fewer = train(teacher, tmp_path / "c", num_views=1, cached=True)
    with pytest.raises(AssertionError):
        assert_same_training(fewer, fresh)


def test_the_whole_job_killed_in_an_epoch_ends_as_with_the_teacher_in_the_step(
    job: Job, finished: Path, tmp_path: Path
):
    """With a kept view for each of the two epochs; the finished run's were fresh."""
    flags = (
        f"--config.teacher.checkpoint={finished}",
        "--config.baseline=False",
        "--config.student.num_views=2",
        f"--config.data.cache_dir={tmp_path / 'cache'}",
    )
    run = job.start(tmp_path / "run", *flags)
    run.wait_for(lambda: any((tmp_path / "run/student/checkpoints").glob("2/*")))
    scalars = tmp_path / "run" / "student" / "scalars"
    run.wait_for(lambda: 3 in read_events(scalars).get("train/loss", {}))
    run.kill()
    assert run.stderr.count("teacher: logits of view") == 2
    assert run.stderr.count(", kept in ") == 2
    done = job.run(tmp_path / "run", *flags)
    assert done.returncode == 0, done.stderr
    assert "student: goes on from step 2" in done.stderr
    assert len(files(tmp_path / "cache")) == 2
    assert ", kept in " not in done.stderr
    assert done.stderr.count("teacher: logits of view") == 2
    for split in ("val", "test"):
        ours, theirs = (
            np.loadtxt(
                folder / "predictions" / f"student_{split}.csv",
                delimiter=",",
                skiprows=1,
                usecols=3,
            )
            for folder in (tmp_path / "run", finished)
        )
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    report = (tmp_path / "run" / "report" / "report.html").read_text()
    assert "views of an image" in report


def test_without_augmentation_one_view_is_kept(job: Job):
    config = job.config()
    assert count_views(config) == 0
    config.student.num_views = 3
    assert count_views(config) == 3
    config.augment.update(dataclasses.asdict(OFF))
    assert count_views(config) == 1
