"""Every figure recomputed from the CSVs by plain loops; every refusal."""

import csv
import dataclasses
import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mela_jax.errors import UserError
from mela_jax.evaluation.compare import compare
from mela_jax.evaluation.measure import (
    SENSITIVITIES,
    Settings,
    evaluate_model,
    selection_metrics,
)
from mela_jax.evaluation.scores import (
    Predictions,
    read_predictions,
    write_predictions,
)
from tests.evaluation.models import (
    MODELS,
    SETTINGS,
    TARGET,
    draw_models,
    draw_split,
    evaluated,
)


@pytest.fixture(scope="module")
def predictions() -> dict[str, dict[str, Predictions]]:
    return draw_models()


@pytest.fixture(scope="module")
def models(
    predictions: dict[str, dict[str, Predictions]],
) -> dict[str, dict[str, Any]]:
    return evaluated(predictions)


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory,
    predictions: dict[str, dict[str, Predictions]],
) -> Path:
    """The CSVs that the figures must follow from."""
    root = tmp_path_factory.mktemp("predictions")
    for name, splits in predictions.items():
        for split, held in splits.items():
            write_predictions(root / f"{name}_{split}.csv", held)
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
def test_every_figure_follows_from_the_csv(
    folder: Path, models: dict[str, dict[str, Any]], name: str
) -> None:
    model = models[name]
    val = read_rows(folder / f"{name}_val.csv")
    val_positive = [score for label, score in val if label]
    threshold = max(
        t
        for _, t in val
        if sum(s >= t for s in val_positive) / len(val_positive) >= TARGET
    )
    assert (model["params"], model["flops"]) == (940_000, 58_000_000)
    for split in ("val", "test"):
        rows = read_rows(folder / f"{name}_{split}.csv")
        figures = model[split]
        positive = [score for label, score in rows if label]
        negative = [score for label, score in rows if not label]
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
    held = read_predictions(folder / "student_test.csv")
    splits = {"val": read_predictions(folder / "student_val.csv")}
    found = evaluate_model(
        splits["val"], held, Settings(target=TARGET, num_bootstrap=1500, seed=3)
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


def test_everything_is_json(models: dict[str, dict[str, Any]]) -> None:
    assert json.loads(json.dumps(models, allow_nan=False)) == json.loads(
        json.dumps(models)
    )


@pytest.mark.parametrize("other", ["baseline", "teacher"])
def test_comparisons_follow_from_the_figures(
    predictions: dict[str, dict[str, Predictions]],
    models: dict[str, dict[str, Any]],
    other: str,
) -> None:
    compared = compared_with(predictions, models, other)
    assert compared["split"] == "test"
    a, b = models["student"]["test"], models[other]["test"]
    assert compared["roc_auc"]["difference"] == pytest.approx(
        a["roc_auc"]["value"] - b["roc_auc"]["value"]
    )
    for rate in ("specificity", "sensitivity"):
        gain = a["operating_point"][rate]["value"] - b["operating_point"][rate]["value"]
        assert compared[rate]["difference"] == pytest.approx(gain)
        assert compared[rate]["low"] <= gain <= compared[rate]["high"]
    for name in ("roc_auc", "specificity", "sensitivity"):
        figure = compared[name]
        apart = figure["low"] > 0 or figure["high"] < 0
        assert figure["shown"] == (apart and figure["p"] < 0.05)


def compared_with(
    predictions: dict[str, dict[str, Predictions]],
    models: dict[str, dict[str, Any]],
    other: str,
    *,
    test: Predictions | None = None,
) -> dict[str, Any]:
    """Compare the student with another model, whose test scores may be replaced."""
    return compare(
        predictions["student"]["test"],
        test or predictions[other]["test"],
        SETTINGS,
        threshold_a=models["student"]["test"]["operating_point"]["threshold"],
        threshold_b=models[other]["test"]["operating_point"]["threshold"],
    )


def test_the_order_of_images_does_not_matter_to_a_comparison(
    predictions: dict[str, dict[str, Predictions]], models: dict[str, dict[str, Any]]
) -> None:
    first = compared_with(predictions, models, "baseline")
    turned = predictions["baseline"]["test"].take(range(159, -1, -1))
    again = compared_with(predictions, models, "baseline", test=turned)
    for name in ("roc_auc", "specificity", "sensitivity"):
        assert again[name] == pytest.approx(first[name])


def test_models_scored_on_other_images_are_not_compared(
    predictions: dict[str, dict[str, Predictions]], models: dict[str, dict[str, Any]]
) -> None:
    held = predictions["baseline"]["test"]
    fewer = held.take(range(1, 160))
    relabelled = Predictions(held.image_id, held.lesion_id, 1 - held.label, held.score)
    for wrong, message in ((fewer, "1 image"), (relabelled, "disagree on the label")):
        with pytest.raises(UserError, match=message):
            compared_with(predictions, models, "baseline", test=wrong)


def test_the_test_set_has_no_say_in_threshold_or_calibration(
    predictions: dict[str, dict[str, Predictions]],
) -> None:
    val = predictions["student"]["val"]
    judged = [
        evaluate_model(val, predictions[name]["test"], SETTINGS) for name in MODELS
    ]
    for name in ("thresholds", "guarantee", "calibration"):
        assert all(found[name] == judged[0][name] for found in judged)


def test_a_leak_or_a_single_class_is_refused(
    predictions: dict[str, dict[str, Predictions]],
) -> None:
    val, test = predictions["student"]["val"], predictions["student"]["test"]

    def evaluate(a: Predictions, b: Predictions) -> None:
        evaluate_model(a, b, SETTINGS)

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


def test_subgroups_follow_from_their_rows(
    predictions: dict[str, dict[str, Predictions]], models: dict[str, dict[str, Any]]
) -> None:
    test, found = predictions["student"]["test"], models["student"]["test"]
    threshold = found["operating_point"]["threshold"]
    by = {row["by"] for row in found["subgroups"]}
    assert by == {"age", "localization", "dx", "dx_type"}
    for column in by:
        rows = [row for row in found["subgroups"] if row["by"] == column]
        assert sum(row["n"] for row in rows) == 160
        assert sum(row["positives"] for row in rows) == found["positives"]
    for row in found["subgroups"]:
        if row["by"] == "age":
            continue
        name = "" if row["group"] == "unknown" else row["group"]
        held = np.asarray([text == name for text in test.details[row["by"]]])
        label, score = test.label[held], test.score[held]
        assert row["n"] == held.sum()
        assert row["few_positives"] == (label.sum() < 10)
        if label.any():
            wanted = np.mean(score[label == 1] >= threshold)
            assert row["sensitivity"]["value"] == pytest.approx(wanted)
        else:
            assert row["sensitivity"]["value"] is None
        if 0 < label.sum() < label.size:
            assert row["roc_auc"]["value"] == pytest.approx(roc_auc_score(label, score))
        else:
            assert row["roc_auc"] is None


def test_errors_are_listed_and_counted(
    predictions: dict[str, dict[str, Predictions]], models: dict[str, dict[str, Any]]
) -> None:
    found = models["student"]["test"]
    counts = found["operating_point"]["confusion"]
    assert len(found["missed"]) == counts["fn"]
    assert len(found["false_alarms"]) == counts["fp"]
    scores = [row["score"] for row in found["false_alarms"]]
    assert scores == sorted(scores, reverse=True)
    rows = found["false_alarms_by_dx"]
    assert {row["dx"] for row in rows} == {"nv", "bcc"}
    assert sum(row["flagged"] for row in rows) == counts["fp"]
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert sum(row["n"] for row in rows) == counts["fp"] + counts["tn"]


def test_the_table_of_specificities_and_the_own_prevalence(
    models: dict[str, dict[str, Any]],
) -> None:
    found = models["student"]["test"]
    table = found["specificity_at_sensitivity"]
    assert [row["sensitivity"] for row in table] == list(SENSITIVITIES)
    values = [row["specificity"]["value"] for row in table]
    assert values == sorted(values, reverse=True)
    own = [row for row in found["prevalence"] if row["own"]]
    assert len(own) == 1
    for name in ("ppv", "npv"):
        assert own[0][name]["value"] == pytest.approx(
            found["operating_point"][name]["value"]
        )


def test_the_guaranteed_policy_is_used_where_asked_for_and_possible(
    predictions: dict[str, dict[str, Predictions]],
) -> None:
    val, test = predictions["student"]["val"], predictions["student"]["test"]
    asked = dataclasses.replace(SETTINGS, policy="guaranteed", target=0.8)
    found = evaluate_model(val, test, asked)
    point = found["test"]["operating_point"]
    assert point["threshold"] == found["guarantee"]["threshold"]
    assert point["threshold"] < found["thresholds"]["empirical"]
    assert set(found["test"]["operating_points"]) == {"empirical", "guaranteed"}
    too_much = dataclasses.replace(SETTINGS, policy="guaranteed", target=0.99)
    with pytest.raises(UserError, match=r"too few to guarantee 99 % .* 230 are needed"):
        evaluate_model(val, test, too_much)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": 0.0}, "target"),
        ({"target": math.nan}, "target"),
        ({"policy": "lucky"}, "threshold policy 'lucky'"),
        ({"delta": 1.0}, "delta"),
        ({"prevalences": (0.1, 1.0)}, "prevalence"),
        ({"calibration": "isotonic"}, "calibration"),
        ({"num_bootstrap": 0}, "num_bootstrap"),
    ],
)
def test_settings_out_of_range_are_refused(change: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Settings(**change)


@pytest.mark.parametrize(
    ("melanomas", "others", "lesions"),
    [(1, 1, "own"), (1, 40, "own"), (40, 1, "own"), (20, 60, "one"), (20, 60, "two")],
)
def test_next_to_nothing_is_known_from_next_to_no_lesions(
    melanomas: int, others: int, lesions: str
) -> None:
    rng = np.random.default_rng(4)
    label = np.r_[np.ones(melanomas, int), np.zeros(others, int)]
    score = np.round(0.2 + 0.3 * label + 0.4 * rng.random(label.size), 2)
    names = [f"t{k}" for k in range(label.size)]
    lesion = {
        "own": names,
        "one": ["same"] * label.size,
        "two": ["a" if y else "b" for y in label],
    }[lesions]
    few = Predictions(names, lesion, label, score)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        test = evaluate_model(draw_split("val", strength=2.0, seed=1), few, SETTINGS)[
            "test"
        ]
    assert test["positive_lesions"] == (melanomas if lesions == "own" else 1)
    assert test["negative_lesions"] == (others if lesions == "own" else 1)
    for name in ("roc_auc", "pr_auc"):
        assert (test[name]["low"], test[name]["high"]) == (0, 1)
    assert test["partial_auc"]["high"] == pytest.approx(0.2)
    band = test["roc_band"][0]["specificity"]
    assert (band["low"], band["high"]) == (0, 1)
    rates = test["operating_point"]["by_lesion"]
    for name, lesions_of in (("sensitivity", 1), ("specificity", 0)):
        n = len({x for x, y in zip(lesion, label, strict=True) if y == lesions_of})
        # As wide as Wilson's for that many lesions, whatever the number of images.
        width = rates[name]["high"] - rates[name]["low"]
        assert width > 0.7 if n == 1 else width > 0.05
    json.dumps(test, allow_nan=False)
