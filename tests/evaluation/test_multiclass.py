"""Figures of all diagnoses, against scikit-learn, the bootstrap and the binary ones."""

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
)
from statsmodels.stats.proportion import proportion_confint

from mela_jax.evaluation.classes import TIED, ClassScores
from mela_jax.evaluation.intervals import auc_interval, macro_auc_interval
from mela_jax.evaluation.measure import Settings, evaluate_model
from mela_jax.evaluation.multiclass import class_selection_metrics
from mela_jax.evaluation.scores import Predictions
from mela_jax.report.__main__ import main
from mela_jax.report.plots_clinical import draw_confusion

NAMES = ("NV", "MEL", "BCC", "DF")
SETTINGS = Settings(target=0.9, num_bootstrap=400)


def draw(
    split: str, *, n: int = 240, images_per_lesion: int = 1, decimals: int = 2
) -> Predictions:
    """Draw softmax scores of four classes, with ties."""
    rng = np.random.default_rng([len(split), 5])
    lesion = np.arange(n) // images_per_lesion
    truth = rng.choice(4, size=n, p=[0.5, 0.25, 0.15, 0.1])[lesion]
    logits = rng.normal(size=(n, 4)) + 1.2 * np.eye(4)[truth]
    score = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    classes = ClassScores(NAMES, truth, np.round(score, decimals))
    return Predictions(
        [f"{split}{k}" for k in range(n)],
        [f"{split}-lesion{k}" for k in lesion],
        (truth == 1).astype(int),
        classes.score[:, 1],
        classes=classes,
    )


def rounded(figures: Any) -> Any:
    """Round all numbers: the order of a sum depends on what is summed beside it."""
    if isinstance(figures, dict):
        return {name: rounded(each) for name, each in figures.items()}
    if isinstance(figures, list):
        return [rounded(each) for each in figures]
    return round(figures, 12) if isinstance(figures, float) else figures


@pytest.fixture(scope="module", params=[1, 3])
def judged(request: pytest.FixtureRequest) -> tuple[Predictions, dict[str, Any]]:
    val, test = (draw(s, images_per_lesion=request.param) for s in ("val", "test"))
    return test, evaluate_model(val, test, SETTINGS)["test"]["multiclass"]


def test_every_figure_agrees_with_scikit_learn(
    judged: tuple[Predictions, dict[str, Any]],
) -> None:
    test, found = judged
    classes = test.classes
    assert classes is not None
    truth, decision = classes.truth, classes.decision
    assert found["tied"] == (decision == TIED).sum() > 0
    with warnings.catch_warnings():
        # Ties are decisions for no class, which scikit-learn warns of.
        warnings.simplefilter("ignore", UserWarning)
        balanced = balanced_accuracy_score(truth, decision)
    assert found["balanced_accuracy"]["value"] == pytest.approx(balanced, abs=1e-12)
    assert found["accuracy"]["value"] == accuracy_score(truth, decision)
    areas = [roc_auc_score(truth == k, classes.score[:, k]) for k in range(4)]
    assert found["macro_roc_auc"]["value"] == pytest.approx(np.mean(areas), abs=1e-12)
    table = confusion_matrix(truth, np.where(decision == TIED, 4, decision))
    np.testing.assert_array_equal(found["confusion"], table[:4])
    for k, row in enumerate(found["per_class"]):
        assert row["name"] == NAMES[k]
        assert row["n"] == (truth == k).sum()
        assert row["few"] == (row["n"] < 10)
        assert row["roc_auc"] == auc_interval(truth == k, classes.score[:, k])
        assert row["roc_auc"]["value"] == pytest.approx(areas[k], abs=1e-12)
        for rate, value in (
            ("sensitivity", recall_score(truth == k, decision == k)),
            ("specificity", recall_score(truth != k, decision != k)),
            ("ppv", precision_score(truth == k, decision == k)),
        ):
            assert row[rate]["value"] == pytest.approx(value, abs=1e-12)
        hits = int((decision[truth == k] == k).sum())
        low, high = proportion_confint(hits, row["n"], method="wilson")
        assert (row["sensitivity"]["low"], row["sensitivity"]["high"]) == pytest.approx(
            (low, high)
        )
    json.dumps(found, allow_nan=False)


def test_the_macro_area_of_probabilities_is_scikit_learns() -> None:
    classes = draw("test", decimals=17).classes
    assert classes is not None
    assert classes.not_summing_to_1 == 0
    expected = roc_auc_score(
        classes.truth, classes.score, multi_class="ovr", average="macro"
    )
    found = macro_auc_interval(classes.truth, classes.score)
    assert found["value"] == pytest.approx(expected, abs=1e-12)


