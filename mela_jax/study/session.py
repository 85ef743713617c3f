"""A study from the outside: run what is left of it, look at its runs, report."""

import sys
from pathlib import Path

import optuna
from absl import logging

from mela_jax import parallel
from mela_jax.atomic import hold_lock
from mela_jax.config import expand_user
from mela_jax.errors import UserError
from mela_jax.evaluation.study_trial import Trial
from mela_jax.study import record
from mela_jax.study.queue import Queue
from mela_jax.study.samplers import make_pruner, make_sampler
from mela_jax.study.spec import Plan, Range
from mela_jax.study.storage import (
    FAULTS,
    no_answer,
    open_storage,
    parse_url,
    without_password,
)
from mela_jax.study.worker import Job, Worker

# Seconds between two signs of life where nothing hangs on them.
_DEFAULT_HEARTBEAT = 30


def run(
    plan: Plan,
    workdir: Path,
    *,
    storage: str,
    trials: int,
    heartbeat: int,
    retry_failed: bool,
    job: Job | None = None,
) -> list[Trial]:
    """Run what is left of a study, as one worker of it.

    Args:
      plan: the study.
      workdir: its folder, made when absent; the same for all its workers.
      storage: URL of the database; "" for the workdir's own file.
      trials: for tuning, how many settings to try.
      heartbeat: seconds between two signs of life.
      retry_failed: try again what has failed.
      job: does one run; the main job where none is given.

    Returns:
      All runs of the study.

    Raises:
      UserError: for anything that its user can mend.
      Stopped, KeyboardInterrupt: when it was told to stop.
    """
    url = parse_url(storage, workdir)
    _hide_password(storage, workdir)
    if job is None:
        # Here, with all that trains, so that those who only look start fast.
        from mela_jax.images import find_records
        from mela_jax.study.job import main_job

        parallel.set_up(
            cpu_devices=plan.base.cpu_devices,
            distributed=False,
            compilation_cache=expand_user(plan.base.data.cache_dir) / "xla",
        )
        # Now, and not once for every run, as its failure.
        find_records(plan.base)
        job = main_job(workdir, metric=plan.metric, base=plan.base)
    try:
        queue = _open(
            plan, workdir, storage=storage, trials=trials, heartbeat=heartbeat
        )
        before = list_trials(queue)
        unfinished = {"waiting", "running"} | ({"failed"} if retry_failed else set())
        if not any(trial.state in unfinished for trial in before):
            logging.info("all %d runs are done: nothing is left to do", len(before))
            return before
        Worker(queue, job, pause=heartbeat / 6).work(retry_failed=retry_failed)
        return list_trials(queue)
    except FAULTS as error:
        raise UserError(
            f"{no_answer(url, error)}; what was done is in {workdir}, and the same"
            " command goes on"
        ) from error


def load_trials(workdir: Path, *, storage: str = "") -> list[Trial]:
    """Return all runs of a study and what has become of them.

    Args:
      workdir: folder of the study.
      storage: URL of its database; "" for the workdir's own file.

    Raises:
      UserError: when there is no such study, or its storage does not answer.
    """
    known = record.read(workdir)
    url = parse_url(storage, workdir)
    shown = _shown(storage, workdir)
    if shown != known.storage:
        raise UserError(
            f"--workdir={workdir}: its storage is {known.storage or 'study.db'}, not"
            f" {shown or 'study.db'}; give it with --storage"
        )
    if not storage and not (workdir / "study.db").exists():
        raise UserError(f"{workdir / 'study.db'}: is missing; restore it")
    try:
        opened = open_storage(url, heartbeat=_DEFAULT_HEARTBEAT)
        study = optuna.load_study(study_name=known.study_id, storage=opened)
        return list_trials(Queue(known.plan, workdir, opened, study, trials=0))
    except KeyError as error:
        raise UserError(
            f"--storage={without_password(url)}: holds no study {known.study_id}"
        ) from error
    except FAULTS as error:
        raise UserError(no_answer(url, error)) from error


def list_trials(queue: Queue) -> list[Trial]:
    """Return all runs of a study and what has become of them."""
    return [
        Trial(
            number=run.number,
            setting=queue.plan.cells[run.cell] if run.cell else dict(verdict.params),
            seed=run.seed,
            fold=run.fold,
            state=verdict.state,
            error=verdict.error,
            workdir=queue.folder(run),
        )
        for run, verdict in queue.verdicts()
    ]


def report(workdir: Path, *, storage: str) -> str:
    """Write the report of a study and return where it is.

    Raises:
      UserError: for anything that its user can mend.
    """
    trials = load_trials(workdir, storage=storage)
    plan = record.read(workdir).plan
    # Here, so that a worker needs no plotting, and a look at the runs no training.
    from mela_jax.report.study_report import write_study_report
    from mela_jax.results import evaluation_settings

    path = write_study_report(
        workdir,
        name=plan.name,
        axes={
            axis: (values.low, values.high) if isinstance(values, Range) else values
            for axis, values in plan.axes.items()
        },
        reference=plan.reference,
        trials=trials,
        settings=evaluation_settings(plan.base),
        cells=list(plan.cells.values()),
        select_by=plan.metric,
    )
    return f"Report: {path}"


def _open(
    plan: Plan, workdir: Path, *, storage: str, trials: int, heartbeat: int
) -> Queue:
    """Make the workdir and the study in its storage, or find both."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with hold_lock(workdir / ".queue.lock"):
            # First of all: a mistyped address is not to be what the study is known by.
            opened = open_storage(parse_url(storage, workdir), heartbeat=heartbeat)
            known = record.claim(workdir, plan, storage=_shown(storage, workdir))
            study = optuna.create_study(
                study_name=known.study_id,
                storage=opened,
                direction="maximize",
                sampler=make_sampler(plan),
                pruner=make_pruner(plan),
                load_if_exists=True,
            )
    except OSError as error:
        raise UserError(
            f"--workdir={workdir}: cannot be written ({error.strerror}); choose another"
        ) from error
    return Queue(plan, workdir, opened, study, trials=trials)


def _shown(storage: str, workdir: Path) -> str:
    """Return what study.json says of the storage."""
    return without_password(parse_url(storage, workdir)) if storage else ""


def _hide_password(storage: str, workdir: Path) -> None:
    """Forget the command line's password: every run records its command."""
    if storage:
        shown = _shown(storage, workdir)
        sys.argv = [word.replace(storage, shown) for word in sys.argv]
