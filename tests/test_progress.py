"""What a training tells: event files always, a bar or few lines on the terminal."""

import io
import logging as python_logging
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from absl import logging

from mela_jax import parallel, progress
from mela_jax.progress import Progress
from tests.events import read_events
from tests.job import REPOSITORY

PARAMS = {"Dense_0": {"kernel": np.zeros((3, 4), np.float32), "bias": np.zeros(4)}}


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Give the lines that have been logged, here where there is no terminal."""
    found: list[str] = []

    class Handler(python_logging.Handler):
        def emit(self, record: python_logging.LogRecord) -> None:
            found.append(record.getMessage())

    handler = Handler()
    logger, verbosity = logging.get_absl_logger(), logging.get_verbosity()
    monkeypatch.setattr(progress, "_ON_TERMINAL", False)
    logging.set_verbosity(logging.INFO)
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)
    logging.set_verbosity(verbosity)


def train(directory: Path, *, first_step: int = 0, last_step: int = 8) -> None:
    """Tell of two epochs of four steps with a look at every other."""
    with Progress(
        "student", directory, first_step=first_step, total_steps=8
    ) as telling:
        telling.parameters(PARAMS)
        for step in range(first_step + 1, last_step + 1):
            telling.step(step)
            if step % 2 == 0:
                telling.scalars(step, {"train/loss": 1 / step, "x": np.float64(step)})
            if step % 4 == 0:
                telling.scalars(step, {"val/loss": 0.5})
                telling.line(f"student: epoch {step // 4}/2")


def test_event_files_hold_every_scalar_at_its_step(tmp_path: Path, lines: list[str]):
    train(tmp_path)
    events = read_events(tmp_path)
    assert events["train/loss"] == {s: pytest.approx(1 / s) for s in (2, 4, 6, 8)}
    assert events["x"] == {s: s for s in (2, 4, 6, 8)}
    assert events["val/loss"] == {4: 0.5, 8: 0.5}
    assert events["steps_per_sec"][8] > 0 and events["uptime"][8] > 0


def test_a_run_that_goes_on_adds_to_them(tmp_path: Path, lines: list[str]):
    train(tmp_path, last_step=4)
    train(tmp_path, first_step=4)
    assert list(read_events(tmp_path)["train/loss"]) == [2, 4, 6, 8]


def test_what_was_told_is_on_disk_at_once(tmp_path: Path, lines: list[str]):
    """As after a power cut, before the files are closed."""
    with Progress("student", tmp_path, first_step=0, total_steps=8) as telling:
        telling.scalars(1, {"train/loss": 2.0})
        assert read_events(tmp_path)["train/loss"] == {1: 2.0}


def test_parameters_are_counted_in_the_log_and_listed_for_tensorboard(
    tmp_path: Path, lines: list[str]
):
    train(tmp_path)
    assert [line for line in lines if "parameters" in line] == [
        "student: 16 parameters"
    ]
    (table,) = read_events(tmp_path)["parameters"].values()
    assert "Dense_0/kernel" in table and "(3, 4)" in table and "Total: 16" in table


def test_off_a_terminal_an_epoch_is_one_line(tmp_path: Path, lines: list[str]):
    train(tmp_path)
    count, first, second = lines
    assert (count, first) == ("student: 16 parameters", "student: epoch 1/2")
    # Measured at the end at the latest.
    assert re.fullmatch(r"student: epoch 2/2  [\d.]+ steps/s, ETA: \S+", second)


def test_on_a_terminal_there_is_a_bar_and_no_log(
    tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
):
    terminal = io.StringIO()
    monkeypatch.setattr(progress, "_ON_TERMINAL", True)
    monkeypatch.setattr(sys, "stderr", terminal)
    train(tmp_path)
    assert lines == []
    shown = terminal.getvalue()
    assert "8/8" in shown and "loss=0.1250" in shown
    for line in ("student: 16 parameters", "student: epoch 2/2"):
        assert line in shown.replace("\r", "\n").splitlines()


def test_only_the_main_process_writes(
    tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(parallel, "is_main_process", lambda: False)
    train(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert not [line for line in lines if "steps/s" in line]


def test_a_profile_is_taken_of_the_steps_asked_for(tmp_path: Path, lines: list[str]):
    for total_steps in (20, 4):  # in the second, training ends before the profile
        folder = tmp_path / str(total_steps)
        with Progress(
            "student", folder, first_step=0, total_steps=total_steps, profile_steps=2
        ) as telling:
            for step in range(1, total_steps + 1):
                telling.step(step)
        assert len(list(folder.rglob("*.xplane.pb"))) == 1


def test_telling_begins_without_tensorflow(tmp_path: Path):
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from mela_jax.progress import Progress\n"
        f"with Progress('m', Path({str(tmp_path)!r}), first_step=0, total_steps=1)"
        " as telling:\n"
        "    telling.parameters({})\n"
        "    telling.step(1)\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)
