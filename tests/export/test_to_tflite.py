"""The export as its user runs it: what it writes, and what it refuses."""

import hashlib
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import confusion_matrix, roc_auc_score

from export import conversion, to_tflite
from export.exporter import Exporter, earlier_files
from export.finished import open_run
from mela_jax.data.image_io import load_square
from mela_jax.errors import UserError
from mela_jax.evaluation.calibration import read_calibration
from mela_jax.report import export_tables as table
from mela_jax.tflite import PhoneModel, read_metadata
from tests.job import Job
from tests.test_main_job import read_json, read_table

MODES = ("float32", "float16", "weight_int8", "int8")


@pytest.fixture(scope="module")
def files(exported: Path) -> dict:
    return read_json(exported / "metrics.json")["files"]


@pytest.fixture(scope="module")
def answers(job: Job, exported: Path):
    """Score a split with a file, reading images and model without the export."""

    def score(name: str, split: str):
        model = PhoneModel((exported / name).read_bytes(), source=name)
        table = read_table(exported.parent / "splits.csv")
        rows = [row for row in table if row["split"] == split]
        paths = {path.name: path for path in job.data.rglob("*.png")}
        images = np.stack(
            [load_square(paths[r["image_id"]], size=32, crop="center") for r in rows]
        )
        logits, probabilities, _ = model.score(images)
        calibration = read_calibration(exported.parent / "student" / "calibration.json")
        assert calibration.method == "platt"
        scores = calibration.probability(logits)
        # What the file itself answers is this in float32; float16 rounds a and b, too.
        allowed = 1e-3 if "float16" in name else 1e-6
        np.testing.assert_allclose(probabilities, scores, rtol=0, atol=allowed)
        return np.array([int(row["label"]) for row in rows]), logits, scores

    return score


def test_all_modes_are_written_with_what_they_are(exported, files):
    assert list(files) == [f"student_{mode}.tflite" for mode in MODES]
    for name, entry in files.items():
        content = (exported / name).read_bytes()
        assert entry["bytes"] == len(content)
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
        inside = read_metadata(content)
        beside = read_json((exported / name).with_suffix(".json"))
        identity = {k: entry[k] for k in ("file", "bytes", "sha256")}
        assert beside == identity | inside
        point, own = inside["operating_point"], entry["test"]["operating_point"]
        assert point["threshold"] == entry["val"]["operating_point"]["threshold"]
        assert point["test"]["specificity"] == own["specificity"]
        fitted = read_calibration(exported.parent / "student" / "calibration.json")
        for key in ("method", "a", "b"):
            assert inside["calibration"][key] == getattr(fitted, key)
            assert entry["calibration"][key] == getattr(fitted, key)
        assert "fitted to the float model" in inside["calibration"]["means"]
        assert inside["labels"] == ["not_melanoma", "melanoma"]
        assert (inside["classes"], inside["melanoma"]) == (["melanoma"], 0)
        assert inside["input"]["crop"] == "center"
        assert inside["training_data"]["made_up"] is True
        run = read_json(exported.parent / "config.json")
        for key in ("fingerprint", "images", "melanomas"):
            assert inside["training_data"][key] == run["data"][key]
        assert "not a diagnosis" in inside["not_a_diagnosis"].lower()


def test_the_figures_are_those_of_the_file(exported, files, answers):
    for name, entry in files.items():
        labels, _, scores = answers(name, "val")
        threshold = entry["val"]["operating_point"]["threshold"]
        # By trial: the highest score at which enough melanomas are flagged.
        melanomas = scores[labels == 1]
        assert threshold == max(t for t in scores if np.mean(melanomas >= t) >= 0.95)
        for split in ("val", "test"):
            labels, logits, scores = answers(name, split)
            counts = entry[split]["operating_point"]["confusion"]
            (tn, fp), (fn, tp) = confusion_matrix(labels, scores >= threshold)
            assert counts == {"tp": tp, "fp": fp, "tn": tn, "fn": fn}
            point = read_metadata((exported / name).read_bytes())["operating_point"]
            np.testing.assert_array_equal(
                logits >= point["logit_threshold"], scores >= threshold
            )
            auc = roc_auc_score(labels, scores)
            assert entry[split]["roc_auc"]["value"] == pytest.approx(auc)


