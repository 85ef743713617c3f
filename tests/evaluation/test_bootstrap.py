"""The bootstrap against a plain loop, scikit-learn, and closed forms on large data."""

import logging
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score

from mela_jax.errors import UserError
from mela_jax.evaluation import bootstrap as module
from mela_jax.evaluation.bootstrap import (
    bootstrap,
    curve_figures,
    percentile_interval,
    resample_lesions,
    specificity_at,
)
from mela_jax.evaluation.compare import compare
from mela_jax.evaluation.intervals import auc_difference_p, auc_interval
from mela_jax.evaluation.measure import Settings, selection_metrics
from mela_jax.evaluation.scores import Predictions


def weighted_areas(label: Any, score: Any, weight: Any) -> tuple[Any, Any]:
    label, score, weight = map(np.asarray, (label, score, weight))
    found = curve_figures(label, score, weight)
    return found["roc_auc"], found["pr_auc"]


def split_of(label: Any, lesions: list[str], score: Any) -> Predictions:
    images = [str(k) for k in range(len(lesions))]
    return Predictions(images, lesions, np.asarray(label), np.asarray(score))


def clustered_bootstrap(
    label: Any, lesions: Any, score: Any, *, num_bootstrap: int, seed: int
) -> dict[str, Any]:
    split = split_of(label, lesions, score)
    drawn = bootstrap(split, num_bootstrap=num_bootstrap, seed=seed)
    return {
        **{
            name: percentile_interval(drawn.observed[name], drawn.replicates[name])
            for name in ("roc_auc", "pr_auc")
        },
        "replicates": drawn.num_replicates,
        "dropped": num_bootstrap - drawn.num_replicates,
    }


def test_areas_by_hand() -> None:
    # From the top: melanoma 0.9; tie of both at 0.5; other 0.1. Pairs won: 0.9 beats
    # both others, 0.5 ties one and beats one: (2 + 1.5) / 4. Average precision:
    # 1/2 * 1 + 1/2 * 2/3.
    roc, average = weighted_areas([1, 1, 0, 0], [0.9, 0.5, 0.5, 0.1], np.ones((1, 4)))
    assert roc[0] == pytest.approx(3.5 / 4)
    assert average[0] == pytest.approx(1 / 2 + 1 / 3)


@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.integers(0, 5), st.integers(0, 3)),
        min_size=2,
        max_size=30,
    )
)
def test_areas_agree_with_scikit_learn_under_weights_and_ties(
    rows: list[tuple[int, int, int]],
) -> None:
    label, score, weight = (np.asarray(column) for column in zip(*rows, strict=True))
    roc, average = weighted_areas(label, score / 5, weight[None])
    if len(np.unique(label[weight > 0])) < 2:
        assert np.isnan(roc[0])
        assert np.isnan(average[0])
        return
    # Rows of no weight are taken out for scikit-learn, whose own handling of leading
    # zero weights has changed over its versions.
    held = weight > 0
    arguments = (label[held], score[held] / 5)
    assert roc[0] == pytest.approx(
        roc_auc_score(*arguments, sample_weight=weight[held])
    )
    assert average[0] == pytest.approx(
        average_precision_score(*arguments, sample_weight=weight[held])
    )


def synthetic(
    n: int, *, num_lesions: int, seed: int
) -> tuple[npt.NDArray[np.int64], list[str], npt.NDArray[np.float64]]:
    """Draw labels by lesion and scores with a normal logit."""
    rng = np.random.default_rng(seed)
    lesion = np.arange(n) if num_lesions == n else rng.integers(0, num_lesions, size=n)
    label = (rng.random(num_lesions) < 0.15).astype(np.int64)[lesion]
    logit = 1.7 * label - 2 + rng.normal(size=n)
    return label, [f"L{k}" for k in lesion], 1 / (1 + np.exp(-logit))


def test_bootstrap_agrees_with_delong_where_every_lesion_has_one_image() -> None:
    label, lesions, score = synthetic(3000, num_lesions=3000, seed=1)
    found = clustered_bootstrap(label, lesions, score, num_bootstrap=2000, seed=2)
    assert (found["replicates"], found["dropped"]) == (2000, 0)
    roc = found["roc_auc"]
    assert roc["value"] == pytest.approx(roc_auc_score(label, score))
    assert found["pr_auc"]["value"] == pytest.approx(
        average_precision_score(label, score)
    )
    closed = auc_interval(label, score)
    half = closed["high"] - roc["value"]
    assert roc["value"] - roc["low"] == pytest.approx(half, rel=0.12)
    assert roc["high"] - roc["value"] == pytest.approx(half, rel=0.12)


