"""The report: what it shows, in words and pictures, and its command line."""

import base64
import json
import math
import re
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score

from mela_jax.errors import UserError
from mela_jax.evaluation.scores import (
    Predictions,
    write_predictions,
)
from mela_jax.report.__main__ import main
from mela_jax.report.plots import Curve, draw_precision_recall
from mela_jax.report.plots_training import draw_training
from tests.evaluation.models import (
    MODELS,
    TARGET,
    draw_models,
    draw_split,
    evaluated,
)
from tests.report.pages import Page, report

REPOSITORY = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def predictions() -> dict[str, dict[str, Predictions]]:
    return draw_models()


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory,
    predictions: dict[str, dict[str, Predictions]],
) -> Path:
    root = tmp_path_factory.mktemp("report")
    report(root, predictions)
    return root


def metrics_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def test_top_level_keys_and_order(folder: Path) -> None:
    metrics = metrics_of(folder)
    assert list(metrics) == [
        "models",
        "comparisons",
        "made_up_data",
        "target_sensitivity",
        "settings",
        "run",
    ]
    assert list(metrics["models"]) == list(MODELS)
    assert list(metrics["comparisons"]) == [
        "student_minus_baseline",
        "student_minus_teacher",
    ]
    assert metrics["settings"]["num_bootstrap"] == 100
    assert metrics["run"]["config"] == "configs/tiny.py"


def test_the_report_leads_with_a_sentence_for_a_patient(folder: Path) -> None:
    page = Page(folder / "report.html")
    point = metrics_of(folder)["models"]["student"]["test"]["operating_point"]
    flagged = 100 * point["sensitivity"]["value"]
    alarmed = 100 * (1 - point["specificity"]["value"])
    lead = page.text[: page.text.index("It is not a diagnosis")]
    assert f"flags about {flagged:.0f} (" in lead
    assert f"not melanoma it flags about {alarmed:.0f} (" in lead
    assert "MADE-UP" not in page.text


def test_the_report_shows_what_a_reader_needs(folder: Path) -> None:
    text = Page(folder / "report.html").text
    for needed in (
        "Teacher (mobilenet_v3_small)",
        "ROC-AUC (DeLong, by image)",
        "PR-AUC (average precision)",
        "What it means for 1,000 people like this",
        "too few to promise 90 % sensitivity",
        "cannot be given",
        "940 k",
        "Calibration slope",
        "basal cell carcinoma *",
        "histopathology-confirmed only",
        "few",
        "is a target",
        "Not stated",
        "Missing",
        "a|b <script>",
    ):
        assert needed in text, needed
    assert re.search("no difference shown|is better|is worse", text)
    assert "None" not in text
    assert not re.search(r"\bnan\b", text)


def test_the_page_is_whole_and_loads_nothing(folder: Path) -> None:
    page = Page(folder / "report.html")
    assert page.open == []
    assert page.loads == []
    assert sorted(path.name for path in folder.iterdir()) == [
        "metrics.json",
        "report.html",
    ]


def test_every_plot_is_there_and_not_blank(folder: Path) -> None:
    page = Page(folder / "report.html")
    assert page.captions == [
        "ROC curves",
        "Precision and recall",
        "What each threshold would do",
        "Scores by class",
        "Reliability",
        "Decision curve",
        "Sensitivity and specificity by group",
        "Training",
    ]
    for uri in page.pictures:
        kind, content = uri.split(",")
        assert kind == "data:image/png;base64"
        with Image.open(BytesIO(base64.b64decode(content))) as image:
            pixels = np.asarray(image.convert("L"))
        assert min(pixels.shape) > 300
        assert pixels.std() > 10, "not blank"


