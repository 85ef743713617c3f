import time
from pathlib import Path

from benchmarks.events import loss_times
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