def paired(
    label: Any,
    lesions: list[str],
    scores: tuple[Any, Any],
    thresholds: tuple[float, float],
    *,
    num_bootstrap: int,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare two scores of the same images."""
    a, b = (split_of(label, lesions, score) for score in scores)
    settings = Settings(num_bootstrap=num_bootstrap, seed=seed)
    found = compare(
        a, b, settings, threshold_a=thresholds[0], threshold_b=thresholds[1]
    )
    assert found.pop("split") == "test"
    return found


def test_paired_difference_agrees_with_delong() -> None:
    label, lesions, score = synthetic(3000, num_lesions=3000, seed=3)
    noise = np.random.default_rng(4).random(3000)
    other = 0.7 * score + 0.3 * noise
    found = paired(
        label, lesions, (score, other), (0.2, 0.25), num_bootstrap=2000, seed=5
    )
    roc = found["roc_auc"]
    assert roc["p"] == auc_difference_p(label, score, other)
    # The standard error that gives this p.
    half = norm.ppf(0.975) * roc["difference"] / norm.isf(roc["p"] / 2)
    assert roc["difference"] == pytest.approx(
        roc_auc_score(label, score) - roc_auc_score(label, other)
    )
    assert (roc["high"] - roc["low"]) / 2 == pytest.approx(half, rel=0.12)
    for name, value in (("specificity", 0), ("sensitivity", 1)):
        held = label == value
        right_a = (score >= 0.2)[held] == value
        right_b = (other >= 0.25)[held] == value
        gain = right_a.astype(float) - right_b
        half = norm.ppf(0.975) * gain.std() / np.sqrt(held.sum())
        figure = found[name]
        assert figure["difference"] == pytest.approx(gain.mean())
        assert (figure["high"] - figure["low"]) / 2 == pytest.approx(half, rel=0.12)


def test_repeated_images_of_a_lesion_widen_the_interval() -> None:
    label, lesions, score = synthetic(400, num_lesions=400, seed=6)
    labels, scores = np.tile(label, 4), np.tile(score, 4)
    once = clustered_bootstrap(label, lesions, score, num_bootstrap=500, seed=0)
    copied = clustered_bootstrap(labels, lesions * 4, scores, num_bootstrap=500, seed=0)
    taken_as_independent = clustered_bootstrap(
        labels, [str(k) for k in range(1600)], scores, num_bootstrap=500, seed=0
    )
    # Copies bring no information: the clustered interval does not shrink.
    assert copied["roc_auc"] == pytest.approx(once["roc_auc"])
    width, naive = (
        found["roc_auc"]["high"] - found["roc_auc"]["low"]
        for found in (copied, taken_as_independent)
    )
    assert naive < 0.65 * width


def test_the_seed_and_nothing_else_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    label, lesions, score = synthetic(200, num_lesions=120, seed=7)
    first = clustered_bootstrap(label, lesions, score, num_bootstrap=300, seed=8)
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", 1000)
    chunked = clustered_bootstrap(label, lesions, score, num_bootstrap=300, seed=8)
    assert chunked == first
    other = clustered_bootstrap(label, lesions, score, num_bootstrap=300, seed=9)
    assert other != first


def test_a_model_does_not_differ_from_itself() -> None:
    label, lesions, score = synthetic(200, num_lesions=150, seed=10)
    found = paired(label, lesions, (score, score), (0.3, 0.3), num_bootstrap=50)
    for figure in found.values():
        assert figure["difference"] == figure["low"] == figure["high"] == 0
        assert (figure["replicates"], figure["p"]) == (50, 1)


def test_swapping_the_models_turns_the_sign() -> None:
    label, lesions, score = synthetic(200, num_lesions=150, seed=11)
    other = score**2
    other[::3] = 0.5
    there = paired(label, lesions, (score, other), (0.3, 0.1), num_bootstrap=200)
    back = paired(label, lesions, (other, score), (0.1, 0.3), num_bootstrap=200)
    for name, figure in there.items():
        assert figure["low"] <= figure["difference"] <= figure["high"]
        assert back[name]["difference"] == pytest.approx(-figure["difference"])
        assert back[name]["low"] == pytest.approx(-figure["high"])


def test_replicates_of_one_class_are_dropped_counted_and_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    label = np.asarray([1] + [0] * 9)
    score = np.asarray([0.5, *np.linspace(0.1, 0.9, 9)])
    lesions = [str(k) for k in range(10)]
    with caplog.at_level(logging.WARNING):
        found = clustered_bootstrap(label, lesions, score, num_bootstrap=400, seed=0)
    assert found["replicates"] + found["dropped"] == 400
    # The one melanoma is missed with probability 0.9 ** 10 = 0.35.
    assert 0.25 < found["dropped"] / 400 < 0.45
    assert f"{found['dropped']} of 400" in caplog.text
    assert np.isfinite([found["roc_auc"]["low"], found["pr_auc"]["high"]]).all()


def test_constant_and_perfect_scores_have_defined_answers() -> None:
    label, lesions = np.asarray([0, 1] * 10), [str(k) for k in range(20)]
    constant = clustered_bootstrap(
        label, lesions, np.full(20, 0.4), num_bootstrap=50, seed=0
    )
    assert constant["roc_auc"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert constant["pr_auc"]["value"] == 0.5
    perfect = clustered_bootstrap(label, lesions, label, num_bootstrap=50, seed=0)
    assert perfect["roc_auc"] == perfect["pr_auc"]
    assert perfect["roc_auc"] == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_mistakes_are_user_errors() -> None:
    with pytest.raises(UserError, match="none of the 2 images is a melanoma"):
        clustered_bootstrap([0, 0], ["a", "b"], [0.1, 0.2], num_bootstrap=5, seed=0)
    with pytest.raises(UserError, match="all 2 images are melanomas"):
        clustered_bootstrap([1, 1], ["a", "b"], [0.1, 0.2], num_bootstrap=5, seed=0)
    with pytest.raises(UserError, match="num_bootstrap is 0"):
        clustered_bootstrap([0, 1], ["a", "b"], [0.1, 0.2], num_bootstrap=0, seed=0)


def test_specificity_at_a_sensitivity_is_that_of_the_chosen_threshold() -> None:
    label, _, score = synthetic(300, num_lesions=300, seed=13)
    score = np.round(score, 2)
    wanted = (0.07, 0.5, 0.8, 0.95, 1.0)
    found = curve_figures(label, score, np.ones((1, 300)), sensitivities=wanted)
    for s in wanted:
        chosen = selection_metrics(label, score, target=s)["specificity_at_target"]
        assert found[specificity_at(s)] == pytest.approx([chosen])


def test_each_replicate_follows_from_its_weights() -> None:
    # By repeating rows instead of weighting them.
    label, _, score = synthetic(120, num_lesions=120, seed=14)
    score = np.round(score, 1)
    weights = np.random.default_rng(0).integers(0, 3, size=(5, 120))
    found = curve_figures(label, score, weights, sensitivities=(0.8, 0.95))
    for row, weight in enumerate(weights):
        rows = np.repeat(np.arange(120), weight)
        alone = curve_figures(
            label[rows],
            score[rows],
            np.ones((1, rows.size)),
            sensitivities=(0.8, 0.95),
        )
        assert set(found) > {"pr_auc", "partial_auc", specificity_at(0.95)}
        for name, figure in found.items():
            assert figure[row] == pytest.approx(alone[name][0])


def test_columns_are_summed_over_the_images_drawn() -> None:
    label, lesions, score = synthetic(120, num_lesions=60, seed=17)
    rng = np.random.default_rng(1)
    columns = {name: rng.random(120) for name in ("first", "second")}
    split = split_of(label, lesions, score)
    drawn = bootstrap(split, num_bootstrap=30, seed=2, columns=columns)
    weights = np.concatenate([*resample_lesions(lesions, num_bootstrap=30, seed=2)])
    for name, column in columns.items():
        assert drawn.observed[name] == pytest.approx(column.sum())
        assert drawn.replicates[name] == pytest.approx(
            [np.repeat(column, weight).sum() for weight in weights]
        )


@given(st.integers(0, 10_000), st.sampled_from([0.5, 0.8, 0.9]))
def test_partial_area_agrees_with_scikit_learn(seed: int, start: float) -> None:
    # With the classes swapped, the region above a sensitivity is that below a false
    # positive rate, which scikit-learn gives standardised (McClish 1989).
    rng = np.random.default_rng(seed)
    label = np.append(rng.integers(0, 2, size=38), [0, 1])
    score = np.round(rng.random(40) * 0.6 + 0.4 * rng.random() * label, 1)
    top = 1 - start
    found = curve_figures(label, score, np.ones((1, 40)), partial_from=start)
    standard = roc_auc_score(1 - label, 1 - score, max_fpr=top)
    least = top**2 / 2
    wanted = least + (top - least) * (2 * standard - 1)
    assert found["partial_auc"][0] == pytest.approx(wanted, abs=1e-9)


def test_p_values_count_lesions_where_images_repeat_them() -> None:
    label, _, score = synthetic(200, num_lesions=200, seed=15)
    other = 0.5 * score + 0.5 * np.random.default_rng(16).random(200)
    lesions = [str(k) for k in range(200)]
    once = paired(label, lesions, (score, other), (0.2, 0.3), num_bootstrap=20)
    scores = np.tile(score, 3), np.tile(other, 3)
    thrice = paired(
        np.tile(label, 3), lesions * 3, scores, (0.2, 0.3), num_bootstrap=20
    )
    assert once["roc_auc"]["test"] == "DeLong"
    assert "clustered" in thrice["roc_auc"]["test"]
    # Copies bring no evidence. (The exact test and the clustered one differ a little.)
    assert thrice["roc_auc"]["p"] == pytest.approx(once["roc_auc"]["p"], rel=0.1)
    assert thrice["specificity"]["p"] == pytest.approx(
        once["specificity"]["p"], abs=0.05
    )