def test_the_same_run_writes_the_same_bytes(
    folder: Path, tmp_path: Path, predictions: dict[str, dict[str, Predictions]]
) -> None:
    report(tmp_path, predictions)
    for path in sorted(folder.iterdir()):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_made_up_lesions_are_called_so_everywhere(
    tmp_path: Path,
    predictions: dict[str, dict[str, Predictions]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    titles = []

    def note(figure: Any) -> bytes:
        heads = [axes.get_title() for axes in figure.axes]
        titles.append(figure.get_suptitle() or heads[0])
        return b""

    monkeypatch.setattr("mela_jax.report.plots.png_bytes", note)
    metrics, page = report(tmp_path, predictions, made_up=True)
    assert metrics["made_up_data"] is True
    assert len(titles) == 8
    assert all(title.startswith("MADE-UP LESIONS") for title in titles)
    assert "MADE-UP LESIONS." in page.text[:300]
    assert "made-up melanomas" in page.text


def test_one_model_alone_of_which_nothing_is_known(tmp_path: Path) -> None:
    bare = {
        split: Predictions(held.image_id, held.image_id, held.label, held.score)
        for split, held in draw_models()["baseline"].items()
    }
    metrics, page = report(tmp_path, {"baseline": bare}, histories={})
    assert metrics["comparisons"] == {}
    assert "Nothing to compare" in page.text
    assert "Whom the model fails cannot be said" in page.text
    assert "Training" not in page.captions


def test_constant_scores_are_called_out_loudly(
    tmp_path: Path, predictions: dict[str, dict[str, Predictions]]
) -> None:
    useless = {
        split: Predictions(
            held.image_id, held.lesion_id, held.label, np.zeros(held.label.size)
        )
        for split, held in predictions["student"].items()
    }
    metrics, page = report(tmp_path, {**predictions, "student": useless})
    model = metrics["models"]["student"]
    point = model["test"]["operating_point"]
    assert point["flags_everyone"] is True
    assert point["sensitivity"]["value"] == 1
    assert point["specificity"]["value"] == 0
    assert point["npv"] == {"value": None, "low": 0, "high": 1}
    assert model["calibration"] is None
    assert "flags every image of the test set" in page.text
    assert "it flags all (" in page.text
    assert "An interval of no width" in page.text
    assert "the scores of validation are all the same" in page.text


def test_a_missed_target_is_said_in_words(
    tmp_path: Path, predictions: dict[str, dict[str, Predictions]]
) -> None:
    held = predictions["student"]
    lower = Predictions(
        held["test"].image_id,
        held["test"].lesion_id,
        held["test"].label,
        held["test"].score / 10,
    )
    metrics, page = report(
        tmp_path, {"student": {"val": held["val"], "test": lower}}, histories={}
    )
    point = metrics["models"]["student"]["test"]["operating_point"]
    assert point["sensitivity"]["value"] == 0
    assert point["ppv"]["value"] is None
    assert "below the target of 90 %" in page.text
    assert "flags none (0 to" in page.text
    assert "undefined: no such image" in page.text


def test_errors_are_shown_where_their_images_are(
    tmp_path: Path, predictions: dict[str, dict[str, Predictions]]
) -> None:
    metrics = metrics_of_student(tmp_path, predictions)
    missed = metrics["models"]["student"]["test"]["missed"]
    picture = tmp_path / "lesion.jpg"
    Image.new("RGB", (300, 200), (200, 120, 90)).save(picture)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    files = {row["image_id"]: picture for row in missed[1:]}
    files[missed[0]["image_id"]] = broken
    _, page = report(
        tmp_path / "shown", {"student": predictions["student"]}, images=files
    )
    shown = [p for p in page.pictures if p.startswith("data:image/jpeg")]
    assert len(shown) == len(missed) - 1
    assert "no image" in page.text
    for row in missed:
        assert row["image_id"] in page.text


def metrics_of_student(
    folder: Path, predictions: dict[str, dict[str, Predictions]]
) -> dict[str, Any]:
    return report(folder / "first", {"student": predictions["student"]})[0]


def test_what_is_told_of_the_study_fills_card_and_checklist(
    tmp_path: Path, predictions: dict[str, dict[str, Predictions]]
) -> None:
    told = {"intended_use": "A second look <b>only</b>.", "title": "Mole model"}
    _, page = report(tmp_path, {"student": predictions["student"]}, about=told)
    assert page.text.count("A second look <b>only</b>.") == 2
    assert page.text.startswith("Mole model")


def test_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model"):
        report(tmp_path, {})


@pytest.fixture
def csvs(tmp_path: Path, predictions: dict[str, dict[str, Predictions]]) -> list[str]:
    """Return the words of a command line, whose CSVs are there."""
    for split, held in predictions["student"].items():
        write_predictions(tmp_path / f"{split}.csv", held)
    return [
        f"--val={tmp_path / 'val.csv'}",
        f"--test={tmp_path / 'test.csv'}",
        f"--output={tmp_path / 'out'}",
        "--bootstrap=100",
        f"--target={TARGET}",
    ]


def test_the_command_line_needs_neither_jax_nor_tensorflow(
    csvs: list[str], tmp_path: Path, predictions: dict[str, dict[str, Predictions]]
) -> None:
    # Names that were imported, and the report, in a process of its own.
    code = (
        "import sys; from mela_jax.report.__main__ import main\n"
        "status = main(sys.argv[1:])\n"
        "heavy = {'jax', 'flax', 'tensorflow', 'keras', 'orbax'} & set(sys.modules)\n"
        "print(sorted(heavy)); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *csvs],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    found = metrics_of(tmp_path / "out")["models"]["model"]
    wanted = evaluated({"student": predictions["student"]})["student"]
    for key in ("test", "val", "calibration", "guarantee"):
        assert found[key] == json.loads(json.dumps(wanted[key]))


def test_the_command_line_compares_two_models(
    csvs: list[str], tmp_path: Path, predictions: dict[str, dict[str, Predictions]]
) -> None:
    for split, held in predictions["teacher"].items():
        write_predictions(tmp_path / f"other_{split}.csv", held)
    others = [f"--other-{s}={tmp_path / f'other_{s}.csv'}" for s in ("val", "test")]
    assert main([*csvs, *others]) == 0
    assert list(metrics_of(tmp_path / "out")["comparisons"]) == ["model_minus_other"]
    assert main([*csvs, others[0]]) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--policy=guaranteed", "--target=0.99"], "too few to guarantee"),
        (["--target=2"], "--target: '2' is not a number between 0 and 1"),
        (["--prevalences=0.1,x"], "--prevalences=0.1,x"),
        (["--bootstrap=1"], "'1' is not a whole number from 100 up"),
        (["--seed=-1"], "--seed: '-1' is not"),
        (["--prevalences=0"], "prevalence 0"),
        (["--metadata=absent.csv"], "absent.csv"),
        (["--images=absent"], "no such folder"),
        (["--about=absent.json"], "--about=absent.json"),
        (["--val=absent.csv"], "absent.csv: cannot be read"),
    ],
)
def test_mistakes_get_one_line(
    csvs: list[str],
    words: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*csvs, *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert not (tmp_path / "out").exists()


def test_training_curves_draw_what_is_there() -> None:
    rows: list[dict[str, Any]] = [
        {"epoch": 1, "train/loss": 1.0},
        {"epoch": 2, "train/loss": None, "val/loss": 0.5},
        {"epoch": 3, "train/loss": math.nan, "val/loss": 0.4},
    ]
    figure = draw_training({"Student": rows, "Nothing": []}, title="Training")
    assert figure is not None
    # Losses of different kinds never share an axis.
    objective, loss, quality = figure.axes
    for axes, epochs, name in (
        (objective, [1], "training objective"),
        (loss, [2, 3], "validation cross-entropy"),
    ):
        (line,) = axes.get_lines()
        assert np.asarray(line.get_xdata()).tolist() == epochs
        assert axes.get_title() == f"Student: {name}"
    assert not quality.get_lines()
    assert draw_training({"Nothing": [{"epoch": 1}]}, title="Training") is None


def test_the_precision_recall_curve_encloses_the_average_precision() -> None:
    held = draw_split("test", strength=2.0, seed=5)
    curve = Curve("Student", "#000000", "-", "o", held, threshold=0.3)
    figure = draw_precision_recall(
        [curve], [{"value": 0.5, "low": 0.4, "high": 0.6}], target=TARGET, title="PR"
    )
    recall, precision = (
        np.asarray(data, float) for data in figure.axes[0].get_lines()[0].get_data()
    )
    area = float(np.sum(-np.diff(recall) * precision[:-1]))
    assert area == pytest.approx(average_precision_score(held.label, held.score))
