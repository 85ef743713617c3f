import json

import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from mela_jax.evaluation.measure import Settings
from mela_jax.evaluation.study_results import study_results
from mela_jax.report.study_report import write_study_report
from tests.study.made_up import draw_scores, write_trial

SETTINGS = Settings(target=0.9, num_bootstrap=100)
RATES = (0.0001, 0.001, 0.01)


def search(folder, strengths, **others):
    """Write one trial for each strength, report, and return results and pages."""
    trials, drawn = [], []
    for number, strength in enumerate(strengths):
        val, test = (
            draw_scores(split, strength=strength, run=(number,), num_lesions=300)
            for split in ("val", "test")
        )
        drawn.append((val, test))
        setting = {
            "student.learning_rate": RATES[number % 3] * (1 + number),
            "student.loss": ("cross_entropy", "focal")[number % 2],
        }
        trials.append(write_trial(folder, number, setting, seed=0, val=val, test=test))
    return trials, drawn


def report(folder, runs, **others):
    results = study_results(
        runs,
        SETTINGS,
        name="tune",
        axes={"student.learning_rate": (), "student.loss": ("cross_entropy", "focal")},
        reference={},
        cells=[],
        **others,
    )
    path = write_study_report(folder / "report", results)
    results = json.loads((path.parent / "results.json").read_text())
    return results, path.read_text(), path.with_suffix(".md").read_text()


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    trials, drawn = search(folder, (1.0, 3.0, 2.0, 1.5))
    trials.append(
        write_trial(
            folder,
            4,
            {**trials[0].setting, "student.loss": "x"},
            seed=0,
            state="pruned",
        )
    )
    return drawn, report(folder, trials)


def test_the_best_on_validation_is_chosen_and_measured_on_test(tuned):
    drawn, (results, html, _) = tuned
    val, test = drawn[1]
    assert results["chosen"]["number"] == 2
    assert results["tried"][1]["val"]["roc_auc"] == pytest.approx(
        roc_auc_score(val.label, val.score)
    )
    assert results["chosen"]["figures"]["roc_auc"]["value"] == pytest.approx(
        roc_auc_score(test.label, test.score)
    )
    assert "Chosen: number 2, learning_rate 0.002, loss focal." in html


def test_the_test_set_cannot_choose(tmp_path):
    # The one that is best on test is not the one that is best on validation.
    trials, drawn = search(tmp_path, (2.0, 2.0))
    strong, weak = (
        draw_scores("test", strength=s, run=(9,), num_lesions=300) for s in (5.0, 0.0)
    )
    vals = [roc_auc_score(val.label, val.score) for val, _ in drawn]
    best = int(vals[1] > vals[0])
    for i, trial in enumerate(trials):
        write_trial(
            tmp_path,
            trial.number,
            trial.setting,
            seed=0,
            val=drawn[i][0],
            test=weak if i == best else strong,
        )
    results, _, _ = report(tmp_path, trials)
    assert results["chosen"]["number"] == best + 1


def test_test_figures_of_the_rest_are_nowhere(tuned):
    drawn, (results, html, markdown) = tuned
    for row in results["tried"]:
        assert set(row) == {"number", "trials", "setting", "state", "complete", "val"}
    for i, (_, test) in enumerate(drawn):
        shown = f"{roc_auc_score(test.label, test.score):.3f}"
        assert (shown in markdown) == (i == 1), shown
    assert "partly the luckiest" in html


def test_another_figure_may_choose(tmp_path):
    trials, drawn = search(tmp_path, (2.0, 2.0, 2.0, 2.0))
    results, html, _ = report(tmp_path, trials, select_by="pr_auc")
    found = [average_precision_score(v.label, v.score) for v, _ in drawn]
    assert results["chosen"]["number"] == found.index(max(found)) + 1
    assert "chosen by PR-AUC on validation" in html


def test_pruned_trials_are_listed_without_figures(tuned):
    _, (results, html, _) = tuned
    assert results["counts"]["pruned"] == 1
    assert results["tried"][4]["val"] is None
    assert results["finished"]
    assert "pruned" in html


def test_nothing_is_chosen_before_something_is_complete(tmp_path):
    trial = write_trial(
        tmp_path, 0, {"student.loss": "cross_entropy"}, seed=0, state="running"
    )
    results, html, _ = report(tmp_path, [trial])
    assert results["chosen"] is None
    assert "none is chosen" in html
    assert "UNFINISHED" in html
