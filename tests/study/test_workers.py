"""Several workers of one study at once: no run is lost, none is done twice."""

import collections
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mela_jax.study import session
from tests.study import worker_process

TIMEOUT = 300.0


def start(workdir: Path, storage: str, seconds: float, *more: str) -> subprocess.Popen:
    workdir.mkdir(exist_ok=True)
    number = len(list(workdir.glob("worker-*.log")))
    with (workdir / f"worker-{number}.log").open("wb") as log:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.study.worker_process"),
                *(str(workdir), storage, str(seconds), *more),
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def finish(workdir: Path, workers: list[subprocess.Popen]) -> None:
    for worker in workers:
        try:
            code = worker.wait(TIMEOUT)
        finally:
            worker.kill()
        logs = "".join(path.read_text() for path in workdir.glob("worker-*.log"))
        assert code == 0, logs[-3000:]


def counts(workdir: Path) -> tuple[collections.Counter, collections.Counter]:
    """Return how often each run began, and how often it ended."""
    lines = (workdir / "log.txt").read_text().splitlines()
    words = [line.split(maxsplit=1) for line in lines]
    return (
        collections.Counter(key for word, key in words if word == "begin"),
        collections.Counter(key for word, key in words if word == "end"),
    )


@pytest.fixture(params=["sqlite", "postgres"])
def storage(request: pytest.FixtureRequest) -> str:
    if request.param == "sqlite":
        return "sqlite"
    return request.getfixturevalue("postgres")


def load(workdir: Path, storage: str):
    return session.load_runs(workdir, storage="" if storage == "sqlite" else storage)[1]


def test_three_workers_do_every_run_of_a_grid_once(tmp_path: Path, storage: str):
    workers = [start(tmp_path, storage, 0.1) for _ in range(3)]
    finish(tmp_path, workers)
    begun, ended = counts(tmp_path)
    assert len(ended) == 12
    assert set(begun.values()) == set(ended.values()) == {1}
    trials = load(tmp_path, storage)
    assert [trial.number for trial in trials] == list(range(12))
    assert {trial.state for trial in trials} == {"complete"}
    assert {trial.workdir.name for trial in trials} == set(ended)
    found = {(*trial.setting.values(), trial.seed, trial.fold) for trial in trials}
    assert found == {
        (loss, alpha, seed, -1)
        for loss in ("cross_entropy", "focal")
        for alpha in (0.1, 0.5, 0.9)
        for seed in (0, 1)
    }


def test_the_run_of_a_killed_worker_is_taken_up_by_another(
    tmp_path: Path, storage: str
):
    """The others have been at work meanwhile, and do not leave before.

    On SQLite all are on this machine, and see that the process is gone; on PostgreSQL
    each is on a machine of its own, and goes by the signs of life.
    """
    where = [] if storage == "sqlite" else ["elsewhere"]
    doomed = start(tmp_path, storage, 0.0, "hang", *where)
    deadline = time.monotonic() + TIMEOUT
    while not (tmp_path / "log.txt").exists():
        assert doomed.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    others = [start(tmp_path, storage, 0.05, *where) for _ in range(2)]
    while len(counts(tmp_path)[1]) < 11:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert all(other.poll() is None for other in others), "they wait for the last run"
    os.kill(doomed.pid, signal.SIGKILL)
    doomed.wait()
    finish(tmp_path, others)
    begun, ended = counts(tmp_path)
    assert len(ended) == 12 and set(ended.values()) == {1}
    assert sorted(begun.values()) == [1] * 11 + [2]
    assert {trial.state for trial in load(tmp_path, storage)} == {"complete"}


def test_several_workers_tune_with_just_as_many_trials_as_asked_for(
    tmp_path: Path, storage: str
):
    workers = [start(tmp_path, storage, 0.02, "tune") for _ in range(2)]
    finish(tmp_path, workers)
    begun, _ = counts(tmp_path)
    assert sorted(begun) == [f"trial-{i:04d}" for i in range(12)]
    assert set(begun.values()) == {1}
    trials = load(tmp_path, storage)
    assert {trial.state for trial in trials} <= {"complete", "pruned"}
    assert len({trial.setting["distill.alpha"] for trial in trials}) == 12
    assert worker_process.cheap_study(tune=True).axes.keys() == trials[0].setting.keys()
