"""The whole job, as its user runs it: what it leaves behind, and that it repeats."""

import csv
import dataclasses
import json
import re
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from scipy.special import logit
from sklearn.metrics import roc_auc_score

from mela_jax import config as mela_config
from mela_jax import parallel, stages
from mela_jax.checkpoint import fingerprint
from mela_jax.data.load import load_records
from mela_jax.errors import UserError
from mela_jax.evaluation.calibration import read_calibration
from mela_jax.evaluation.compare import compare
from mela_jax.evaluation.measure import evaluate_model
from mela_jax.evaluation.scores import read_predictions
from mela_jax.images import load_images, split_records
from mela_jax.plan import Context, make_plan
from mela_jax.results import evaluation_settings
from tests.events import read_events
from tests.job import Finished, Job

MODELS = ("teacher", "student", "baseline")
SPLITS = ("val", "test")


def read_json(path: Path):
    return json.loads(path.read_text())


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_scores(workdir: Path, model: str, split: str):
    """Return labels and scores, read without the code under test."""
    rows = read_table(workdir / "predictions" / f"{model}_{split}.csv")
    labels, scores = ([row[key] for row in rows] for key in ("label", "score"))
    return np.array(labels, int), np.array(scores, float)


def highest_threshold(labels: np.ndarray, scores: np.ndarray, target: float) -> float:
    """By trial: the highest score at which enough melanomas are flagged."""
    melanomas = scores[labels == 1]
    return max(t for t in set(scores) if np.mean(melanomas >= t) >= target)


@pytest.fixture(scope="module")
def metrics(finished: Path) -> dict:
    return read_json(finished / "report" / "metrics.json")


def test_workdir_holds_what_the_readme_promises(finished: Path):
    for name in MODELS:
        assert (finished / name / "model.json").is_file()
        assert (finished / name / "variables").is_dir()
        assert any((finished / name / "checkpoints").iterdir())
    assert sorted(path.name for path in (finished / "report").iterdir()) == [
        "metrics.json",
        "report.html",
    ]
    assert not [p for p in finished.rglob("*") if "tmp" in p.name]


def test_tensorboard_reads_the_scalars(finished: Path):
    for name in MODELS:
        events = read_events(finished / name / "scalars")
        history = read_json(finished / name / "model.json")["history"]
        for key in ("val/loss", "val/roc_auc"):
            assert events[key] == {
                row["step"]: pytest.approx(row[key]) for row in history
            }
        assert events["train/loss"]


def test_config_json_tells_what_made_the_run(finished: Path, job: Job):
    content = read_json(finished / "config.json")
    assert content["config"] == json.loads(job.config().to_json())
    assert set(mela_config.flatten(content["config"])) == set(
        mela_config.flatten(mela_config.default().to_dict())
    )
    made = content["provenance"]
    assert re.fullmatch("[0-9a-f]{40}(-dirty)?|unknown", made["git_commit"])
    assert {"jax", "flax", "numpy", "tensorflow"} <= set(made["packages"])
    assert made["seeds"] == {"seed": 0, "split_seed": 0}
    assert made["devices"] == ["1 x cpu cpu"]
    table = read_table(finished / "splits.csv")
    assert content["data"]["images"] == len(table)
    assert content["data"]["lesions"] == 40
    assert content["data"]["melanomas"] == sum(int(row["label"]) for row in table)


def test_no_lesion_is_in_two_splits(finished: Path):
    table = read_table(finished / "splits.csv")
    splits = defaultdict(set)
    for row in table:
        splits[row["lesion_id"]].add(row["split"])
    assert all(len(found) == 1 for found in splits.values())
    assert {row["split"] for row in table} == {"train", "val", "test"}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("split", SPLITS)
def test_every_image_of_a_split_is_scored_once(finished: Path, model: str, split: str):
    path = finished / "predictions" / f"{model}_{split}.csv"
    assert path.read_text().splitlines()[0] == "image_id,lesion_id,label,score,dx"
    found = read_table(path)
    wanted = [r for r in read_table(finished / "splits.csv") if r["split"] == split]
    columns = ("image_id", "lesion_id", "label")
    assert sorted([r[c] for c in columns] for r in found) == sorted(
        [r[c] for c in columns] for r in wanted
    )
    assert all(0 < float(row["score"]) < 1 for row in found)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("split", SPLITS)
