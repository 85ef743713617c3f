"""A run of several diagnoses, exported and scored as its user does it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from export.finished import open_run
from mela_jax import predict
from mela_jax.data.image_io import load_square
from mela_jax.errors import UserError
from mela_jax.inference import make_scorer
from mela_jax.tflite import PhoneModel, read_metadata, to_class_probabilities
from tests.job import Job, make_up_calibration
from tests.test_main_job import read_json, read_table

CLASSES = ("bkl", "df", "mel", "nv")


@pytest.fixture(scope="module")
def workdir(job: Job) -> Path:
    """Return the workdir of a finished run with two exported files."""
    workdir = job.root / "classes"
    done = job.run(
        workdir,
        "--config.labels=diagnoses",
        "--config.distill.enabled=False",
        "--config.baseline=False",
        "--config.student.epochs=1",
    )
    assert done.returncode == 0, done.stderr
    make_up_calibration(workdir)
    done = job.run_module(
        "export.to_tflite",
        f"--workdir={workdir}",
        "--modes=float32,int8",
        "--max_auc_loss=2",
        "--max_specificity_loss=2",
    )
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.fixture(scope="module")
def figures(workdir: Path) -> dict:
    return read_json(workdir / "export" / "metrics.json")["files"]


def test_the_file_names_its_classes(workdir, figures):
    assert list(figures) == ["student_float32.tflite", "student_int8.tflite"]
    for name in figures:
        content = (workdir / "export" / name).read_bytes()
        metadata = read_metadata(content)
        assert metadata["classes"] == list(CLASSES) and metadata["melanoma"] == 2
        assert metadata["labels"] == ["not_melanoma", "melanoma"]
        assert sorted(metadata["outputs"]) == PhoneModel(content, source="m").outputs


def test_the_figures_of_all_classes_are_those_of_the_file(job, workdir, figures):
    rows = read_table(workdir / "predictions" / "student_test.csv")
    paths = {path.name: path for path in job.data.rglob("*.png")}
    images = np.stack(
        [load_square(paths[r["image_id"]], size=32, crop="center") for r in rows]
    )
    truth = [CLASSES.index(r["dx"]) for r in rows]
    reported = np.array([[float(r[f"p_{name}"]) for name in CLASSES] for r in rows])
    before = to_class_probabilities(
        logit(reported[:, 2]), reported, melanoma=2, calibration={"a": 0.8, "b": -0.3}
    ).argmax(axis=1)
    for name, entry in figures.items():
        scores = make_scorer(str(workdir / "export" / name)).score(images)
        decision = scores.argmax(axis=1)
        found = entry["test"]["multiclass"]
        assert found["classes"] == list(CLASSES) and found["melanoma"] == "mel"
        assert found["accuracy"]["value"] == accuracy_score(truth, decision)
        balanced = balanced_accuracy_score(truth, decision)
        assert found["balanced_accuracy"]["value"] == pytest.approx(balanced)
        flips = entry["test"]["against_float"]["class_flips"]
        assert flips == (decision != before).sum()
    report = (workdir / "export" / "report.md").read_text()
    page = (workdir / "report" / "report.html").read_text()
    for text in (report, page):
        assert "All classes" in text and "bkl, df, mel, nv" in text


def test_predict_says_the_same_of_a_workdir_and_its_file(job, workdir, tmp_path):
    found = {}
    for model in (workdir, workdir / "export" / "student_float32.tflite"):
        output = tmp_path / f"{model.stem}.csv"
        arguments = [f"--model={model}", f"--images={job.data}", f"--output={output}"]
        assert predict.main(arguments) == 0
        rows = read_table(output)
        assert list(rows[0]) == [*predict.COLUMNS, *(f"p_{name}" for name in CLASSES)]
        assert all(row["p_mel"] == row["score"] for row in rows)
        scores = np.array([[float(row[f"p_{k}"]) for k in CLASSES] for row in rows])
        np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-12)
        found[model.suffix] = scores
    run, file = found[""], found[".tflite"]
    assert len(run) > 40
    # The file's are calibrated, which changes nothing among the other classes.
    np.testing.assert_allclose(
        file[:, 2], expit(0.8 * logit(run[:, 2]) - 0.3), atol=1e-6
    )
    others = [0, 1, 3]
    shares = [x[:, others] / (1 - x[:, [2]]) for x in (run, file)]
    np.testing.assert_allclose(*shares, atol=1e-6)


def test_only_models_that_are_there_are_offered(workdir):
    with pytest.raises(UserError, match="--which=teacher_2: .* it has: student$"):
        make_scorer(str(workdir), which="teacher_2")
    with pytest.raises(UserError, match="--model=teacher_2: .* it has: student$"):
        open_run(workdir, "teacher_2", data_dir=None)


def test_a_model_of_other_classes_is_refused(workdir, tmp_path):
    mixed = tmp_path / "mixed"
    shutil.copytree(workdir, mixed, ignore=shutil.ignore_patterns("checkpoints"))
    path = mixed / "student" / "model.json"
    other = read_json(path) | {"classes": list(reversed(CLASSES)), "melanoma": 1}
    path.write_text(json.dumps(other))
    with pytest.raises(UserError, match="says classes .* put together from two runs"):
        open_run(mixed, "student", data_dir=None)
