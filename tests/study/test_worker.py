"""What has become of a run follows from its trials; failures stay where they belong."""

import contextlib
import datetime
import json
import os
import signal
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from mela_jax.atomic import hold_lock
from mela_jax.errors import Stopped, UserError
from mela_jax.study import attempts, session
from mela_jax.study.worker import Worker
from tests.study.worker_process import cheap_study, make_job


def trial(state: TrialState, **attributes):
    value = 0.5 if state == TrialState.COMPLETE else None
    return create_trial(state=state, value=value, user_attrs=attributes)


WAITING = trial(TrialState.WAITING)
RUNNING = trial(TrialState.RUNNING)
DEAD = trial(TrialState.FAIL)
STOPPED = trial(TrialState.FAIL, given_up="stopped")
FAILED = trial(TrialState.FAIL, error="no such file")
COMPLETE = trial(TrialState.COMPLETE)
PRUNED = create_trial(state=TrialState.PRUNED)
RETRY = trial(TrialState.WAITING, retry=True)


@pytest.mark.parametrize(
    ("tried", "state", "counts"),
    [
        ([], "waiting", None),
        ([WAITING], "waiting", WAITING),
        ([RUNNING, WAITING], "running", RUNNING),
        ([WAITING, RUNNING], "running", RUNNING),
        ([COMPLETE], "complete", COMPLETE),
        ([PRUNED], "pruned", PRUNED),
        ([FAILED], "failed", FAILED),
        # A dead worker's run, and one that was told to stop, are to be run again.
        ([DEAD], "waiting", None),
        ([STOPPED] * 5, "waiting", None),
        ([DEAD, RUNNING], "running", RUNNING),
        ([DEAD, DEAD, COMPLETE], "complete", COMPLETE),
        ([DEAD] * attempts.MAX_DEATHS, "failed", DEAD),
        # What was before a retry counts no more.
        ([FAILED, RETRY], "waiting", RETRY),
        ([*[DEAD] * attempts.MAX_DEATHS, RETRY], "waiting", RETRY),
        # Two that did the same, where locks do not hold: one of them counts.
        ([DEAD, COMPLETE, COMPLETE], "complete", COMPLETE),
    ],
)
def test_what_has_become_of_a_run(tried, state: str, counts):
    found, error, attempt = attempts.outcome(tried)
    assert found == state
    assert attempt is counts
    assert bool(error) == (state == "failed")
    assert "\n" not in error


def test_the_setting_of_a_dead_trial_is_known(tmp_path: Path):
    dead = create_trial(
        state=TrialState.FAIL,
        user_attrs={"run": 0},
        params={"distill.alpha": 0.25},
        distributions={"distill.alpha": optuna.distributions.FloatDistribution(0, 1)},
    )
    stopped = trial(TrialState.FAIL, run=0, given_up="stopped")
    ((run, attempt),) = attempts.list_runs(
        cheap_study(tune=True), tmp_path, [dead, stopped]
    )
    assert run.setting == {"distill.alpha": 0.25}
    assert attempt is None


def work(workdir: Path, job, *, storage: str = "", **options):
    return session.run(
        cheap_study(tune=options.get("tune", False), trials=options.get("trials", 4)),
        workdir,
        storage=storage,
        heartbeat=30,
        retry_failed=options.get("retry_failed", False),
        job=job,
    )


def lines(workdir: Path) -> list[str]:
    return (workdir / "log.txt").read_text().splitlines()


def test_a_finished_study_is_not_run_again(tmp_path: Path):
    job = make_job(tmp_path / "log.txt", seconds=0)
    first = work(tmp_path, job)
    assert len(lines(tmp_path)) == 24
    assert work(tmp_path, job) == first
    assert len(lines(tmp_path)) == 24


def failing(log: Path, error: Exception):
    """Return a job that raises `error` where alpha is 0.5 and the seed is 1."""
    healthy = make_job(log, seconds=0)

    def job(config, folder, on_epoch):
        if config.distill.alpha == 0.5 and config.seed == 1:
            raise error
        return healthy(config, folder, on_epoch)

    return job


@pytest.mark.parametrize(
    ("error", "recorded", "traceback"),
    [
        (UserError("no such\nfile"), "no such file", False),
        (
            ZeroDivisionError("division\nby zero"),
            "ZeroDivisionError: division by",
            True,
        ),
    ],
)
def test_a_failing_run_is_recorded_and_the_others_go_on(
    tmp_path: Path, error: Exception, recorded: str, traceback: bool
):
    log = tmp_path / "log.txt"
    trials = work(tmp_path, failing(log, error))
    states = [(t.state, t.setting["distill.alpha"], t.seed) for t in trials]
    failed = [t for t in trials if t.state == "failed"]
    assert len(failed) == 2 and len(trials) == 12
    assert {(alpha, seed) for s, alpha, seed in states if s == "failed"} == {(0.5, 1)}
    for one in failed:
        assert one.error.startswith(recorded)
        assert "\n" not in one.error
        assert (one.workdir / "error.txt").exists() == traceback
    # Not tried again unless asked for.
    assert len(lines(tmp_path)) == 20
    work(tmp_path, failing(log, error))
    assert len(lines(tmp_path)) == 20
    healed = work(tmp_path, make_job(log, seconds=0), retry_failed=True)
    assert {t.state for t in healed} == {"complete"}
    assert len(lines(tmp_path)) == 24


@pytest.mark.parametrize("stop", [Stopped("told to stop"), KeyboardInterrupt()])
def test_a_stopped_run_goes_on_later(tmp_path: Path, stop: BaseException):
    with pytest.raises(type(stop)):
        work(tmp_path, failing(tmp_path / "log.txt", stop))
    trials = session.load_runs(tmp_path)[1]
    assert {t.state for t in trials} == {"complete", "waiting"}
    done = work(tmp_path, make_job(tmp_path / "log.txt", seconds=0))
    assert {t.state for t in done} == {"complete"}
    assert len(lines(tmp_path)) == 24