def test_decisions_follow_from_the_predictions(
    finished: Path, metrics: dict, model: str, split: str
):
    # Validation alone decides, whichever split is then measured.
    threshold = highest_threshold(*read_scores(finished, model, "val"), 0.95)
    labels, scores = read_scores(finished, model, split)
    flagged, melanoma = scores >= threshold, labels == 1
    found = metrics["models"][model][split]
    point = found["operating_point"]
    assert (point["threshold"], point["chosen_on"]) == (threshold, "val")
    assert point["target_sensitivity"] == 0.95
    assert point["confusion"] == {
        "tp": (flagged & melanoma).sum(),
        "fp": (flagged & ~melanoma).sum(),
        "tn": (~flagged & ~melanoma).sum(),
        "fn": (~flagged & melanoma).sum(),
    }
    assert (found["n"], found["positives"]) == (len(labels), melanoma.sum())
    assert found["roc_auc"]["value"] == pytest.approx(roc_auc_score(labels, scores))


def test_every_figure_follows_from_the_predictions(
    job: Job, finished: Path, metrics: dict
):
    """How, tests/evaluation shows by plain loops."""
    settings = evaluation_settings(job.config())
    read = {
        name: {
            split: read_predictions(finished / "predictions" / f"{name}_{split}.csv")
            for split in SPLITS
        }
        for name in MODELS
    }
    for name, found in metrics["models"].items():
        figures = as_json(evaluate_model(**read[name], settings=settings))
        assert figures == {key: found[key] for key in figures}
    assert list(metrics["comparisons"]) == [
        "student_minus_baseline",
        "student_minus_teacher",
    ]
    for key, found in metrics["comparisons"].items():
        names = ("student", key.removeprefix("student_minus_"))
        figures = compare(
            *(read[name]["test"] for name in names),
            settings,
            **{
                f"threshold_{letter}": metrics["models"][name]["val"][
                    "operating_point"
                ]["threshold"]
                for letter, name in zip("ab", names, strict=True)
            },
            names=names,
        )
        assert as_json(figures) == found


def as_json(content):
    return json.loads(json.dumps(content))


def test_made_up_lesions_are_said_to_be_made_up(finished: Path, metrics: dict):
    assert metrics["made_up_data"] is True
    assert "MADE-UP LESIONS" in (finished / "report" / "report.html").read_text()


@pytest.mark.parametrize("model", MODELS)
def test_calibration_lies_beside_the_weights_and_changes_no_decision(
    finished: Path, metrics: dict, model: str
):
    fitted = metrics["models"][model]["calibration"]
    if fitted is None:
        assert not (finished / model / "calibration.json").exists()
        return
    stored = read_calibration(finished / model / "calibration.json")
    assert dataclasses.asdict(stored) == fitted
    assert stored.a > 0
    for split in SPLITS:
        _, scores = read_scores(finished, model, split)
        after = stored.probability(logit(scores)) >= stored.calibrated_threshold
        assert np.array_equal(after, scores >= stored.threshold)


def test_a_guarantee_that_validation_cannot_give_is_refused_before_training(
    job: Job, tmp_path: Path
):
    line = job.run(
        tmp_path, "--config.evaluation.threshold_policy=guaranteed"
    ).error_line()
    assert "takes 45 melanoma lesions in validation" in line
    assert not (tmp_path / "teacher").exists()


def test_student_of_the_light_head_has_its_known_size(metrics: dict):
    for name in MODELS:
        assert metrics["models"][name]["params"] == 939_697
        assert metrics["models"][name]["flops"] > 1e6


def test_student_and_baseline_differ_only_by_the_teacher(finished: Path):
    student = read_json(finished / "student" / "model.json")
    baseline = read_json(finished / "baseline" / "model.json")
    assert student["distilled"] and not baseline["distilled"]
    assert student["fingerprint"] != baseline["fingerprint"]
    for name in ("model", "pool", "hidden", "image_size", "params", "flops"):
        assert student[name] == baseline[name]


@pytest.fixture(scope="module")
def repeated(job: Job, finished: Path) -> tuple[Path, Finished]:
    """Run the same command on a copy of the finished workdir."""
    workdir = job.root / "repeated"
    shutil.copytree(finished, workdir)
    return workdir, job.run(workdir)


def test_same_command_again_runs_no_stage_again(
    finished: Path, repeated: tuple[Path, Finished]
):
    workdir, done = repeated
    assert done.returncode == 0, done.stderr
    for name in MODELS:
        assert f"{name}: finished before" in done.stderr
    assert "train/loss" not in done.stderr
    for path in (
        *(f"{name}/model.json" for name in MODELS),
        *(f"predictions/{m}_{s}.csv" for m in MODELS for s in SPLITS),
        "config.json",
    ):
        # copytree keeps the time of change.
        assert (workdir / path).stat().st_mtime == (finished / path).stat().st_mtime


