import itertools
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from mela_jax.errors import UserError
from mela_jax.evaluation.measure import Settings
from mela_jax.evaluation.scores import Predictions, read_predictions
from mela_jax.evaluation.study_results import study_results
from mela_jax.report.study_report import write_study_report
from tests.study.made_up import draw_scores, write_trial

SETTINGS = Settings(target=0.9, num_bootstrap=150)
AXES = {"student.pool": ("avg", "max"), "distill.alpha": (0.1, 0.9)}
CELLS = [
    dict(zip(AXES, levels, strict=True)) for levels in itertools.product(*AXES.values())
]
REFERENCE = CELLS[1]


def write_runs(folder, strengths, *, seeds=3, folds=(-1,), **drawn):
    """Write a complete trial of each cell, seed and fold; cells differ in strength."""
    trials = []
    for i, (cell, strength) in enumerate(zip(CELLS, strengths, strict=False)):
        for seed, fold in itertools.product(range(seeds), folds):
            names = ("val", "test")
            if fold >= 0:
                names = (f"part{(fold + 1) % len(folds)}", f"part{fold}")
            val, test = (
                draw_scores(name, strength=strength, run=(i, seed, fold + 1), **drawn)
                for name in names
            )
            trials.append(
                write_trial(
                    folder, len(trials), cell, seed=seed, fold=fold, val=val, test=test
                )
            )
    return trials


