"""A process is measured from outside, and what a job logged is read back."""

import time
from pathlib import Path

import pytest

from benchmarks.jobs import loss_times, read_events, run_module
from mela_jax.errors import UserError
from mela_jax.progress import Progress


def test_process_gives_its_output_its_times_and_its_memory():
    before = time.time()
    done = run_module(["timeit", "-n", "1", "-r", "1", "x = 'a' * 10**8"])
    assert "1 loop" in done.stdout
    assert before <= done.started < done.started + done.seconds <= time.time()
    assert done.peak_mb > 100


def test_failure_is_one_line_with_its_reason():
    with pytest.raises(UserError, match="no_such_module ended with 1: .*No module"):
        run_module(["no_such_module"])


def test_times_of_losses_are_when_they_were_written(tmp_path: Path):
    scalars = tmp_path / "student" / "scalars"
    before = time.time()
    with Progress("student", scalars, first_step=0, total_steps=4) as progress:
        for step in (1, 3):
            progress.scalars(step, {"train/loss": 0.5, "other": 1.0})
        progress.scalars(4, {"val/loss": 0.5})
    times = loss_times(tmp_path)
    assert list(times) == [1, 3]
    assert before <= times[1] <= times[3] <= time.time()


def test_a_file_that_is_being_written_to_is_read_as_far_as_it_goes(tmp_path: Path):
    whole, part = tmp_path / "whole", tmp_path / "part"
    with Progress("student", whole, first_step=0, total_steps=4) as progress:
        for step in (1, 2):
            progress.scalars(step, {"train/loss": 0.5})
    (file,) = whole.iterdir()
    content = file.read_bytes()
    events = len(list(read_events(whole)))
    part.mkdir()
    seen = set()
    for length in range(len(content) + 1):
        (part / file.name).write_bytes(content[:length])
        seen.add(len(list(read_events(part))))
    assert seen == set(range(events + 1))
    assert list(read_events(tmp_path / "absent")) == []