def test_same_command_again_reports_the_same(
    metrics: dict, repeated: tuple[Path, Finished]
):
    workdir, done = repeated
    assert read_json(workdir / "report" / "metrics.json") == metrics
    for line in ("MADE-UP LESIONS", "This is not a diagnosis.", f"Report: {workdir}"):
        assert line in done.stdout


def test_other_configuration_on_the_same_workdir_is_refused(job: Job, finished: Path):
    before = (finished / "config.json").read_bytes()
    line = job.run(
        finished, "--config.student.epochs=3", "--config.seed=7"
    ).error_line()
    assert "student.epochs: 2 -> 3" in line
    assert "seed: 0 -> 7" in line
    assert "choose another --workdir" in line
    assert (finished / "config.json").read_bytes() == before


def test_teacher_of_another_run_gives_the_same_student(job: Job, finished: Path):
    # A fresh workdir, the same seeds and the same teacher: not one bit may differ.
    workdir = job.root / "taught"
    done = job.run(
        workdir, f"--config.teacher.checkpoint={finished}", "--config.baseline=False"
    )
    assert done.returncode == 0, done.stderr
    assert not (workdir / "teacher").exists()
    assert (
        read_json(workdir / "student" / "model.json")["fingerprint"]
        == read_json(finished / "student" / "model.json")["fingerprint"]
    )
    for name in ("teacher", "student"):
        for split in SPLITS:
            path = f"predictions/{name}_{split}.csv"
            assert (workdir / path).read_bytes() == (finished / path).read_bytes()


def load_teacher(job: Job, workdir: Path, *, split_seed: int, checkpoint: Path):
    config = job.config()
    # The folder of made-up lesions, read as the user's own.
    config.data.name = "csv"
    config.data.split_seed = split_seed
    config.teacher.checkpoint = str(checkpoint)
    records, images = load_images(config, workdir)
    context = Context(config, workdir, records, images, parallel.make_mesh())
    return stages.obtain_all(make_plan(config)[:1], context)["teacher"]


@pytest.mark.parametrize("folder", [".", "teacher"])
def test_teacher_is_taken_from_a_workdir_or_its_folder(
    job: Job, finished: Path, tmp_path: Path, folder: str
):
    teacher = load_teacher(job, tmp_path, split_seed=0, checkpoint=finished / folder)
    wanted = read_json(finished / "teacher" / "model.json")["fingerprint"]
    assert fingerprint(teacher.variables) == wanted


def test_teacher_that_has_seen_the_test_lesions_is_refused(
    job: Job, finished: Path, tmp_path: Path
):
    with pytest.raises(
        UserError, match="was trained or selected on .*data.splits_file="
    ):
        load_teacher(job, tmp_path, split_seed=1, checkpoint=finished)


def test_teacher_whose_split_is_unknown_is_refused(
    job: Job, finished: Path, tmp_path: Path
):
    shutil.copytree(finished / "teacher", tmp_path / "moved" / "teacher")
    with pytest.raises(UserError, match="splits.csv is missing"):
        load_teacher(job, tmp_path / "run", split_seed=0, checkpoint=tmp_path / "moved")


def test_a_teacher_of_other_classes_is_refused(
    job: Job, finished: Path, tmp_path: Path
):
    """Before the other teacher trains for hours."""
    line = job.run(
        tmp_path / "run",
        "--config.labels=diagnoses",
        f"--config.distill.extra_teachers={(str(finished / 'student'),)!r}",
    ).error_line()
    assert "config.distill.extra_teachers" in line
    assert "tells apart melanoma, and this run bkl, df, mel, nv" in line
    assert not (tmp_path / "run" / "teacher").exists()


def test_two_finished_models_teach_a_third_from_kept_logits(job: Job, finished: Path):
    workdir = job.root / "two_teachers"
    done = job.run(
        workdir,
        f"--config.teacher.checkpoint={finished}",
        f"--config.distill.extra_teachers={(str(finished / 'baseline'),)!r}",
        "--config.distill.teacher_weights=(0.25, 0.75)",
        "--config.student.num_views=1",
        "--config.baseline=False",
    )
    assert done.returncode == 0, done.stderr
    found = read_json(workdir / "report" / "metrics.json")
    assert list(found["models"]) == ["teacher", "teacher_2", "student"]
    assert "student_minus_teacher_2" in found["comparisons"]
    for split in SPLITS:
        ours, theirs = (
            folder / "predictions" / f"{name}_{split}.csv"
            for folder, name in ((workdir, "teacher_2"), (finished, "baseline"))
        )
        assert ours.read_bytes() == theirs.read_bytes()
    assert done.stderr.count("logits of view 0") == 2


