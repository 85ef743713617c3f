"""The report: every figure recomputed from the CSVs, every word where it belongs."""

import csv
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mela_jax.errors import UserError
from mela_jax.evaluation.plots import Curve, draw_precision_recall, draw_training
from mela_jax.evaluation.report import (
    compare_models,
    evaluate_model,
    selection_metrics,
    write_report,
)
from mela_jax.evaluation.scores import (
    Predictions,
    read_predictions,
    write_predictions,
)

TARGET = 0.9
MODELS = ("teacher", "student", "baseline")
PLOTS = ("precision_recall", "roc", "scores", "threshold", "training")
HISTORY = [
    {
        "epoch": epoch,
        "train/loss": 1 / epoch,
        "val/loss": 1.2 / epoch,
        "val/roc_auc": 1 - 0.4 / epoch,
        "val/pr_auc": 0.7 - 0.4 / epoch,
        "val/specificity_at_target_0.9": 0.6 - 0.4 / epoch,
        "learning_rate": 1e-3,
    }
    for epoch in range(1, 5)
]


def draw_split(split: str, *, strength: float, seed: int) -> Predictions:
    """Draw 160 images of about 120 lesions; labels depend on the split alone."""
    rng = np.random.default_rng([len(split), 0])
    lesion = rng.integers(0, 130, size=160)
    label = (rng.random(130) < 0.2).astype(int)[lesion]
    noise = np.random.default_rng([len(split), seed]).normal(size=160)
    score = 1 / (1 + np.exp(-(strength * label - 1.5 + noise)))
    return Predictions(
        [f"{split}{k}" for k in range(160)],
        [f"{split}-lesion{k}" for k in lesion],
        label,
        np.round(score, 2),  # ties
    )


def evaluated(
    predictions: dict[str, dict[str, Predictions]], num_bootstrap: int = 60
) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "name": "mobilenet_v3_small",
            "params": 940_000,
            "flops": 58_000_000,
            **evaluate_model(
                splits["val"],
                splits["test"],
                target=TARGET,
                num_bootstrap=num_bootstrap,
                seed=0,
            ),
        }
        for name, splits in predictions.items()
    }


def report(
    folder: Path,
    predictions: dict[str, dict[str, Predictions]],
    *,
    made_up: bool = False,
    histories: dict[str, list[dict[str, Any]]] | None = None,
) -> tuple[dict[str, Any], str]:
    """Write a report and read back its metrics and its text."""
    write_report(
        folder,
        models=evaluated(predictions),
        predictions=predictions,
        histories={name: HISTORY for name in predictions}
        if histories is None
        else histories,
        target=TARGET,
        made_up=made_up,
        run={"config": "configs/tiny.py", "odd": "a|b\n<script>"},
        num_bootstrap=60,
        seed=0,
    )
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return metrics, (folder / "report.md").read_text(encoding="utf-8")


def constant(split: Predictions, score: float) -> Predictions:
    return Predictions(
        split.image_id, split.lesion_id, split.label, np.full(split.label.size, score)
    )


@pytest.fixture(scope="module")
def predictions() -> dict[str, dict[str, Predictions]]:
    return {
        name: {
            split: draw_split(split, strength=strength, seed=seed)
            for split in ("val", "test")
        }
        for seed, (name, strength) in enumerate(
            zip(MODELS, (3.0, 2.5, 1.5), strict=True), start=1
        )
    }


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory,
    predictions: dict[str, dict[str, Predictions]],
) -> Path:
    """A report, and beside it the CSVs that its figures must follow from."""
    root = tmp_path_factory.mktemp("run")
    for name, splits in predictions.items():
        for split, held in splits.items():
            write_predictions(root / "predictions" / f"{name}_{split}.csv", held)
    report(root / "report", predictions)
    return root


def read_rows(path: Path) -> list[tuple[int, float]]:
    with open(path, encoding="utf-8") as file:
        return [(int(r["label"]), float(r["score"])) for r in csv.DictReader(file)]


