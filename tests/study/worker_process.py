"""What the tests start as one of several workers of a study with a cheap job.

python -m tests.study.worker_process WORKDIR STORAGE SECONDS [tune] [hang] [elsewhere]

With "elsewhere" the worker takes itself for one on a machine of its own. A run appends
a line "begin KEY" to WORKDIR/log.txt, takes SECONDS, and appends "end KEY"; with "hang"
it never comes to its end. The study is `cheap_study()`.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from configs import tiny
from mela_jax.study import session, worker
from mela_jax.study.spec import Range, Study, check_study

# Seconds between two signs of life.
HEARTBEAT = 4


def cheap_study(*, tune: bool = False, trials: int = 0) -> Study:
    """Return a grid of 12 runs, or the tuning of a parabola."""
    base = tiny.get_config()
    base.baseline = False
    if tune:
        study = Study(
            base=base,
            method="tune",
            axes={"distill.alpha": Range(0.0, 1.0), "student.pool": ("avg", "max")},
            seeds=(0,),
            pruner="median",
            trials=trials,
        )
    else:
        study = Study(
            base=base,
            axes={
                "student.loss": ("cross_entropy", "focal"),
                "distill.alpha": (0.1, 0.5, 0.9),
            },
            reference={"student.loss": "cross_entropy"},
            seeds=(0, 1),
        )
    return check_study(study, name="cheap", base=base)


def note(log: Path, text: str) -> None:
    """Append a line; one write of a short line is whole."""
    with log.open("a") as file:
        file.write(f"{text}\n")


def make_job(log: Path, *, seconds: float, hang: bool = False):
    """Return a job that notes when it begins and ends, and says what it was given."""

    def job(
        config: ConfigDict,
        folder: Path,
        on_epoch: Callable[[list[dict[str, float]]], None],
    ) -> float:
        note(log, f"begin {folder.name}")
        while hang:
            time.sleep(0.01)
        time.sleep(seconds)
        value = 1 - (config.distill.alpha - 0.3) ** 2
        history = []
        for epoch in range(1, 4):
            history.append({"val/roc_auc": value * epoch / 3})
            on_epoch(history)
        note(log, f"end {folder.name}")
        return value

    return job


def main(arguments: list[str]) -> int:
    """Work until nothing is left."""
    if "elsewhere" in arguments:
        worker.this_host = lambda: f"machine-{os.getpid()}"
    workdir, storage, seconds = Path(arguments[0]), arguments[1], float(arguments[2])
    runs = session.run(
        cheap_study(tune="tune" in arguments, trials=12),
        workdir,
        storage="" if storage == "sqlite" else storage,
        heartbeat=HEARTBEAT,
        retry_failed=False,
        job=make_job(workdir / "log.txt", seconds=seconds, hang="hang" in arguments),
    )
    return 0 if all(run.state in ("complete", "pruned") for run in runs) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