@pytest.fixture(scope="module")
def several(job: Job) -> Path:
    """Run the job on four diagnoses by all kinds of terms, two views of an image."""
    workdir = job.root / "several"
    done = job.run(
        workdir,
        "--config.labels=diagnoses",
        "--config.student.class_weights=balanced_batch",
        "--config.student.sampler=balanced",
        "--config.student.select_by=macro_f1",
        "--config.student.views_per_image=2",
        "--config.distill.weights.hint=1.0",
        "--config.distill.weights.distance=25.0",
        "--config.distill.weights.angle=50.0",
        "--config.baseline=False",
    )
    assert done.returncode == 0, done.stderr
    return workdir


def test_a_job_of_several_diagnoses_has_all_of_them_everywhere(several: Path):
    model = read_json(several / "student" / "model.json")
    assert model["classes"] == ["bkl", "df", "mel", "nv"]
    assert model["melanoma"] == 2
    epoch = model["history"][-1]
    for term in ("hard", "soft", "hint", "distance", "angle"):
        assert 0 < epoch[f"train/{term}_gradient_share"] < 1
    assert {"val/macro_f1", "val/accuracy", "val/melanoma_recall"} <= epoch.keys()
    best = max(model["history"], key=lambda row: row["val/macro_f1"])
    assert model["best_step"] in [
        row["step"]
        for row in model["history"]
        if row["val/macro_f1"] == best["val/macro_f1"]
    ]
    # 28 training images, 8 of them in a batch of 16 views.
    splits = [row["split"] for row in read_table(several / "splits.csv")]
    assert model["history"][0]["step"] == splits.count("train") // 8
    for row in read_table(several / "predictions" / "student_test.csv"):
        scores = {name: float(row[f"p_{name}"]) for name in model["classes"]}
        assert sum(scores.values()) == pytest.approx(1)
        assert float(row["score"]) == scores["mel"]
        assert int(row["label"]) == (row["dx"] == "mel")
    test = read_json(several / "report" / "metrics.json")["models"]["student"]["test"]
    assert test["multiclass"]["classes"] == model["classes"]
    assert 'id="classes"' in (several / "report" / "report.html").read_text()


def test_an_auxiliary_module_is_in_no_model(several: Path):
    shapes = [
        read_json(several / name / "model.json")["params"]
        for name in ("teacher", "student")
    ]
    # Both are MobileNetV3-Small; the student was trained with a regressor.
    assert shapes[0] == shapes[1]


def test_predict_gives_the_scores_of_the_run(job: Job, finished: Path, metrics: dict):
    output = job.root / "scores.csv"
    done = job.run_module(
        "mela_jax.predict",
        f"--model={finished}",
        f"--images={job.data}",
        f"--output={output}",
    )
    assert done.returncode == 0, done.stderr
    rows = read_table(output)
    assert len(rows) == len(read_table(finished / "splits.csv"))
    threshold = metrics["models"]["student"]["val"]["operating_point"]["threshold"]
    for row in rows:
        assert float(row["threshold"]) == threshold
        flagged = float(row["score"]) >= threshold
        assert row["decision"] == ("flagged" if flagged else "not_flagged")
    scores = {Path(row["image"]).name: float(row["score"]) for row in rows}
    for split in SPLITS:
        for row in read_table(finished / "predictions" / f"student_{split}.csv"):
            found = scores[row["image_id"]]
            assert found == pytest.approx(float(row["score"]), abs=1e-6)


def test_folds_test_every_image_once(job: Job, finished: Path):
    config = job.config()
    records = load_records(
        name="phantom", directory=job.data, download=False, phantom_lesions=40, seed=0
    )
    tested: list[str] = []
    for fold in range(config.data.num_folds):
        config.data.fold = fold
        mela_config.validate(config)
        splits = split_records(config, records)
        assert set(splits.values()) == {"train", "val", "test"}
        tested += [image for image, split in splits.items() if split == "test"]
    assert sorted(tested) == sorted(r.image_id for r in records)


def test_quantization_aware_training_chooses_among_its_own_epochs(job: Job):
    workdir = job.root / "qat"
    done = job.run(
        workdir,
        "--config.student.qat=True",
        "--config.student.qat_epochs=1",
        "--config.student.epochs=3",
        "--config.distill.enabled=False",
        "--config.baseline=False",
    )
    assert done.returncode == 0, done.stderr
    model = read_json(workdir / "student" / "model.json")
    steps = [row["step"] for row in model["history"]]
    assert model["qat"] is True
    assert model["best_step"] == steps[-1]


def test_help_names_the_flags(job: Job):
    done = job.run_module("mela_jax.main", "--help")
    assert done.returncode == 0, done.stderr
    for word in ("--config", "--workdir", "student.learning_rate"):
        assert word in done.stdout