def test_a_folder_in_use_is_left_for_later(tmp_path: Path):
    """Its run is neither failed nor run beside the other process."""
    (tmp_path / "locks").mkdir()
    healthy = make_job(tmp_path / "log.txt", seconds=0)
    busy = hold_lock(tmp_path / "locks" / "0.lock")
    busy.__enter__()
    released = False

    def job(config, folder, on_epoch):
        nonlocal released
        value = healthy(config, folder, on_epoch)
        if len(lines(tmp_path)) == 22 and not released:
            busy.__exit__(None, None, None)
            released = True
        return value

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Worker, "pause", 0.0)
        trials = work(tmp_path, job)
    assert released
    assert {t.state for t in trials} == {"complete"}
    # The run that was in use came last.
    assert lines(tmp_path)[-1] == f"end {trials[0].workdir.name}"


def test_tuning_tries_as_many_settings_as_asked_for_and_can_go_on(tmp_path: Path):
    job = make_job(tmp_path / "log.txt", seconds=0)
    first = work(tmp_path, job, tune=True, trials=4)
    assert [t.workdir.name for t in first] == [f"trial-{i:04d}" for i in range(4)]
    more = work(tmp_path, job, tune=True, trials=6)
    assert more[:4] == first and len(more) == 6
    # Fewer than there are: nothing is undone.
    assert work(tmp_path, job, tune=True, trials=2) == more


def test_an_interrupted_tuning_proposes_what_an_uninterrupted_one_does(tmp_path: Path):
    job = make_job(tmp_path / "a.txt", seconds=0)
    whole = work(tmp_path / "whole", job, tune=True, trials=14)
    work(tmp_path / "parts", job, tune=True, trials=5)
    parts = work(tmp_path / "parts", job, tune=True, trials=14)
    assert [t.setting for t in parts] == [t.setting for t in whole]
    assert len({t.setting["distill.alpha"] for t in whole}) == 14


def test_a_run_that_goes_on_reports_the_epochs_from_before(tmp_path: Path):
    def job(config, folder, on_epoch):
        # The folder had two epochs of this run: the first call comes with three.
        on_epoch([{"val/roc_auc": value} for value in (0.5, 0.6, 0.7)])
        return 0.7

    work(tmp_path, job)
    study = optuna.load_study(
        study_name=json.loads((tmp_path / "study.json").read_text())["study_id"],
        storage=f"sqlite:///{tmp_path / 'study.db'}",
    )
    assert study.trials[0].intermediate_values == {1: 0.5, 2: 0.6, 3: 0.7}
    assert study.trials[0].value == 0.7


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_falls_where_it_is_lost_still_ends_the_worker(
    tmp_path: Path, signum: int
):
    healthy = make_job(tmp_path / "log.txt", seconds=0)

    def job(config, folder, on_epoch):
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signum)
        return healthy(config, folder, on_epoch)

    with pytest.raises(KeyboardInterrupt):
        work(tmp_path, job)
    # The run in which it fell has ended, and no other has begun.
    assert len(lines(tmp_path)) == 2


def emptied(workdir: Path) -> optuna.Study:
    """Return the study of a workdir with a new storage in place of its own."""
    with pytest.raises(Stopped):
        work(workdir, failing(workdir / "log.txt", Stopped("told to stop")))
    (workdir / "study.db").unlink()
    (workdir / "log.txt").write_text("")
    return optuna.create_study(
        study_name=json.loads((workdir / "study.json").read_text())["study_id"],
        storage=f"sqlite:///{workdir / 'study.db'}",
        direction="maximize",
    )


def test_an_unfinished_study_of_the_earlier_version_goes_on(tmp_path: Path):
    """Its waiting trials name a point of a grid that only its own sampler knows."""
    study = emptied(tmp_path)
    study.add_trial(trial(TrialState.COMPLETE, run=0, host="here"))
    study.add_trial(trial(TrialState.FAIL, run=1, host="here"))
    for number in range(1, 12):
        grid = {"grid_id": 11 - number, "search_space": {"cell": ["a"], "seed": [0]}}
        study.add_trial(
            create_trial(
                state=TrialState.WAITING,
                user_attrs={"run": number},
                system_attrs=grid,
            )
        )
    runs = work(tmp_path, make_job(tmp_path / "log.txt", seconds=0))
    assert {run.state for run in runs} == {"complete"}
    begun = [line.split()[1] for line in lines(tmp_path) if line.startswith("begin")]
    assert sorted(begun) == sorted(run.workdir.name for run in runs[1:])
    counted = [attempt for attempt in study.trials if attempt.value is not None][1:]
    for attempt in counted:
        assert attempt.params == runs[attempt.user_attrs["run"]].setting


@pytest.mark.parametrize(("minutes", "state"), [(0, "running"), (5, "complete")])
def test_a_worker_that_died_before_its_first_heartbeat_is_noticed(
    tmp_path: Path, minutes: int, state: str
):
    study = emptied(tmp_path)
    started = trial(TrialState.RUNNING, run=0)
    assert started.datetime_start is not None
    started.datetime_start -= datetime.timedelta(minutes=minutes)
    study.add_trial(started)
    healthy = make_job(tmp_path / "log.txt", seconds=0)

    def give_up_waiting(worker: Worker) -> float:
        raise Stopped("nothing else is left")

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Stopped):
        patch.setattr(Worker, "pause", property(give_up_waiting))
        work(tmp_path, healthy)
    states = [run.state for run in session.load_runs(tmp_path)[1]]
    assert states == [state, *["complete"] * 11]
