"""The report of any models, and of models that score every diagnosis."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from mela_jax.evaluation.classes import ClassScores
from mela_jax.evaluation.scores import (
    Predictions,
    read_predictions,
    write_predictions,
)
from mela_jax.labels import LabelSpace
from mela_jax.report import words
from mela_jax.report.gallery import model_styles
from mela_jax.report.main_report import write_report
from mela_jax.report.wording import diagnosis_name
from tests.evaluation.models import (
    SETTINGS,
    draw_models,
    evaluated,
)
from tests.report.pages import Page, report


@pytest.fixture(scope="module")
def predictions() -> dict[str, dict[str, Predictions]]:
    return draw_models()


def test_a_report_takes_whatever_models_there_are(
    tmp_path: Path, predictions: dict[str, dict[str, Predictions]]
) -> None:
    teacher, student = predictions["teacher"], predictions["student"]
    names = ("teacher", "teacher_2", "student", "early_exit", "baseline")
    metrics, page = report(
        tmp_path, {n: student if n == "student" else teacher for n in names}
    )
    assert tuple(metrics["models"]) == names
    assert list(metrics["comparisons"]) == [
        "student_minus_baseline",
        "student_minus_teacher",
        "student_minus_teacher_2",
    ]
    assert "Distilled student (mobilenet_v3_small) minus Teacher 2 (m" in page.text
    assert "Early exit (mobilenet_v3_small)" in page.text
    assert "The model is: Distilled student (m" in page.text
    # Without a student the first leads; what is not known of a model is a dash.
    models = evaluated({"pupil": student, "teacher": teacher})
    del models["pupil"]["params"], models["pupil"]["flops"]
    write_report(
        tmp_path / "two",
        models=models,
        predictions={"pupil": student, "teacher": teacher},
        settings=SETTINGS,
    )
    text = Page(tmp_path / "two" / "report.html").text
    assert "The model is: Pupil (m" in text
    assert "Parameters – 940 k" in text
    assert "Nothing to compare" in text


def test_models_look_different_and_known_ones_as_ever() -> None:
    names = [f"teacher_{k}" for k in range(2, 6)]
    styles = model_styles(["teacher", *names, "student", "baseline"])
    assert len(set(styles.values())) == len(styles) == 7
    assert len({colour for colour, _, _ in styles.values()}) == 7
    known = model_styles(["teacher", "student", "baseline"])
    assert all(styles[name] == style for name, style in known.items())


def draw_classes(split: str, seed: int, path: Path) -> Predictions:
    """Draw 90 images of five diagnoses, of which no image is the first."""
    names, melanoma = ("akiec", "bcc", "bkl", "mel", "nv"), 3
    truth = np.random.default_rng(len(split)).integers(1, 5, size=90)
    noise = np.random.default_rng([len(split), seed]).normal(size=(90, 5))
    score = LabelSpace(names, melanoma).probabilities(noise + 2 * np.eye(5)[truth])
    ids = [f"{split}{k}" for k in range(90)]
    label = (truth == melanoma).astype(int)
    classes = ClassScores(names, truth, score, melanoma)
    write_predictions(
        path, Predictions(ids, ids, label, score[:, melanoma], classes=classes)
    )
    return read_predictions(path)


def test_all_diagnoses_appear_by_themselves(tmp_path: Path) -> None:
    held = {
        name: {s: draw_classes(s, seed, tmp_path / "p.csv") for s in ("val", "test")}
        for seed, name in enumerate(("teacher", "student"))
    }
    metrics, page = report(tmp_path / "all", held)
    multi = metrics["models"]["student"]["test"]["multiclass"]
    assert multi["absent"] == ["akiec"]
    assert "Confusion of diagnoses" in page.captions
    assert "No test image is actinic keratosis or Bowen's disease" in page.text
    # The columns are those of student and teacher: the leader first.
    assert "Sensitivity: actinic keratosis or Bowen's disease – –" in page.text
    for k in range(1, 5):
        row, other = (
            metrics["models"][name]["test"]["multiclass"]["per_class"][k]
            for name in ("student", "teacher")
        )
        recalls = [words.rate(r["by_lesion"]["sensitivity"]) for r in (row, other)]
        line = " ".join([f"Sensitivity: {diagnosis_name(row['name'])}", *recalls])
        line = line.replace("\N{WORD JOINER}", "").replace("\N{NO-BREAK SPACE}", " ")
        assert line in page.text
    assert "None" not in page.text
    # Where only another than the leader scores them, it is named.
    held["student"] = {
        split: dataclasses.replace(drawn, classes=None)
        for split, drawn in held["student"].items()
    }
    metrics, page = report(tmp_path / "one", held)
    assert metrics["models"]["student"]["test"]["multiclass"] is None
    assert "Teacher (mobilenet_v3_small) scores 5 diagnoses" in page.text
    assert "Confusion of diagnoses" in page.captions
