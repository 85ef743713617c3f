"""A study from the outside: run what is left of it, look at its runs, report.

study.json says whose workdir it is, so that no study goes on as another one.
"""

import json
import sys
import uuid
from pathlib import Path
from typing import Any

import optuna
from absl import logging

from mela_jax import parallel, run_record
from mela_jax.atomic import hold_lock, write_text
from mela_jax.config import differences, expand_user
from mela_jax.errors import UserError
from mela_jax.evaluation.study_runs import Run
from mela_jax.study import database
from mela_jax.study.attempts import list_runs
from mela_jax.study.spec import Study, axis_values
from mela_jax.study.worker import Job, Worker, make_pruner


def run(
    study: Study,
    workdir: Path,
    *,
    storage: str,
    heartbeat: int,
    retry_failed: bool,
    job: Job | None = None,
) -> list[Run]:
    """Run what is left of a study, as one worker of it, and return all its runs.

    Args:
      study: written out.
      workdir: its folder, made when absent; the same for all its workers.
      storage: URL of the database; "" for the workdir's own file.
      heartbeat: seconds between two heartbeats.
      retry_failed: try again what has failed.
      job: does one run; None: the main job.

    Raises:
      UserError: for anything that its user can mend.
      Stopped, KeyboardInterrupt: when it was told to stop.
    """
    url, shown = database.locate(storage, workdir)
    if storage:
        # Forget the command line's password: every run records its command.
        sys.argv = [word.replace(storage, shown) for word in sys.argv]
    if job is None:
        # Here, with all that trains, so that those who only look start fast.
        from mela_jax.images import find_records
        from mela_jax.study.job import main_job

        parallel.set_up(
            cpu_devices=study.base.cpu_devices,
            distributed=False,
            compilation_cache=expand_user(study.base.data.cache_dir) / "xla",
        )
        # Now, and not once for every run, as its failure.
        find_records(study.base)
        job = main_job(workdir, metric=study.metric, base=study.base)
    try:
        (workdir / "locks").mkdir(parents=True, exist_ok=True)
        with hold_lock(workdir / ".queue.lock"):
            # First of all: a mistyped address must not become part of study.json.
            opened = database.open_storage(url, heartbeat=heartbeat)
            optuna_study = optuna.create_study(
                study_name=_claim(study, workdir, storage=shown),
                storage=opened,
                direction="maximize",
                pruner=make_pruner(study),
                load_if_exists=True,
            )
        worker = Worker(study, workdir, optuna_study, job, heartbeat)
        worker.work(retry_failed=retry_failed)
        return [each for each, _ in worker.runs()]
    except OSError as error:
        raise UserError(
            f"--workdir={workdir}: cannot be written ({error.strerror}); choose another"
        ) from error
    except database.FAULTS as error:
        raise UserError(
            f"{database.no_answer(url, error)}; what was done is in {workdir}, and the"
            " same command goes on"
        ) from error


def load_runs(workdir: Path, *, storage: str = "") -> tuple[Study, list[Run]]:
    """Return a study and all its runs; `storage` as in `run`.

    Raises:
      UserError: when there is no such study, or its storage does not answer.
    """
    known, study = _read(workdir)
    url, shown = database.locate(storage, workdir)
    if shown != known["storage"]:
        raise UserError(
            f"--workdir={workdir}: its storage is {known['storage'] or 'study.db'}, not"
            f" {shown or 'study.db'}; give it with --storage"
        )
    if not storage and not (workdir / "study.db").exists():
        raise UserError(f"{workdir / 'study.db'}: is missing; restore it")
    try:
        # Nothing runs here, so the heartbeat does not matter.
        opened = database.open_storage(url, heartbeat=30)
        optuna_study = optuna.load_study(study_name=known["study_id"], storage=opened)
        trials = optuna_study.get_trials(deepcopy=False)
    except KeyError as error:
        where = shown or workdir / "study.db"
        raise UserError(
            f"--storage={where}: holds no study {known['study_id']}"
        ) from error
    except database.FAULTS as error:
        raise UserError(database.no_answer(url, error)) from error
    return study, [each for each, _ in list_runs(study, workdir, trials)]


def report(workdir: Path, *, storage: str) -> str:
    """Write the report of a study and return where it is.

    Raises:
      UserError: for anything that its user can mend.
    """
    study, runs = load_runs(workdir, storage=storage)
    # Here, so that a worker needs no plotting, and a look at the runs no training.
    from mela_jax.evaluation.study_results import study_results
    from mela_jax.report.study_report import write_study_report
    from mela_jax.results import evaluation_settings

    results = study_results(
        runs,
        evaluation_settings(study.base),
        name=study.name,
        axes={axis: axis_values(values) for axis, values in study.axes.items()},
        reference=study.reference,
        cells=study.cells,
        select_by=study.metric,
    )
    return f"Report: {write_study_report(workdir / 'report', results)}"


def _claim(study: Study, workdir: Path, *, storage: str) -> str:
    """Write study.json into a new workdir, or check that an old one is of this study.

    Call it under the study's lock. Returned is the name of the study in its storage; no
    two workdirs have the same.

    Raises:
      UserError: when the workdir belongs to another study, listing the differences.
    """
    made = run_record.provenance(study.base)
    if not (workdir / "study.json").exists():
        study_id = f"{study.name}-{uuid.uuid4().hex[:12]}"
        content = {
            "study_id": study_id,
            "storage": storage,
            "plan": study.to_json(),
            "provenance": made,
        }
        text = json.dumps(content, indent=2) + "\n"
        write_text(workdir / "study.json", text)
        return study_id
    known, other = _read(workdir)
    changed = differences(
        {"storage": known["storage"], **other.to_json()},
        {"storage": storage, **study.to_json()},
    )
    if changed:
        raise UserError(
            f"--workdir={workdir} belongs to another study: {'; '.join(changed)};"
            " choose another --workdir, or undo the change"
        )
    commit = known["provenance"].get("git_commit")
    if commit != made["git_commit"]:
        logging.warning(
            "this study was begun with the code of commit %s, and goes on with %s",
            commit,
            made["git_commit"],
        )
    return known["study_id"]


def _read(workdir: Path) -> tuple[dict[str, Any], Study]:
    """Return what study.json holds, and the study in it.

    Raises:
      UserError: when there is none, or it is damaged.
    """
    path = workdir / "study.json"
    if not path.exists():
        raise UserError(f"--workdir={workdir}: holds no study (no study.json)")
    try:
        content = json.loads(path.read_text())
        study = Study.from_json(content["plan"])
        return {k: content[k] for k in ("study_id", "storage", "provenance")}, study
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: is damaged ({error}); restore it, or choose another --workdir"
        ) from error