def test_the_float_file_is_the_network_and_int8_is_near(exported, files, answers):
    report = read_json(exported.parent / "report" / "metrics.json")
    threshold = report["models"]["student"]["val"]["operating_point"]["threshold"]
    for name, entry in files.items():
        for split in ("val", "test"):
            path = exported.parent / "predictions" / f"student_{split}.csv"
            before = np.array([float(row["score"]) for row in read_table(path)])
            labels, logits, scores = answers(name, split)
            against = entry[split]["against_float"]
            worst = np.abs(logits - np.log(before / (1 - before))).max()
            assert against["logit_max"] == pytest.approx(worst, abs=1e-5)
            if name == "student_float32.tflite":
                assert worst <= 1e-4
            assert entry["float_threshold"] == threshold
            own = entry["val"]["operating_point"]["threshold"]
            flips = np.sum((before >= threshold) != (scores >= own))
            assert against["flips"]["all"] == flips
            kept = against["at_float_threshold"]
            # Which is on the score without calibration.
            plain = expit(logits)
            assert kept["sensitivity"] == np.mean(plain[labels == 1] >= threshold)
            assert kept["flips"]["all"] == np.sum(
                (before >= threshold) != (plain >= threshold)
            )


def test_the_reports_show_the_files(exported, files):
    text = (exported / "report.md").read_text()
    assert "8-bit ranges from" in text and "platt, fitted to the float model" in text
    page = (exported.parent / "report" / "report.html").read_text()
    before, shown, after = re.split("<!-- (?:end of )?exported files -->", page)
    assert before.startswith("<!doctype html>")
    assert "MADE-UP LESIONS" in shown and "MADE-UP LESIONS" in text
    assert "not a diagnosis" in text
    for name, entry in files.items():
        assert f"| {name} |" in text
        point = entry["test"]["operating_point"]
        assert f"<tr><td>{name}</td><td>{entry['bytes'] / 1e6:.2f}</td>" in shown
        assert f"<td>{point['threshold']:.4g}</td>" in shown
        assert f"<td>{100 * point['specificity']['value']:.1f} % (" in shown
    # A later export takes the place of this one; an older report has no place.
    assert table.show_in(page, {"files": files}) == page
    assert table.show_in(before + after, {"files": files}) is None


@pytest.fixture(scope="module")
def run(exported):
    return open_run(exported.parent, "baseline", data_dir=None)


def copy(exported: Path, workdir: Path) -> Path:
    ignore = shutil.ignore_patterns("export", "checkpoints", "scalars")
    return shutil.copytree(exported.parent, workdir, ignore=ignore)


def edit(path: Path, change) -> None:
    """Delete a file or folder, or change its text or its JSON object."""
    if change is None:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        return
    text = path.read_text()
    if isinstance(change, dict):
        change = json.dumps(json.loads(text) | change)
    elif isinstance(change, tuple):
        change = text.replace(*change, 1)
    path.write_text(change)


def options_for(workdir: Path, *arguments: str):
    return to_tflite._parse([f"--workdir={workdir}", *arguments])


@pytest.mark.parametrize(
    "change, uncalibrated, why",
    [
        (None, None, "the run has no calibration"),
        ({}, "the fit does not settle", "the fit does not settle"),
        ({"method": "none", "a": 1.0, "b": 0.0}, None, "the run chose no calibration"),
        ({"a": 504296.0, "b": 10856.0}, None, "has a slope of 5.043e+05"),
    ],
)
def test_without_a_calibration_the_probability_is_the_score(
    exported, tmp_path, change, uncalibrated, why
):
    workdir = copy(exported, tmp_path / "older")
    edit(workdir / "student/calibration.json", change)
    report = read_json(workdir / "report/metrics.json")
    report["models"]["student"]["uncalibrated"] = uncalibrated
    edit(workdir / "report/metrics.json", report)
    # Nor did a run of that time know of several classes.
    description = read_json(workdir / "student/model.json")
    del description["classes"], description["melanoma"]
    edit(workdir / "student/model.json", json.dumps(description))
    record = read_json(workdir / "config.json")
    del record["config"]["labels"], record["config"]["melanoma"]
    edit(workdir / "config.json", json.dumps(record))
    older = open_run(workdir, "student", data_dir=None)
    metrics = Exporter(older, options_for(workdir), tmp_path).write(["float32"])
    entry = metrics["files"]["student_float32.tflite"]
    assert entry["calibration"]["method"] == "none"
    assert entry["val"]["operating_point"]["threshold"] == pytest.approx(
        entry["float_threshold"], rel=1e-4
    )
    content = (tmp_path / "student_float32.tflite").read_bytes()
    means = read_metadata(content)["calibration"]["means"]
    assert means.startswith("not calibrated: ") and why in means
    calibrated = (exported / "student_float32.tflite").read_bytes()
    pixels = older.pixels("test")[:4]
    plain, before = (
        PhoneModel(c, source="m").score(pixels) for c in (content, calibrated)
    )
    np.testing.assert_array_equal(plain[0], before[0])
    np.testing.assert_allclose(plain[1], expit(plain[0]), rtol=0, atol=1e-6)
    assert np.abs(plain[1] - before[1]).max() > 1e-3


