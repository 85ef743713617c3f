import time
from pathlib import Path

from benchmarks.events import loss_times, read_events
from mela_jax.progress import Progress


def test_times_of_losses_are_when_they_were_written(tmp_path: Path):
    before = time.time()
    with Progress("student", tmp_path, first_step=0, total_steps=4) as progress:
        for step in (1, 3):
            progress.scalars(step, {"train/loss": 0.5, "other": 1.0})
        progress.scalars(4, {"val/loss": 0.5})
    times = loss_times(tmp_path)
    assert list(times) == [1, 3]
    assert before <= times[1] <= times[3] <= time.time()


def test_a_file_that_is_being_written_to_is_read_as_far_as_it_goes(tmp_path: Path):
    with Progress(
        "student", tmp_path / "whole", first_step=0, total_steps=4
    ) as progress:
        for step in (1, 2):
            progress.scalars(step, {"train/loss": 0.5})
    (file,) = (tmp_path / "whole").iterdir()
    content = file.read_bytes()
    events = len(list(read_events(tmp_path / "whole")))
    (tmp_path / "part").mkdir()
    seen = set()
    for length in range(len(content) + 1):
        (tmp_path / "part" / file.name).write_bytes(content[:length])
        seen.add(len(list(read_events(tmp_path / "part"))))
    assert seen == set(range(events + 1))
    assert list(read_events(tmp_path / "absent")) == []