def wilson_by_formula(hits: int, n: int) -> tuple[float, float]:
    z = 1.959963984540054
    centre = (hits + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(hits * (n - hits) / n + z * z / 4)
    return centre - half, centre + half


def average_precision(rows: list[tuple[int, float]]) -> float:
    """Sum over distinct scores of (gain in recall) x precision, by plain loops."""
    positives = sum(label for label, _ in rows)
    total, found_before = 0.0, 0
    for threshold in sorted({score for _, score in rows}, reverse=True):
        flagged = [label for label, score in rows if score >= threshold]
        found = sum(flagged)
        total += (found - found_before) / positives * found / len(flagged)
        found_before = found
    return total


@pytest.mark.parametrize("name", MODELS)
def test_every_figure_follows_from_the_csv(folder: Path, name: str) -> None:
    model = json.loads((folder / "report" / "metrics.json").read_text())["models"][name]
    val = read_rows(folder / "predictions" / f"{name}_val.csv")
    val_positive = [score for label, score in val if label]
    threshold = max(
        t
        for _, t in val
        if sum(s >= t for s in val_positive) / len(val_positive) >= TARGET
    )
    assert (model["params"], model["flops"]) == (940_000, 58_000_000)
    for split in ("val", "test"):
        rows = read_rows(folder / "predictions" / f"{name}_{split}.csv")
        figures = model[split]
        positive = [score for label, score in rows if label]
        negative = [score for label, score in rows if not label]
        assert set(figures) == {
            "n",
            "positives",
            "roc_auc",
            "pr_auc",
            "operating_point",
        }
        assert (figures["n"], figures["positives"]) == (len(rows), len(positive))
        won = sum((p > q) + (p == q) / 2 for p in positive for q in negative)
        assert figures["roc_auc"]["value"] == pytest.approx(
            won / len(positive) / len(negative), abs=1e-12
        )
        assert figures["pr_auc"]["value"] == pytest.approx(
            average_precision(rows), abs=1e-12
        )
        for area in ("roc_auc", "pr_auc"):
            low, value, high = (figures[area][k] for k in ("low", "value", "high"))
            assert 0 <= low < value < high <= 1
        point = figures["operating_point"]
        tp = sum(s >= threshold for s in positive)
        fp = sum(s >= threshold for s in negative)
        fn, tn = len(positive) - tp, len(negative) - fp
        assert point["target_sensitivity"] == TARGET
        assert point["threshold"] == threshold
        assert point["chosen_on"] == "val"
        assert point["confusion"] == {"tp": tp, "fp": fp, "tn": tn, "fn": fn}
        assert point["flags_everyone"] is False
        for rate, hits, n in (
            ("sensitivity", tp, tp + fn),
            ("specificity", tn, tn + fp),
            ("ppv", tp, tp + fp),
            ("npv", tn, tn + fn),
        ):
            low, high = wilson_by_formula(hits, n)
            assert point[rate] == pytest.approx(
                {"value": hits / n, "low": low, "high": high}, abs=1e-9
            )
    assert model["val"]["operating_point"]["sensitivity"]["value"] >= TARGET


def test_the_bootstrap_follows_from_the_csv_by_a_plain_loop(folder: Path) -> None:
    held = read_predictions(folder / "predictions" / "student_test.csv")
    splits = {"val": read_predictions(folder / "predictions" / "student_val.csv")}
    found = evaluate_model(
        splits["val"], held, target=TARGET, num_bootstrap=1500, seed=3
    )["test"]["roc_auc"]
    rng = np.random.default_rng(4)
    names = sorted(set(held.lesion_id))
    images = {n: [i for i, x in enumerate(held.lesion_id) if x == n] for n in names}
    areas = []
    for _ in range(600):
        drawn = rng.choice(names, size=len(names))
        rows = np.concatenate([images[n] for n in drawn])
        label, score = held.label[rows], held.score[rows]
        gap = score[label == 1][:, None] - score[label == 0][None]
        areas.append(np.mean((gap > 0) + (gap == 0) / 2))
    low, high = np.quantile(areas, [0.025, 0.975])
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=0.015)


def test_top_level_keys_and_order(folder: Path) -> None:
    metrics = json.loads((folder / "report" / "metrics.json").read_text())
    assert list(metrics) == [
        "models",
        "comparisons",
        "made_up_data",
        "target_sensitivity",
        "run",
    ]
    assert list(metrics["models"]) == list(MODELS)
    assert metrics["made_up_data"] is False
    assert metrics["target_sensitivity"] == TARGET
    assert metrics["run"]["config"] == "configs/tiny.py"


def test_comparisons_follow_from_the_figures(folder: Path) -> None:
    metrics = json.loads((folder / "report" / "metrics.json").read_text())
    models = metrics["models"]
    for name, other in (
        ("student_minus_baseline", "baseline"),
        ("student_minus_teacher", "teacher"),
    ):
        compared = metrics["comparisons"][name]
        assert compared["split"] == "test"
        a, b = models["student"]["test"], models[other]["test"]
        assert compared["roc_auc"]["difference"] == pytest.approx(
            a["roc_auc"]["value"] - b["roc_auc"]["value"]
        )
        for rate in ("specificity", "sensitivity"):
            gain = (
                a["operating_point"][rate]["value"]
                - b["operating_point"][rate]["value"]
            )
            assert compared[rate]["difference"] == pytest.approx(gain)
            assert compared[rate]["low"] <= gain <= compared[rate]["high"]