def test_the_bootstrap_of_balanced_accuracy_follows_by_a_plain_loop(
    judged: tuple[Predictions, dict[str, Any]],
) -> None:
    test, found = judged
    classes = test.classes
    assert classes is not None
    rng = np.random.default_rng(7)
    lesions, of_image = np.unique(test.lesion_id, return_inverse=True)
    members = [np.flatnonzero(of_image == k) for k in range(len(lesions))]
    values = []
    for _ in range(1000):
        drawn = rng.integers(len(lesions), size=len(lesions))
        rows = np.concatenate([members[k] for k in drawn])
        truth, decision = classes.truth[rows], classes.decision[rows]
        if len(np.unique(truth)) == 4:
            recalls = [(decision[truth == k] == k).mean() for k in range(4)]
            values.append(np.mean(recalls))
    figure = found["balanced_accuracy"]
    assert figure["method"] == "bootstrap" and figure["replicates"] == 400
    low, high = np.quantile(values, [0.025, 0.975])
    assert (figure["low"], figure["high"]) == pytest.approx((low, high), abs=0.02)


def test_two_complementary_classes_give_delongs_interval() -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 2, size=80)
    score = np.round(0.3 * truth + 0.7 * rng.random(80), 1)
    found = macro_auc_interval(truth, np.column_stack([1 - score, score]))
    assert dict(found) == pytest.approx(dict(auc_interval(truth, score)), abs=1e-12)


@pytest.mark.parametrize("images_per_lesion", [1, 4])
def test_the_interval_of_the_macro_area_agrees_with_resampled_lesions(
    images_per_lesion: int,
) -> None:
    test = draw("test", n=600, images_per_lesion=images_per_lesion)
    classes = test.classes
    assert classes is not None
    found = macro_auc_interval(classes.truth, classes.score, test.lesion_id)
    rng = np.random.default_rng(3)
    lesions = 600 // images_per_lesion
    values = []
    for _ in range(300):
        drawn = rng.integers(lesions, size=lesions)
        rows = (
            drawn[:, None] * images_per_lesion + np.arange(images_per_lesion)
        ).ravel()
        values.append(
            np.mean(
                [
                    roc_auc_score(classes.truth[rows] == k, classes.score[rows, k])
                    for k in range(4)
                ]
            )
        )
    width = found["high"] - found["low"]
    assert width == pytest.approx(2 * 1.96 * np.std(values), rel=0.15)


def test_a_class_that_is_always_right_widens_the_interval() -> None:
    truth = np.repeat(np.arange(4), 20)
    score = np.eye(4)[truth]
    names = [f"t{k}" for k in range(80)]
    classes = ClassScores(NAMES, truth, score)
    test = Predictions(
        names, names, (truth == 1).astype(int), score[:, 1], classes=classes
    )
    found = evaluate_model(draw("val"), test, SETTINGS)["test"]["multiclass"]
    figure = found["balanced_accuracy"]
    assert figure["method"] == "square and add"
    wilson_low = proportion_confint(20, 20, method="wilson")[0]
    # sqrt(4 (1 - low)^2) / 4
    assert figure["low"] == pytest.approx(1 - (1 - wilson_low) / 2)
    assert (figure["value"], figure["high"]) == (1.0, 1.0)


