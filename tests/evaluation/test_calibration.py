"""Calibration against scikit-learn, statsmodels, and worked examples."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss

from mela_jax.errors import UserError
from mela_jax.evaluation.calibration import (
    Calibration,
    adaptive_bins,
    calibrate,
    calibration_figures,
    fit_calibration,
    read_calibration,
    write_calibration,
)
from mela_jax.evaluation.scores import Predictions


def drawn(n: int = 2000, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw scores that are twice too sure of themselves and too high."""
    rng = np.random.default_rng(seed)
    true = rng.normal(-2, 1.5, size=n)
    label = (rng.random(n) < expit(true)).astype(int)
    return label, expit(2 * true + 1)


def split_of(label: Any, score: Any) -> Predictions:
    names = [str(k) for k in range(len(label))]
    return Predictions(names, names, np.asarray(label), np.asarray(score, float))


def test_platt_agrees_with_scikit_learn() -> None:
    label, score = drawn()
    found = fit_calibration(label, score, method="platt", threshold=0.1)
    assert isinstance(found, Calibration)
    # A logistic regression whose decision function is the logit itself.
    base = LogisticRegression()
    base.classes_, base.coef_ = np.array([0, 1]), np.array([[1.0]])
    base.intercept_, base.n_features_in_ = np.array([0.0]), 1
    theirs = CalibratedClassifierCV(FrozenEstimator(base), method="sigmoid")
    theirs.fit(logit(score)[:, None], label)
    wanted = theirs.predict_proba(logit(score)[:, None])[:, 1]
    assert calibrate(found, score) == pytest.approx(wanted, abs=2e-4)
    # The draw was made with slope 1/2 and intercept -1/2.
    assert (found.a, found.b) == pytest.approx((0.5, -0.5), abs=0.1)


def test_temperature_minimises_the_log_loss() -> None:
    label, score = drawn()
    found = fit_calibration(label, score, method="temperature", threshold=0.1)
    assert isinstance(found, Calibration)
    assert found.b == 0
    best = minimize_scalar(
        lambda a: log_loss(label, expit(a * logit(score))), bounds=(0.05, 5)
    )
    # Platt's smoothed targets move it by one part in the number of melanomas.
    assert found.a == pytest.approx(best.x, rel=0.01)


@pytest.mark.parametrize("method", ["platt", "temperature", "none"])
def test_no_decision_changes(method: str) -> None:
    label, score = drawn()
    for threshold in np.quantile(score, [0.02, 0.3, 0.9]):
        found = fit_calibration(label, score, method=method, threshold=threshold)
        assert isinstance(found, Calibration)
        assert found.a > 0
        after = calibrate(found, score) >= found.calibrated_threshold
        assert np.array_equal(after, score >= threshold)


@pytest.mark.parametrize("method", ["platt", "temperature"])
def test_scores_that_allow_no_map_are_left_alone_with_a_reason(method: str) -> None:
    label, score = drawn()
    centre = np.random.default_rng(2).normal(size=label.size)
    for scores, reason in (
        (1 - score, r"do not rise with melanoma \(slope -"),
        (np.full(label.size, 0.3), "all the same"),
        (1e-200 * (1 + label), "all the same"),
        # An untrained model: melanomas a millionth higher, in noise of that size.
        (0.5 + 1e-6 * (label + centre), r"slope would be \d\.?\d*e\+05"),
        (np.where(label == 1, 0.5001, 0.4999), "differ so little"),
    ):
        found = fit_calibration(label, scores, method=method, threshold=0.5)
        assert isinstance(found, str)
        assert re.search(reason, found)
    with pytest.raises(ValueError, match="isotonic"):
        fit_calibration(label, score, method="isotonic", threshold=0.5)


def test_a_useless_model_gives_everybody_nearly_the_prevalence() -> None:
    rng = np.random.default_rng(0)
    label = (rng.random(4000) < 0.1).astype(int)
    score = expit(rng.normal(size=4000) + 0.1 * label)
    found = fit_calibration(label, score, method="platt", threshold=0.5)
    assert isinstance(found, Calibration)
    assert calibrate(found, score) == pytest.approx(label.mean(), abs=0.05)