def test_the_order_of_images_does_not_matter_to_a_comparison(
    predictions: dict[str, dict[str, Predictions]],
) -> None:
    models = evaluated(predictions, num_bootstrap=10)
    first = compare_models(models, predictions, num_bootstrap=30, seed=0)
    held = predictions["baseline"]["test"]
    back = slice(None, None, -1)
    turned = Predictions(
        held.image_id[back], held.lesion_id[back], held.label[back], held.score[back]
    )
    shuffled = {**predictions, "baseline": {"test": turned}}
    assert compare_models(models, shuffled, num_bootstrap=30, seed=0) == first


def test_models_scored_on_other_images_are_not_compared(
    predictions: dict[str, dict[str, Predictions]],
) -> None:
    models = evaluated(predictions, num_bootstrap=10)
    held = predictions["baseline"]["test"]
    fewer = Predictions(
        held.image_id[1:], held.lesion_id[1:], held.label[1:], held.score[1:]
    )
    relabelled = Predictions(held.image_id, held.lesion_id, 1 - held.label, held.score)
    for wrong, message in ((fewer, "1 image"), (relabelled, "disagree on the label")):
        with pytest.raises(UserError, match=message):
            compare_models(
                models,
                {**predictions, "baseline": {"test": wrong}},
                num_bootstrap=5,
                seed=0,
            )


def test_the_report_leads_with_a_sentence_for_a_patient(folder: Path) -> None:
    text = (folder / "report" / "report.md").read_text(encoding="utf-8")
    metrics = json.loads((folder / "report" / "metrics.json").read_text())
    point = metrics["models"]["student"]["test"]["operating_point"]
    lead = text.split("\n\n")[1]
    flagged = 100 * point["sensitivity"]["value"]
    alarmed = 100 * (1 - point["specificity"]["value"])
    assert f"flags about {flagged:.0f} (" in lead
    assert f"not melanoma it flags about {alarmed:.0f} (" in lead
    assert "It is not a diagnosis" in lead
    assert "MADE-UP" not in text


def test_the_report_shows_what_a_reader_needs(folder: Path) -> None:
    text = (folder / "report" / "report.md").read_text(encoding="utf-8")
    for needed in (
        "Teacher (mobilenet_v3_small)",
        "| ROC-AUC |",
        "| PR-AUC (average precision) |",
        "Specificity at the 90 % sensitivity threshold",
        "PPV at prevalence",
        "| Parameters | 940 k | 940 k | 940 k |",
        "| FLOPs per image | 58 M | 58 M | 58 M |",
        "PPV and NPV belong to this prevalence",
        "is a target, not a promise",
        "a\\|b &lt;script&gt;",
    ):
        assert needed in text, needed
    assert re.search("no difference shown|better|worse", text)
    assert "None" not in text
    assert "nan" not in text


def test_every_plot_is_there_and_shown(folder: Path) -> None:
    text = (folder / "report" / "report.md").read_text(encoding="utf-8")
    shown = re.findall(r"!\[[^]]+\]\((\w+)\.png\)", text)
    assert sorted(shown) == sorted(PLOTS)
    for name in shown:
        with Image.open(folder / "report" / f"{name}.png") as image:
            assert image.format == "PNG"
            pixels = np.asarray(image.convert("L"))
        assert min(pixels.shape) > 300
        assert pixels.std() > 10, "not blank"
    assert not list((folder / "report").glob(".*")), "no temporary file is left"


def test_the_same_run_writes_the_same_bytes(
    folder: Path, tmp_path: Path, predictions: dict[str, dict[str, Predictions]]
) -> None:
    report(tmp_path, predictions)
    for path in sorted((folder / "report").iterdir()):
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

    monkeypatch.setattr("mela_jax.evaluation.plots.png_bytes", note)
    metrics, text = report(tmp_path, predictions, made_up=True)
    assert metrics["made_up_data"] is True
    assert len(titles) == len(PLOTS)
    assert all(title.startswith("MADE-UP LESIONS") for title in titles)
    assert "MADE-UP LESIONS" in text.split("\n\n")[1]
    assert "made-up melanomas" in text


def test_one_model_alone_without_history(
    tmp_path: Path, predictions: dict[str, dict[str, Predictions]]
) -> None:
    metrics, text = report(
        tmp_path, {"baseline": predictions["baseline"]}, histories={}
    )
    assert list(metrics["models"]) == ["baseline"]
    assert metrics["comparisons"] == {}
    assert "Nothing to compare" in text
    assert "There are no training curves" in text
    assert not (tmp_path / "training.png").exists()