def test_a_class_without_images_is_left_out_and_a_single_lesion_tells_nothing() -> None:
    val, test = draw("val"), draw("test")
    classes = test.classes
    assert classes is not None
    kept = classes.truth != 3

    def without(rows: np.ndarray) -> Predictions:
        kept = ClassScores(NAMES, classes.truth[rows], classes.score[rows])
        return dataclasses.replace(test.take(np.flatnonzero(rows)), classes=kept)

    found = evaluate_model(val, without(kept), SETTINGS)["test"]["multiclass"]
    assert found["absent"] == ["DF"]
    row = found["per_class"][3]
    assert (row["n"], row["roc_auc"], row["sensitivity"]["value"]) == (0, None, None)
    truth, score = classes.truth[kept], classes.score[kept]
    areas = [roc_auc_score(truth == k, score[:, k]) for k in range(3)]
    assert found["macro_roc_auc"]["value"] == pytest.approx(np.mean(areas), abs=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        balanced = balanced_accuracy_score(truth, classes.decision[kept])
    assert found["balanced_accuracy"]["value"] == pytest.approx(balanced, abs=1e-12)
    assert 0 < found["balanced_accuracy"]["low"] < balanced
    assert np.isfinite(
        draw_confusion(found, title="").axes[0].images[0].get_array()
    ).all()
    json.dumps(found, allow_nan=False)
    kept[np.flatnonzero(~kept)[0]] = True
    found = evaluate_model(val, without(kept), SETTINGS)["test"]["multiclass"]
    assert found["absent"] == []
    assert found["per_class"][3]["few"]
    assert found["per_class"][3]["roc_auc"]["low"] == 0.0
    assert (found["macro_roc_auc"]["low"], found["macro_roc_auc"]["high"]) == (0, 1)


def test_selection_metrics_worked_out_by_hand() -> None:
    truth = np.asarray([0, 0, 1, 1, 2])
    decided = [0, 1, 1, 1, 0]
    # Class 3 neither occurs nor is decided; F1 is 2 TP / (2 TP + FP + FN).
    score = 0.1 + 0.5 * np.eye(4)[decided]
    assert class_selection_metrics(truth, score, melanoma=1) == pytest.approx(
        {
            "macro_f1": np.mean([2 / 4, 4 / 5, 0]),
            "accuracy": 3 / 5,
            "melanoma_recall": 1.0,
        }
    )
    assert class_selection_metrics(truth, score, melanoma=2)["melanoma_recall"] == 0
    assert class_selection_metrics(truth, score, melanoma=3)["melanoma_recall"] == 0


def test_selection_metrics_of_one_class_and_of_two_agree() -> None:
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 2, size=50)
    p = rng.random(50)
    p[0] = 0.5  # decided to be melanoma
    one = class_selection_metrics(truth, p[:, None], melanoma=0)
    two = class_selection_metrics(
        truth, np.column_stack([1 - p, np.nextafter(p, 1)]), melanoma=1
    )
    assert one == two
    assert one["macro_f1"] == f1_score(truth, p >= 0.5, average="macro")
    assert one["melanoma_recall"] == recall_score(truth, p >= 0.5)
    assert all(type(value) is float for value in one.values())
    everything = class_selection_metrics(truth, np.ones((50, 1)), melanoma=0)
    assert everything["melanoma_recall"] == 1 > everything["accuracy"]
    for labels, score in ((truth, p), (truth[1:], p[:, None]), ([], np.ones((0, 1)))):
        with pytest.raises(ValueError, match="probabilities"):
            class_selection_metrics(labels, score, melanoma=0)


def test_the_melanoma_figures_are_those_without_the_other_classes() -> None:
    val, test = draw("val"), draw("test")

    def binary(split: Predictions) -> Predictions:
        return Predictions(split.image_id, split.lesion_id, split.label, split.score)

    both = evaluate_model(val, test, SETTINGS)
    alone = evaluate_model(binary(val), binary(test), SETTINGS)
    assert both["test"].pop("multiclass")
    assert alone["test"].pop("multiclass") is None
    assert rounded(both) == rounded(alone)


def test_the_command_line_reports_all_diagnoses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--bootstrap=100", "--target=0.9"]
    for name in ("val", "test"):
        split = draw(name)
        classes = split.classes
        assert classes is not None
        for path, table in (
            (tmp_path / f"{name}.csv", classes.score),
            (tmp_path / f"{name}-truth.csv", np.eye(4)[classes.truth]),
        ):
            rows = zip(split.image_id, table.tolist(), strict=True)
            lines = [",".join([image, *map(repr, row)]) for image, row in rows]
            path.write_text("\n".join([f"image,{','.join(NAMES)}", *lines]))
        flags += [
            f"--{name}={tmp_path / name}.csv",
            f"--{name}-truth={tmp_path / name}-truth.csv",
        ]
    assert main([*flags, f"--output={tmp_path / 'all'}"]) == 0
    assert main([*flags, f"--output={tmp_path / 'one'}", "--melanoma-only"]) == 0
    metrics, one = (
        json.loads((tmp_path / name / "metrics.json").read_text())["models"]["model"]
        for name in ("all", "one")
    )
    page, short = (
        (tmp_path / name / "report.html").read_text() for name in ("all", "one")
    )
    found = metrics["test"].pop("multiclass")
    assert one["test"].pop("multiclass") is None
    # ISIC's truth names the diagnosis too; `--melanoma-only` takes melanoma alone.
    for name in ("subgroups", "false_alarms_by_dx", "missed", "false_alarms"):
        assert metrics["test"].pop(name) != one["test"].pop(name)
    assert rounded(metrics) == rounded(one)
    counts = np.asarray(found["confusion"])[1]
    assert f"it recognises {counts[1]} of {counts.sum()} images of melanoma" in page
    assert "All diagnoses" in page and "Confusion of diagnoses" in page
    assert "All diagnoses" not in short
    lines = (tmp_path / "test-truth.csv").read_text().splitlines()
    (tmp_path / "test-truth.csv").write_text("\n".join([*lines, "extra,1,0,0,0"]))
    capsys.readouterr()
    assert main([*flags, f"--output={tmp_path / 'bad'}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "bad").exists()