def test_perfectly_separated_and_saturated_scores_stay_finite() -> None:
    label = np.repeat([0, 1], 20)
    score = np.repeat([0.0, 1.0], 20)
    for method in ("platt", "temperature"):
        found = fit_calibration(label, score, method=method, threshold=1.0)
        assert isinstance(found, Calibration)
        assert np.isfinite([found.a, found.b]).all()
        p = calibrate(found, score)
        assert 0 < p[0] < 0.5 < p[-1] < 1
    figures = calibration_figures(split_of(label, score), score)
    assert figures["slope"]["value"] is None
    assert figures["brier"] == 0
    assert figures["ece"] == 0


def test_ece_and_brier_by_hand() -> None:
    # 15 bins of 2: in each the share of melanomas is 1/2, the mean score s.
    score = np.repeat(np.arange(1, 16) / 20, 2)
    label = np.tile([0, 1], 15)
    figures = calibration_figures(split_of(label, score), score)
    assert len(figures["bins"]) == 15
    assert figures["ece"] == pytest.approx(np.mean(abs(np.arange(1, 16) / 20 - 0.5)))
    assert figures["brier"] == pytest.approx(brier_score_loss(label, score))
    assert figures["brier_of_prevalence"] == 0.25


def test_bins_hold_equal_counts_and_keep_ties_together() -> None:
    rng = np.random.default_rng(0)
    score = rng.random(100)
    of_image = adaptive_bins(score, num_bins=7)
    for number, part in enumerate(np.array_split(np.argsort(score), 7)):
        assert set(of_image[part]) == {number}
    tied = np.round(score, 1)
    of_image = adaptive_bins(tied, num_bins=7)
    for value in set(tied):
        assert len(set(of_image[tied == value])) == 1
    assert set(adaptive_bins(np.full(9, 0.5))) == {0}


@pytest.mark.parametrize("repeats", [1, 3])
def test_intercept_and_slope_agree_with_statsmodels(repeats: int) -> None:
    label, score = drawn(500)
    # scores two digits wide, as a CSV may hold them
    label, score = np.tile(label, repeats), np.tile(np.round(score, 2), repeats)
    score = np.clip(score, 0.01, 0.99)
    groups = np.tile(np.arange(500), repeats)
    split = Predictions(
        [str(k) for k in range(label.size)], [str(g) for g in groups], label, score
    )
    figures = calibration_figures(split, score)
    x = logit(score)
    options: dict[str, Any] = {"disp": False}
    if repeats > 1:
        options |= {"cov_type": "cluster", "cov_kwds": {"groups": groups}}
    slope = sm.Logit(label, sm.add_constant(x)).fit(**options)
    assert figures["slope"]["value"] == pytest.approx(slope.params[1], abs=1e-6)
    low, high = slope.conf_int()[1]
    # Logit and GLM scale a clustered covariance by n - 1 and n - k.
    assert figures["slope"]["low"] == pytest.approx(low, abs=0.01)
    assert figures["slope"]["high"] == pytest.approx(high, abs=0.01)
    intercept = sm.Logit(label, np.ones((label.size, 1)), offset=x).fit(disp=False)
    assert figures["intercept"]["value"] == pytest.approx(intercept.params[0], abs=1e-6)


def test_a_perfectly_calibrated_model_has_slope_1_and_intercept_0() -> None:
    rng = np.random.default_rng(3)
    score = expit(rng.normal(-1, 1.5, size=20_000))
    label = (rng.random(20_000) < score).astype(int)
    figures = calibration_figures(split_of(label, score), score)
    for name, ideal in (("slope", 1), ("intercept", 0)):
        assert figures[name]["low"] < ideal < figures[name]["high"]
    assert figures["ece"] < 0.015


def test_the_file_reads_back_and_gives_probabilities(tmp_path: Path) -> None:
    label, score = drawn()
    found = fit_calibration(label, score, method="platt", threshold=0.1)
    assert isinstance(found, Calibration)
    path = tmp_path / "calibration.json"
    write_calibration(path, found, about={"fitted_on": "val", "images": 2000})
    assert read_calibration(path) == found
    content = json.loads(path.read_text())
    assert content["formula"].startswith("P(melanoma) = 1 / (1 + exp(-(a * logit + b)")
    x = logit(0.3)
    assert found.probability([x])[0] == pytest.approx(expit(found.a * x + found.b))
    for broken in ("", "[]", '{"a": 1}', json.dumps(content | {"a": -1})):
        path.write_text(broken)
        with pytest.raises(UserError, match="calibration.json"):
            read_calibration(path)
    with pytest.raises(UserError, match="absent.json"):
        read_calibration(tmp_path / "absent.json")