def test_int8_falls_back_until_it_is_within_the_tolerance(run, tmp_path):
    # No file can gain this much: all four ways are tried, and it is said that the last
    # one is not within the tolerance either.
    options = options_for(tmp_path, "--max_auc_loss=-2", "--input=uint8")
    job = Exporter(run, options, tmp_path)
    metrics = job.write(["int8"])
    entry = metrics["files"]["baseline_int8.tflite"]
    tried = ["int8", "int8_more_float", "weight_int8", "float16"]
    assert [attempt["recipe"] for attempt in entry["attempts"]] == tried
    assert not any(attempt["within_tolerance"] for attempt in entry["attempts"])
    assert entry["recipe"] == "float16" and entry["quantization_calibration"] is None
    assert "NOT within" in (tmp_path / "report.md").read_text()
    content = (tmp_path / "baseline_int8.tflite").read_bytes()
    metadata = read_metadata(content)
    assert metadata["recipe"] == "float16" and metadata["mode"] == "int8"
    assert metadata["input"]["dtype"] == "uint8"

    # A second export keeps the first one's files, unless they were changed.
    metrics = job.write(["float32"])
    assert list(metrics["files"]) == ["baseline_int8.tflite", "baseline_float32.tflite"]
    (tmp_path / "baseline_int8.tflite").write_bytes(content[:-1])
    assert list(earlier_files(tmp_path)) == ["baseline_float32.tflite"]
    (tmp_path / "metrics.json").write_text('{"files"')
    with pytest.raises(UserError, match="metrics.json: is damaged"):
        job.write(["float32"])


@pytest.mark.parametrize("which", ["max_auc_loss", "max_specificity_loss"])
def test_the_tolerance_is_for_each_of_both_figures(run, tmp_path, which):
    options = options_for(tmp_path, "--max_auc_loss=2", "--max_specificity_loss=2")
    job = Exporter(run, options, tmp_path)
    assert [a["recipe"] for a in job._make("int8")[2]["attempts"]] == ["int8"]
    setattr(options, which, -2.0)
    assert len(job._make("int8")[2]["attempts"]) == 4


def test_a_conversion_that_went_wrong_is_not_written(run, tmp_path, monkeypatch):
    original = conversion.convert

    def wrong(network, variables, **options):
        head = variables["params"]["head"]["logits"]
        head = head | {"bias": head["bias"] + 0.01}
        params = variables["params"] | {"head": {"logits": head}}
        return original(network, variables | {"params": params}, **options)

    monkeypatch.setattr(conversion, "convert", wrong)
    with pytest.raises(UserError, match="answers differently from the network"):
        Exporter(run, options_for(tmp_path), tmp_path)
    assert not list(tmp_path.iterdir())


def refusal(capsys, *arguments) -> str:
    assert to_tflite.main([str(argument) for argument in arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    complaints = [line for line in lines if line.startswith("error: ")]
    assert len(complaints) == 1 and "Traceback" not in "".join(lines)
    return complaints[0]


@pytest.mark.parametrize(
    "flag, complaint",
    [
        ("--modes=int4", "int4 .*float32,float16,weight_int8,int8"),
        ("--modes=float32,int9", "int9 is not a mode"),
        ("--modes=", "nothing is not a mode"),
        ("--modes=,", "nothing is not a mode"),
        ("--calibration_images=255", "256 or more"),
        ("--workdir=/no/where", "no folder /no/where"),
    ],
)
def test_wrong_flags_are_refused_before_tensorflow_is_imported(
    tmp_path, capsys, monkeypatch, flag, complaint
):
    monkeypatch.setitem(sys.modules, "export.exporter", None)
    assert re.search(complaint, refusal(capsys, f"--workdir={tmp_path}", flag))


@pytest.mark.parametrize(
    "name, change, complaint",
    [
        ("report/metrics.json", None, "is not finished"),
        ("student", None, "--model=student: .* has none"),
        ("student/model.json", {"image_size": 64}, "image_size 64, .* 32"),
        ("config.json", "{", "config.json: is missing or damaged"),
        ("config.json", {"data": {"fingerprint": "0"}}, "not the .* --data_dir"),
        ("predictions/student_val.csv", (",0,", ",1,"), "contradict each other"),
        ("predictions/student_val.csv", ("\n", "\nx,y,1,0.5\n"), "other images"),
        ("student/calibration.json", {"threshold": 0.5}, "fitted .* threshold 0.5"),
    ],
)
def test_workdirs_that_cannot_be_exported_are_refused(
    exported, tmp_path, capsys, monkeypatch, name, change, complaint
):
    # The devices of this process are chosen already.
    monkeypatch.setattr("mela_jax.parallel.set_up", lambda **_: None)
    workdir = copy(exported, tmp_path / "damaged")
    edit(workdir / name, change)
    assert re.search(complaint, refusal(capsys, f"--workdir={workdir}"))
