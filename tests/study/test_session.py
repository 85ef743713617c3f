"""Whose workdir it is, and the storage: what is refused, and what is never shown."""

import contextlib
import dataclasses
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from mela_jax.errors import UserError
from mela_jax.study import database, session
from mela_jax.study.spec import Study
from mela_jax.study.worker import History, Job
from tests.study.conftest import PASSWORD
from tests.study.worker_process import cheap_study, make_job


def work(
    workdir: Path,
    *,
    made: Study | None = None,
    storage: str = "",
    job: Job | None = None,
    heartbeat: int = 30,
):
    return session.run(
        made or cheap_study(),
        workdir,
        storage=storage,
        heartbeat=heartbeat,
        retry_failed=False,
        job=job or make_job(workdir / "log.txt", seconds=0),
    )


def refusal(workdir: Path, **options) -> str:
    with pytest.raises(UserError) as refused:
        work(workdir, **options)
    message = str(refused.value)
    assert "\n" not in message
    return message


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the workdir of a finished study. Tests must not change it."""
    workdir = tmp_path_factory.mktemp("done")
    work(workdir)
    return workdir


def test_study_json_tells_what_the_study_is(done: Path):
    content = json.loads((done / "study.json").read_text())
    assert content["plan"] == cheap_study().to_json()
    assert content["provenance"]["packages"]["jax"]
    assert session.load_runs(done)[0].to_json() == cheap_study().to_json()


def test_another_study_is_refused_with_all_that_differs(done: Path):
    changed = dataclasses.replace(
        cheap_study(),
        seeds=(0, 1, 2),
        base=cheap_study().base.copy_and_resolve_references(),
    )
    changed.base.student.epochs = 7
    message = refusal(done, made=changed)
    assert "base.student.epochs: 2 -> 7" in message
    assert "seeds: [0, 1] -> [0, 1, 2]" in message
    assert "cells" not in message


def test_another_storage_is_refused(done: Path, tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'other.db'}"
    assert f"storage: '' -> '{url}'" in refusal(done, storage=url)
    with pytest.raises(UserError, match="its storage is study.db, not sqlite"):
        session.load_runs(done, storage=url)


def test_a_workdir_without_a_study_has_no_runs(tmp_path: Path):
    with pytest.raises(UserError, match="holds no study"):
        session.load_runs(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", '{"plan": {}}', "[]"])
def test_a_damaged_study_json_is_refused(done: Path, tmp_path: Path, text: str):
    shutil.copytree(done, tmp_path / "copy")
    (tmp_path / "copy" / "study.json").write_text(text)
    assert "study.json: is damaged" in refusal(tmp_path / "copy")


def test_a_lost_storage_is_noticed_and_made_again_from_the_folders(
    done: Path, tmp_path: Path
):
    workdir = tmp_path / "copy"
    shutil.copytree(done, workdir)
    (workdir / "study.db").unlink()
    with pytest.raises(UserError, match=r"study\.db: is missing"):
        session.load_runs(workdir)
    assert {trial.state for trial in work(workdir)} == {"complete"}


def test_a_damaged_storage_is_one_line(done: Path, tmp_path: Path):
    shutil.copytree(done, tmp_path / "copy")
    (tmp_path / "copy" / "study.db").write_bytes(b"no database at all" * 100)
    assert "does not answer" in refusal(tmp_path / "copy")


def test_a_storage_that_takes_nothing_more_is_one_line_and_loses_no_run(
    tmp_path: Path,
):
    """As on a full disk: what is there can be read, and nothing be written."""
    quick = make_job(tmp_path / "log.txt", seconds=0)

    def job(
        config: ConfigDict, folder: Path, on_epoch: Callable[[History], None]
    ) -> float:
        value = quick(config, folder, on_epoch)
        with contextlib.closing(sqlite3.connect(tmp_path / "study.db")) as database:
            database.execute(
                "CREATE TRIGGER full BEFORE UPDATE ON trials BEGIN"
                " INSERT INTO a_full_disk VALUES (1); END"
            )
        return value

    message = refusal(tmp_path, job=job)
    assert "a_full_disk" in message
    assert "the same command goes on" in message
    with contextlib.closing(sqlite3.connect(tmp_path / "study.db")) as database:
        database.execute("DROP TRIGGER full")
    assert [trial.state for trial in work(tmp_path)] == ["complete"] * 12


def test_a_heartbeat_that_is_lost_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The thread that beats outlives it, without a traceback."""
    raised = []
    monkeypatch.setattr(threading, "excepthook", raised.append)
    quick = make_job(tmp_path / "log.txt", seconds=0)
    beats: list[str] = []
    attempts: list[int] = []
    record = database.Storage.record_heartbeat

    def count(storage: database.Storage, trial_id: int) -> None:
        record(storage, trial_id)
        attempts.append(trial_id)

    monkeypatch.setattr(database.Storage, "record_heartbeat", count)

    def wait_for_a_beat() -> None:
        # The first one may have begun before.
        wanted = len(attempts) + 2
        deadline = time.monotonic() + 300
        while len(attempts) < wanted:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def job(
        config: ConfigDict, folder: Path, on_epoch: Callable[[History], None]
    ) -> float:
        with contextlib.closing(sqlite3.connect(tmp_path / "study.db")) as connection:
            if not beats:
                connection.execute(
                    "CREATE TRIGGER full BEFORE UPDATE ON trial_heartbeats BEGIN"
                    " INSERT INTO a_full_disk VALUES (1); END"
                )
                for statement in ("DROP TRIGGER full", "SELECT 1"):
                    wait_for_a_beat()
                    query = "SELECT max(heartbeat) FROM trial_heartbeats"
                    beats.extend(*connection.execute(query))
                    connection.execute(statement)
        return quick(config, folder, on_epoch)

    assert {run.state for run in work(tmp_path, job=job, heartbeat=1)} == {"complete"}
    assert not raised
    assert beats[0] < beats[1]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("not a url", "no database URL"),
        ("postgresql+psycopg://me:hush@127.0.0.1:1/db", "refused"),
        ("postgresql://me:hush@127.0.0.1:1/db", "refused"),
        ("postgresql+nodriver://me:hush@127.0.0.1:1/db", "nodriver"),
        ("mysql+pymysql://me:hush@127.0.0.1:1/db", "pymysql"),
        ("sqlite:////proc/no/such/folder/study.db", "unable to open"),
        ("me:hush@nowhere", "no database URL"),
        ("postgresql:///db?host=127.0.0.1&port=1&password=hush", "refused"),
    ],
)
def test_a_storage_that_does_not_answer_is_one_line_without_the_password(
    tmp_path: Path, url: str, reason: str
):
    message = refusal(tmp_path / "study", storage=url)
    assert reason in message
    assert "hush" not in message
    # A corrected address is not another study.
    assert not (tmp_path / "study" / "study.json").exists()


