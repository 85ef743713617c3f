"""One run of a study: the main job, with what it shares with the other runs."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from absl import logging
from ml_collections import ConfigDict

from mela_jax import checkpoint, parallel, pipeline
from mela_jax.atomic import hold_lock
from mela_jax.study.worker import Job
from mela_jax.train import History

# Sections and fields that a teacher's training does not depend on.
_NOT_THE_TEACHERS = (
    "student",
    "distill",
    "evaluation",
    "baseline",
    "num_bootstrap",
    "log_every_steps",
)


def main_job(workdir: Path, *, metric: str, base: ConfigDict) -> Job:
    """Return the main job, whose runs share their teachers.

    Args:
      workdir: folder of the study.
      metric: validation metric that is the value of a run.
      base: configuration of the study.
    """

    def job(
        config: ConfigDict, folder: Path, on_epoch: Callable[[History], None]
    ) -> float:
        try:
            if config.distill.enabled and not config.teacher.checkpoint:
                config.teacher.checkpoint = str(obtain_teacher(config, workdir, base))
            pipeline.run(config, folder, on_epoch=on_epoch)
        finally:
            parallel.forget_programs()
        student = checkpoint.read_description(folder / "student")
        assert student is not None, "the run has just finished"
        (value,) = (
            row[f"val/{metric}"]
            for row in student["history"]
            if row["step"] == student["best_step"]
        )
        return value

    return job


def obtain_teacher(config: ConfigDict, workdir: Path, base: ConfigDict) -> Path:
    """Return the folder of the teacher that a run learns from, trained once.

    Runs that differ in nothing that bears on the teacher have the same. Its seed is the
    study's: students of all seeds learn from one teacher.

    Args:
      config: of the run.
      workdir: folder of the study.
      base: configuration of the study.
    """
    config = config.copy_and_resolve_references()
    for name in _NOT_THE_TEACHERS:
        config[name] = base.copy_and_resolve_references()[name]
    config.seed = base.seed
    config.distill.enabled, config.baseline = True, False
    name = hashlib.sha256(config.to_json(sort_keys=True).encode()).hexdigest()[:16]
    folder = workdir.absolute() / "teachers" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with hold_lock(folder.with_suffix(".lock")):
        if checkpoint.read_description(folder / "teacher") is None:
            logging.info("teacher %s: begins", name)
            pipeline.run_teacher(config, folder)
    return folder