def report(folder, runs, *, settings=SETTINGS, axes=AXES, cells=CELLS, **others):
    options = {"reference": REFERENCE} | others
    results = study_results(
        runs, settings, name="ablation", axes=axes, cells=cells, **options
    )
    path = write_study_report(folder / "report", results)
    assert path == folder / "report" / "report.html"
    texts = [(path.parent / name).read_text() for name in ("report.html", "report.md")]
    return json.loads((path.parent / "results.json").read_text()), *texts


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return a finished study in which max pooling is clearly worse."""
    folder = tmp_path_factory.mktemp("whole")
    trials = write_runs(folder, (2.0, 2.0, 0.5, 0.5), num_lesions=400)
    return report(folder, trials)


@pytest.fixture(scope="module")
def crossed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crossed")
    trials = write_runs(folder, (2.0, 2.0), seeds=2, folds=(0, 1, 2))
    return trials, report(folder, trials, cells=CELLS[:2])


def by_hand(scores, prefix):
    label, score = zip(*scores, strict=True)
    names = [f"{prefix}{i}" for i in range(len(scores))]
    return Predictions(names, names, np.asarray(label), np.asarray(score))


def test_a_row_has_the_figures_worked_out_by_hand(tmp_path):
    # Threshold 0.5 keeps both melanomas of validation. On test the first seed flags
    # 1 of 2 melanomas and 1 of 4 others, the second 2 of 2 and 3 of 4.
    val = by_hand([(1, 0.5), (1, 0.6), (0, 0.1), (0, 0.7)], "val")
    tests = [
        [(1, 0.9), (1, 0.4), (0, 0.1), (0, 0.2), (0, 0.3), (0, 0.6)],
        [(1, 0.9), (1, 0.8), (0, 0.1), (0, 0.5), (0, 0.6), (0, 0.85)],
    ]
    trials = [
        write_trial(
            tmp_path,
            seed,
            CELLS[0],
            seed=seed,
            val=val,
            test=by_hand(scores, "test"),
        )
        for seed, scores in enumerate(tests)
    ]
    results, _, _ = report(tmp_path, trials, cells=CELLS[:1])
    reference, row = results["rows"]  # the reference was not run
    assert reference["figures"] is None
    assert row["thresholds"] == {"0": [0.5], "1": [0.5]}
    figures = {name: figure["value"] for name, figure in row["figures"].items()}
    assert figures["sensitivity"] == pytest.approx((1 / 2 + 1) / 2)
    assert figures["specificity"] == pytest.approx((3 / 4 + 1 / 4) / 2)
    assert figures["ppv"] == pytest.approx((1 / 2 + 2 / 5) / 2)
    assert figures["npv"] == pytest.approx((3 / 4 + 1) / 2)
    # Pairs in the right order: 4 + 3 of 8, and 4 + 3 of 8.
    assert figures["roc_auc"] == pytest.approx(7 / 8)
    assert row["figures"]["specificity"]["by_seed"] == {"0": 0.75, "1": 0.25}
    assert (row["params"], row["flops"], row["seconds"]) == (940_000, 37_600_000, 90.5)


def test_what_is_better_is_called_better_and_what_is_worse_worse(whole):
    results, html, markdown = whole
    verdicts = {
        row["number"]: (row["roc_auc"]["verdict"], row["specificity"]["verdict"])
        for row in results["comparisons"]
    }
    # Row 1 is the reference; the others keep the order of the grid.
    assert [r["setting"] for r in results["rows"]] == [
        REFERENCE,
        *(cell for cell in CELLS if cell != REFERENCE),
    ]
    assert verdicts[2] == ("no difference shown", "no difference shown")
    assert verdicts[3] == verdicts[4] == ("worse", "worse")
    for text in (html, markdown):
        assert "ROC-AUC (primary), against the reference: 0 better, 2 worse" in text
        assert "is not “the same”" in text


def test_a_gain_over_a_weak_reference_is_called_better(tmp_path):
    trials = write_runs(tmp_path, (2.0, 0.5), num_lesions=400)
    results, _, _ = report(tmp_path, trials, cells=CELLS[:2])
    (row,) = results["comparisons"]
    assert row["roc_auc"]["verdict"] == row["specificity"]["verdict"] == "better"
    assert row["roc_auc"]["low"] > 0
    assert not row["trade"]


def test_settings_that_do_not_differ_are_not_called_different(tmp_path):
    called = []
    for study in range(4):
        folder = tmp_path / str(study)
        trials = write_runs(folder, (1.8,) * 4, data=study, seed_sd=0.2)
        results, _, _ = report(folder, trials)
        called += [
            row[name]["verdict"]
            for row in results["comparisons"]
            for name in ("roc_auc", "specificity")
        ]
    assert len(called) == 24
    assert set(called) == {"no difference shown"}


@pytest.mark.parametrize("strengths", [(2.0, 2.0, 0.5, 0.5), (2.0, 2.0, 0.5)])
def test_p_values_are_corrected_for_comparisons_to_come_as_well(tmp_path, strengths):
    trials = write_runs(tmp_path, strengths, num_lesions=300)
    results, _, _ = report(tmp_path, trials)
    p, corrected = (
        [row[n][key] for row in results["comparisons"] for n in row if n in JUDGED]
        for key in ("p", "p_holm")
    )
    assert len(p) == 2 * (len(strengths) - 1)
    padded = [*p, *[1] * (6 - len(p))]
    assert np.allclose(corrected, multipletests(padded, method="holm")[1][: len(p)])
    assert results["comparisons_planned"] == 6


JUDGED = ("roc_auc", "specificity")


def test_an_unfinished_study_says_so_and_shows_what_there_is(tmp_path):
    trials = write_runs(tmp_path, (2.0, 2.0))
    trials[0] = replace(trials[0], state="running")
    trials.append(
        write_trial(
            tmp_path, 99, CELLS[3], seed=0, state="failed", error="the disk | is full"
        )
    )
    results, html, markdown = report(tmp_path, trials)
    assert not results["finished"]
    assert results["planned"] == 12
    assert results["counts"] == {
        "waiting": 5,
        "running": 1,
        "pruned": 0,
        "failed": 1,
        "complete": 5,
    }
    for text in (html, markdown):
        assert "UNFINISHED STUDY: 5 of 12 runs are complete" in text
        assert "1 of 12 runs failed" in text
        assert "0 of 3 runs complete" in text
    assert "the disk | is full" in html
    assert "the disk \\| is full" in markdown
    assert results["rows"][1]["seeds"] == [1, 2]
    assert results["comparisons"][0]["seeds"] == [1, 2]
    # No axis is complete: nothing is averaged over unequal company.
    assert [effect["levels"] for effect in results["main_effects"]][0] == []


def test_one_shared_seed_of_several_makes_no_comparison(tmp_path):
    trials = write_runs(tmp_path, (2.0, 0.1))
    trials[0] = replace(trials[0], state="waiting")
    trials[5] = replace(trials[5], state="waiting")
    results, html, _ = report(tmp_path, trials, cells=CELLS[:2])
    assert results["comparisons"] == []
    assert "Nothing to compare yet" in html


def test_a_study_of_one_seed_says_what_it_does_not_know(tmp_path):
    trials = write_runs(tmp_path, (2.0, 1.0), seeds=1)
    results, html, markdown = report(tmp_path, trials, cells=CELLS[:2])
    assert len(results["comparisons"]) == 1
    for text in (html, markdown):
        assert "another seed may turn" in text
        assert "There is one seed" in text


def test_a_run_tried_again_counts_once_and_its_failure_is_listed(tmp_path):
    trials = write_runs(tmp_path, (2.0, 2.0))
    trials.append(
        write_trial(tmp_path, 50, CELLS[0], seed=0, state="failed", error="killed")
    )
    results, html, _ = report(tmp_path, trials, cells=CELLS[:2])
    assert results["finished"]
    assert results["counts"]["complete"] == results["planned"] == 6
    assert [f["trial"] for f in results["failed"]] == [50]
    assert "killed" in html


def test_main_effects_average_the_same_company_at_every_level(whole):
    results, html, _ = whole
    pool, alpha = results["main_effects"]
    values = {
        json.dumps(row["setting"]): row["figures"]["roc_auc"]["value"]
        for row in results["rows"]
    }
    for effect in (pool, alpha):
        assert effect["combinations"] == 2
        for level in effect["levels"]:
            held = [
                values[json.dumps(cell)]
                for cell in CELLS
                if cell[effect["axis"]] == level["level"]
            ]
            assert level["roc_auc"]["value"] == pytest.approx(np.mean(held))
    assert html.count("data:image/png") == 2


def test_levels_of_an_axis_are_compared_pair_by_pair(whole):
    results, html, markdown = whole
    pool, alpha = results["main_effects"]
    assert (pool["against"], alpha["against"]) == ("avg", 0.9)
    by_seed = {
        json.dumps(row["setting"]): row["figures"]["roc_auc"]["by_seed"]
        for row in results["rows"]
    }
    for effect in (pool, alpha):
        base, other = sorted(
            effect["levels"], key=lambda x: x["difference"] is not None
        )
        assert base["level"] == effect["against"]
        gains = [
            np.mean(
                [
                    by_seed[json.dumps({**cell, effect["axis"]: other["level"]})][seed]
                    - by_seed[json.dumps(cell)][seed]
                    for cell in CELLS
                    if cell[effect["axis"]] == base["level"]
                ]
            )
            for seed in "012"
        ]
        found = other["difference"]["roc_auc"]
        assert found["difference"] == pytest.approx(np.mean(gains))
        assert found["low"] < found["difference"] < found["high"]
    # Max pooling was drawn to be worse, the levels of alpha alike.
    assert pool["levels"][1]["difference"]["roc_auc"]["high"] < 0
    assert alpha["levels"][0]["difference"]["roc_auc"]["high"] > 0
    for text in (html, markdown):
        assert "pool: max instead of avg" in text
        assert "distill.alpha: 0.1 instead of 0.9" in text


def test_levels_that_are_numbers_are_shown_in_their_order(tmp_path):
    results, _, _ = report(
        tmp_path,
        write_runs(tmp_path, (2.0, 2.0, 1.0, 1.0), seeds=2),
        axes={"student.pool": ("max", "avg"), "distill.alpha": (0.9, 0.1)},
    )
    effects = results["main_effects"]
    assert [[x["level"] for x in effect["levels"]] for effect in effects] == [
        ["max", "avg"],
        [0.1, 0.9],
    ]


def test_folds_judge_every_lesion_once_and_both_ways(crossed):
    trials, (results, html, markdown) = crossed
    row = results["rows"][0]
    assert results["folds"] == [0, 1, 2]
    counts = row["confusion"]["0"]
    images = sum(
        read_predictions(t.workdir / "predictions" / "student_test.csv").label.size
        for t in trials
        if t.seed == 0 and t.setting == REFERENCE
    )
    assert sum(counts.values()) == images
    assert len(row["thresholds"]["0"]) == 3
    pooled = results["pooled_thresholds"]
    assert [entry["number"] for entry in pooled] == [1, 2]
    assert set(pooled[0]["figures"]) == {"sensitivity", "specificity", "ppv", "npv"}
    for text in (html, markdown):
        assert "The cross-validated operating point" in text


def test_a_seed_that_lacks_a_fold_is_left_out(crossed, tmp_path):
    trials, _ = crossed
    torn = [
        replace(t, state="failed", error="torn") if t.number == 1 else t for t in trials
    ]
    results, _, _ = report(tmp_path, torn, cells=CELLS[:2])
    assert results["rows"][1]["seeds"] == [1]
    assert results["rows"][1]["runs_complete"] == 5


def test_size_and_latency_have_a_front_where_they_differ(tmp_path):
    trials = []
    for i, (strength, params, time) in enumerate(
        ((2.0, 10**6, 1.0), (2.6, 3 * 10**6, 4.0), (0.5, 2 * 10**6, 2.0))
    ):
        for seed in range(2):
            val, test = (
                draw_scores(s, strength=strength, run=(i, seed))
                for s in ("val", "test")
            )
            trials.append(
                write_trial(
                    tmp_path,
                    len(trials),
                    CELLS[i],
                    seed=seed,
                    val=val,
                    test=test,
                    params=params,
                    milliseconds=time + seed,
                )
            )
    results, html, _ = report(tmp_path, trials, cells=CELLS[:3])
    fronts = results["fronts"]
    # The reference, row 1, is CELLS[1]: the largest and the most specific.
    for cost in ("params", "flops", "latency"):
        assert fronts[cost]["on_front"] == [1, 2]
    assert [p["cost"] for p in fronts["latency"]["points"]] == [4.5, 1.5, 2.5]
    assert "A processor, 1 thread" in html


def test_latency_that_was_not_measured_is_said_to_be_so(whole):
    assert "Latency was not measured" in whole[1]


def test_made_up_lesions_are_shouted(tmp_path):
    val, test = (draw_scores(s, strength=2, run=(0,)) for s in ("val", "test"))
    trial = write_trial(
        tmp_path, 0, CELLS[0], seed=0, val=val, test=test, made_up_data=True
    )
    _, html, markdown = report(tmp_path, [trial], cells=CELLS[:1])
    assert "MADE-UP LESIONS" in html
    assert "MADE-UP LESIONS" in markdown


def test_a_setting_that_flags_everybody_is_named(tmp_path):
    val, test = (draw_scores(s, strength=2, run=(0,)) for s in ("val", "test"))
    flat = [replace(s, score=np.full(s.score.size, 0.5)) for s in (val, test)]
    trial = write_trial(tmp_path, 0, REFERENCE, seed=0, val=flat[0], test=flat[1])
    results, html, _ = report(tmp_path, [trial], cells=[REFERENCE])
    assert results["rows"][0]["figures"]["roc_auc"]["value"] == 0.5
    assert results["rows"][0]["figures"]["npv"]["value"] is None
    assert "Row 1 flags every image" in html


def test_the_pages_stand_alone_and_their_tables_are_whole(whole):
    _, html, markdown = whole
    assert not re.search(r'(src|href)="(?!data:|#)', html)
    assert "<script" not in html
    widths = [
        {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        for block in re.findall(r"(?:^\|.*\n)+", markdown, flags=re.M)
    ]
    assert len(widths) == 4
    assert all(len(each) == 1 for each in widths)


def test_a_row_is_named_by_what_it_changes(whole):
    _, html, markdown = whole
    for name in ("2: distill.alpha 0.1", "4: pool max"):
        assert f"| {name} |" in markdown
        assert f"<td>{name}</td>" in html


def test_a_field_that_does_nothing_in_a_row_is_not_shown_there(tmp_path):
    val, test = (draw_scores(s, strength=2, run=(0,)) for s in ("val", "test"))
    alone, taught = (
        {"distill.enabled": on, "distill.alpha": 0.5, "student.loss": "cross_entropy"}
        for on in (False, True)
    )
    trials = [
        write_trial(tmp_path, i, cell, seed=0, val=val, test=test)
        for i, cell in enumerate((alone, taught))
    ]
    _, _, markdown = report(
        tmp_path,
        trials,
        axes={"distill.enabled": (False, True)},
        reference=alone,
        cells=[alone, taught],
    )
    assert "| 1 (reference) | no | – | cross_entropy |" in markdown
    assert "| 2 | yes | 0.5 | cross_entropy |" in markdown
    assert "Reference: row 1, distill.enabled no, loss cross_entropy." in markdown
    assert "| 2: distill.enabled yes, distill.alpha 0.5 |" in markdown


def test_plots_lie_beside_the_markdown(crossed):
    trials, (_, _, markdown) = crossed
    folder = trials[0].workdir.parent.parent / "report"
    names = re.findall(r"!\[.*\]\((.*\.png)\)", markdown)
    assert names
    for name in names:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_runs_on_other_images_are_refused(tmp_path):
    trials = write_runs(tmp_path, (2.0,), seeds=2)
    trials += write_runs(tmp_path / "other", (2.0,), seeds=1, data=1)
    with pytest.raises(UserError, match="let no axis change the data"):
        report(tmp_path, [trials[0], replace(trials[2], seed=7, number=9)])


def test_a_complete_trial_without_its_files_is_refused(tmp_path):
    trials = write_runs(tmp_path, (2.0,), seeds=1)
    (trials[0].workdir / "student" / "model.json").write_text("{")
    with pytest.raises(UserError, match=r"model\.json: cannot be read"):
        report(tmp_path, trials)
    (trials[0].workdir / "predictions" / "student_val.csv").unlink()
    with pytest.raises(UserError, match=r"student_val\.csv: cannot be read"):
        report(tmp_path, trials)


def test_a_study_without_trials_is_refused(tmp_path):
    with pytest.raises(UserError, match="no trial yet"):
        report(tmp_path, [])
    assert not (tmp_path / "report").exists()
