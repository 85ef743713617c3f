"""The command, as its user runs it, with the smallest real job."""

import json
import re
from pathlib import Path

import pytest

from mela_jax.study import session
from tests.job import Finished, Job, Running

# Four settings: no teacher; two that share one; one that cannot run.
STUDY = """
from configs import tiny
from mela_jax.study.spec import Study


def get_study():
    base = tiny.get_config()
    base.baseline = False
    return Study(
        base=base,
        cells=(
            {"distill.enabled": False},
            {},
            {"student.init": "/nowhere/weights.npz"},
            {"distill.alpha": 0.9},
        ),
        reference={"distill.enabled": False},
        seeds=(0,),
    )
"""


@pytest.fixture(scope="module")
def study(job: Job) -> Path:
    path = job.root / "four.py"
    path.write_text(STUDY)
    return path


def start(job: Job, study: Path, workdir: Path, *more: str) -> Running:
    return job.start_module(
        "mela_jax.study",
        f"--study={study}",
        f"--workdir={workdir}",
        f"--config.data.dir={job.data}",
        f"--config.data.cache_dir={job.cache}",
        *more,
    )


@pytest.fixture(scope="module")
def runs(job: Job, study: Path) -> tuple[Path, str, Finished]:
    """Return a study whose worker was killed in a distilled run, and the next one's."""
    workdir = job.root / "study"
    killed = start(job, study, workdir)
    killed.wait_for_line(r"teacher \w+: begins")
    # The student's first epoch, saved: what goes on from it is seen in the log.
    killed.wait_for(
        lambda: list((workdir / "trials" / "base,seed=0").glob("student/checkpoints/2"))
    )
    killed.kill()
    return workdir, killed.stderr, start(job, study, workdir).finish()


def test_a_killed_study_goes_on_within_the_run_and_ends(
    runs: tuple[Path, str, Finished],
):
    workdir, before, after = runs
    trials = session.load_runs(workdir)[1]
    assert [trial.state for trial in trials] == [
        *("complete", "complete", "failed", "complete")
    ]
    assert "distill.enabled=False,seed=0: begins" not in after.stderr
    assert "student: goes on from step" in after.stderr
    for trial in trials:
        if trial.state == "complete":
            assert (trial.workdir / "report" / "metrics.json").is_file()
            assert (trial.workdir / "predictions" / "student_test.csv").is_file()


def test_the_teacher_is_trained_once(runs: tuple[Path, str, Finished]):
    workdir, before, after = runs
    assert len(re.findall(r"teacher \w+: begins", before + after.stderr)) == 1
    (teacher,) = (p for p in (workdir / "teachers").iterdir() if p.is_dir())
    for key in ("base,seed=0", "distill.alpha=0.9,seed=0"):
        config = json.loads((workdir / "trials" / key / "config.json").read_text())
        assert config["config"]["teacher"]["checkpoint"] == str(teacher)
        assert not (workdir / "trials" / key / "teacher").exists()


def test_a_failure_is_told_in_one_line_and_by_the_exit_status(
    runs: tuple[Path, str, Finished],
):
    after = runs[2]
    assert after.returncode == 1
    assert "Traceback" not in after.stderr + after.stdout
    key = "student.init=_nowhere_weights.npz"
    (line,) = (x for x in after.stdout.splitlines() if x.startswith(key))
    assert "there is no such file" in line
    assert "4 runs: 3 complete, 1 failed" in after.stdout


def test_a_finished_study_says_so_and_does_nothing(
    job: Job, study: Path, runs: tuple[Path, str, Finished]
):
    again = start(job, study, runs[0]).finish()
    assert again.returncode == 1
    assert "all 4 runs are done" in again.stderr
    assert "begins" not in again.stderr


def test_other_overrides_are_refused(
    job: Job, study: Path, runs: tuple[Path, str, Finished]
):
    changed = start(job, study, runs[0], "--config.student.epochs=3").finish()
    assert "base.student.epochs: 2 -> 3" in changed.error_line()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "--workdir is missing"),
        (["--workdir=W"], "--study is missing"),
        (["--workdir=W", "--study=no.py"], "there is no such file"),
        (["--workdir=W", "--study=STUDY", "--trails=3"], "trails"),
        (["--workdir=W", "--study=STUDY", "--trials=3"], "a grid runs every cell"),
        (["--workdir=W", "--study=STUDY", "stray"], "'stray' is not a flag"),
        (["--workdir=W", "--study=STUDY", "--config.student.epoch=3"], "'epoch'"),
        (["--workdir=W", "--study=STUDY", "--config.student.epochs=0"], "epochs=0"),
        (["--workdir=W", "--study=STUDY", "--config.distill.alpha=0.3"], "is an axis"),
        (
            [
                *("--workdir=W", "--study=STUDY"),
                *("--config.data.name=ham10000", "--config.data.dir=/not/here"),
            ],
            "no data folder /not/here",
        ),
        (["--workdir=W", "--report"], "holds no study"),
    ],
)
def test_a_mistake_is_answered_in_one_line(
    job: Job, study: Path, tmp_path: Path, arguments: list[str], reason: str
):
    words = [
        word.replace("=W", f"={tmp_path / 'w'}").replace("=STUDY", f"={study}")
        for word in arguments
    ]
    done = job.run_module("mela_jax.study", *words)
    assert reason in done.error_line()
    assert not (tmp_path / "w" / "study.json").exists()


def test_help_names_the_flags(job: Job):
    done = job.run_module("mela_jax.study", "--help")
    assert done.returncode == 0
    for flag in ("--study", "--workdir", "--trials", "--storage", "report", "--config"):
        assert flag in done.stdout