def test_constant_scores_are_called_out_loudly(
    tmp_path: Path, predictions: dict[str, dict[str, Predictions]]
) -> None:
    useless = {
        split: constant(held, 0.0) for split, held in predictions["student"].items()
    }
    metrics, text = report(tmp_path, {**predictions, "student": useless})
    point = metrics["models"]["student"]["test"]["operating_point"]
    assert point["flags_everyone"] is True
    assert point["sensitivity"]["value"] == 1
    assert point["specificity"]["value"] == 0
    assert point["npv"] == {"value": None, "low": 0, "high": 1}
    assert "WARNING: the distilled student flags every image of the test set" in text
    assert "| Flags every image | no | **YES** | no |" in text
    assert "it flags all (" in text
    assert "An interval of no width" in text


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
    metrics, text = report(
        tmp_path, {"student": {"val": held["val"], "test": lower}}, histories={}
    )
    point = metrics["models"]["student"]["test"]["operating_point"]
    assert point["sensitivity"]["value"] == 0
    assert point["ppv"]["value"] is None
    assert "below the target of 90 %" in text
    assert "flags none (0 to" in text
    assert "undefined: no such image" in text
    # The threshold is validation's, whatever the test scores are.
    val_point = metrics["models"]["student"]["val"]["operating_point"]
    assert point["threshold"] == val_point["threshold"]


def test_the_test_set_has_no_say_in_the_threshold(
    predictions: dict[str, dict[str, Predictions]],
) -> None:
    val = predictions["student"]["val"]
    thresholds = {
        evaluate_model(
            val, predictions[name]["test"], target=TARGET, num_bootstrap=5, seed=0
        )["test"]["operating_point"]["threshold"]
        for name in MODELS
    }
    assert len(thresholds) == 1


def test_a_leak_or_a_single_class_is_refused(
    predictions: dict[str, dict[str, Predictions]],
) -> None:
    val, test = predictions["student"]["val"], predictions["student"]["test"]

    def evaluate(a: Predictions, b: Predictions) -> None:
        evaluate_model(a, b, target=TARGET, num_bootstrap=5, seed=0)

    with pytest.raises(UserError, match=r"share 160 image\(s\)"):
        evaluate(val, val)
    leak = Predictions(
        test.image_id, [val.lesion_id[0], *test.lesion_id[1:]], test.label, test.score
    )
    with pytest.raises(UserError, match=r"share 1 lesion\(s\)"):
        evaluate(val, leak)
    for label, message in ((0, "is a melanoma"), (1, "all 160 images")):
        only = Predictions(
            test.image_id, test.lesion_id, np.full(160, label), test.score
        )
        with pytest.raises(UserError, match=f"^test: .*{message}"):
            evaluate(val, only)


def test_selection_metrics_by_hand() -> None:
    # Melanomas 0.9, 0.6, 0.4, 0.2; others 0.1, 0.3, 0.7.
    labels = [0, 1, 0, 1, 1, 0, 1]
    scores = [0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.9]
    found = selection_metrics(labels, scores, target=0.75)
    assert found["roc_auc"] == pytest.approx((3 + 2 + 2 + 1) / 12)
    assert found["pr_auc"] == pytest.approx((1 / 1 + 2 / 3 + 3 / 4 + 4 / 6) / 4)
    assert found["specificity_at_target"] == pytest.approx(2 / 3)
    for labels in ([0] * 7, [1] * 7):
        with pytest.raises(UserError, match="^validation: "):
            selection_metrics(labels, scores, target=0.75)


def test_no_model_and_unknown_models_are_refused(
    tmp_path: Path, predictions: dict[str, dict[str, Predictions]]
) -> None:
    with pytest.raises(UserError, match="no model"):
        report(tmp_path, {})
    with pytest.raises(ValueError, match="pupil"):
        report(tmp_path, {"pupil": predictions["student"]})


def test_training_curves_draw_what_is_there() -> None:
    rows: list[dict[str, Any]] = [
        {"epoch": 1, "train/loss": 1.0},
        {"epoch": 2, "train/loss": None, "val/loss": 0.5},
        {"epoch": 3, "train/loss": math.nan, "val/loss": 0.4},
    ]
    figure = draw_training({"Student": rows, "Nothing": []}, title="Training")
    assert figure is not None
    loss, quality = figure.axes
    assert [np.asarray(line.get_xdata()).tolist() for line in loss.get_lines()] == [
        [1],
        [2, 3],
    ]
    assert not quality.get_lines()
    assert draw_training({"Nothing": [{"epoch": 1}]}, title="Training") is None


def test_the_precision_recall_curve_encloses_the_average_precision() -> None:
    held = draw_split("test", strength=2.0, seed=5)
    rows = list(zip(held.label.tolist(), held.score.tolist(), strict=True))
    curve = Curve("Student", "#000000", "-", "o", held, threshold=0.3)
    figure = draw_precision_recall(
        [curve], [{"value": 0.5, "low": 0.4, "high": 0.6}], target=TARGET, title="PR"
    )
    recall, precision = (
        np.asarray(data, float) for data in figure.axes[0].get_lines()[0].get_data()
    )
    area = float(np.sum(-np.diff(recall) * precision[:-1]))
    assert area == pytest.approx(average_precision(rows))