def test_a_workdir_that_cannot_be_made_is_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refusal(tmp_path / "file" / "study")


def test_the_password_is_written_down_nowhere(
    tmp_path: Path, postgres: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "argv", ["study", f"--storage={postgres}", postgres])
    work(tmp_path, storage=postgres)
    secrets = [PASSWORD, PASSWORD.replace("%", "%25")]
    kept = " ".join(sys.argv)
    kept += "".join(p.read_text() for p in tmp_path.rglob("*.json"))
    assert not any(secret in kept for secret in secrets)
    assert "mela@127.0.0.1" in kept
    assert {t.state for t in session.load_runs(tmp_path, storage=postgres)[1]} == {
        "complete"
    }
    with pytest.raises(UserError, match="give it with --storage") as refused:
        session.load_runs(tmp_path)
    assert not any(secret in str(refused.value) for secret in secrets)


def test_a_look_at_a_study_starts_without_what_trains(done: Path):
    code = (
        "import sys; from pathlib import Path; from mela_jax.study import session;"
        f"print(len(session.load_runs(Path({str(done)!r}))[1])); "
        "print([m for m in ('orbax', 'mela_jax.pipeline') if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ
    )
    assert found.stdout.split("\n")[:2] == ["12", "[]"], found.stderr


def test_a_mistyped_flag_is_answered_before_anything_heavy_is_imported():
    code = (
        "import sys; import mela_jax.study.__main__;"
        "print({'jax', 'optuna', 'scipy', 'sklearn'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout == "set()\n", found.stderr
