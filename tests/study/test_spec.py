"""A study is judged before anything runs."""

import dataclasses
import json
from pathlib import Path

import pytest

from configs import tiny
from mela_jax.errors import UserError
from mela_jax.study.spec import Range, Study, check_study, load_study, run_key

STUDIES = sorted(
    path
    for path in (Path(__file__).parents[2] / "configs" / "studies").glob("*.py")
    if path.name != "__init__.py"
)


def base():
    config = tiny.get_config()
    config.baseline = False
    return config


def grid(**changes) -> Study:
    fields = {
        "base": base(),
        "axes": {"student.pool": ("avg", "max"), "distill.alpha": (0.1, 0.5)},
        "reference": {"student.pool": "avg"},
        **changes,
    }
    return Study(**fields)


def tuning(**changes) -> Study:
    fields = {
        "base": base(),
        "method": "tune",
        "axes": {
            "student.learning_rate": Range(1e-4, 1e-2, log=True),
            "student.loss": ("cross_entropy", "focal"),
        },
        "seeds": (0,),
        **changes,
    }
    return Study(**fields)


def check(study: Study) -> Study:
    return check_study(
        study, name="made_up", base=study.base.copy_and_resolve_references()
    )


def test_a_grid_is_the_full_product_in_the_order_of_its_axes():
    found = check(grid())
    assert list(found.cells) == [
        {"student.pool": "avg", "distill.alpha": 0.1},
        {"student.pool": "avg", "distill.alpha": 0.5},
        {"student.pool": "max", "distill.alpha": 0.1},
        {"student.pool": "max", "distill.alpha": 0.5},
    ]
    assert found.seeds == (0, 1, 2)
    assert found.fold_numbers == (-1,)
    # alpha 0.5 is the base's own value, and what the reference leaves out.
    assert found.reference == {"student.pool": "avg", "distill.alpha": 0.5}
    assert [found.label(cell) for cell in found.cells] == [
        "distill.alpha=0.1",
        "base",
        "student.pool=max,distill.alpha=0.1",
        "student.pool=max",
    ]


def test_a_cell_has_the_value_of_the_base_where_it_leaves_a_field_out():
    cells = (
        {},
        {"student.loss": "focal", "student.focal_gamma": 1},
        {"student.pool": "max"},
    )
    found = check(grid(axes={}, cells=cells, reference={}))
    assert list(found.cells) == [
        {
            "student.loss": "cross_entropy",
            "student.focal_gamma": 2.0,
            "student.pool": "avg",
        },
        {"student.loss": "focal", "student.focal_gamma": 1.0, "student.pool": "avg"},
        {
            "student.loss": "cross_entropy",
            "student.focal_gamma": 2.0,
            "student.pool": "max",
        },
    ]
    assert found.axes == {
        "student.loss": ("cross_entropy", "focal"),
        "student.focal_gamma": (2.0, 1.0),
        "student.pool": ("avg", "max"),
    }


def test_the_configuration_of_a_run_has_its_setting_seed_and_fold():
    found = check(grid(folds=4))
    assert found.fold_numbers == (0, 1, 2, 3)
    config = found.run_config(
        {"student.pool": "max", "distill.alpha": 0.1}, seed=7, fold=2
    )
    assert (config.student.pool, config.distill.alpha) == ("max", 0.1)
    assert (config.seed, config.data.fold, config.data.num_folds) == (7, 2, 4)
    assert (config.teacher.pool, found.base.student.pool) == ("avg", "avg")


@pytest.mark.parametrize("study", [grid(), grid(folds=3), tuning()])
def test_a_study_survives_its_json(study: Study):
    found = check(study)
    again = Study.from_json(json.loads(json.dumps(found.to_json())))
    assert again.to_json() == found.to_json()
    assert again.axes == found.axes
    assert again.base.evaluation.prevalences == found.base.evaluation.prevalences


BAD = [
    (grid(axes={"student.pol": ("avg",)}), "'student.pol': the configuration has no"),
    (
        grid(axes={"student": ("avg",)}),
        "'student': the configuration has no such field",
    ),
    (grid(axes={}, reference={}), "nothing to compare"),
    (grid(axes={"student.pool": ()}), "'student.pool': is empty"),
    (grid(axes={"student.pool": "max"}), "give a tuple of values"),
    (grid(axes={"student.pool": ("avg", "avg")}), "twice"),
    (grid(axes={"distill.alpha": (0, 0.0)}), "twice"),
    (grid(axes={"student.pool": ("avg", "min")}), "config.student.pool='min'"),
    (grid(axes={"student.epochs": (2, "many")}), "student.epochs"),
    (grid(axes={"student.epochs": (2, None)}), "give a number"),
    (grid(axes={"student.epochs": Range(1, 3)}), "takes values, not a Range"),
    (grid(axes={"seed": (0, 1)}), "give Study.seeds"),
    (grid(axes={"data.fold": (0, 1)}), "give Study.folds"),
    (grid(axes={"data.split_seed": (0, 1)}), "same test lesions"),
    (grid(axes={"cpu_devices": (1, 2)}), "one process runs many trials"),
    (grid(cells=({},)), "not both"),
    (grid(axes={}, cells=({}, {"student.pool": "avg"})), "cells 0 and 1 are the same"),
    (grid(seeds=()), "no seeds"),
    (grid(seeds=(1, 1)), "twice"),
    (grid(seeds=(-1,)), "config.seed=-1"),
    (grid(folds=2), "config.data.num_folds=2"),
    (grid(reference={"student.pool": "max", "distill.alpha": 0.9}), "not in the grid"),
    (grid(reference={"student.hidden": 3}), "which is no axis"),
    (grid(method="random"), "method='random'"),
    (grid(pruner="median"), "no pruner"),
    (grid(metric="luck"), "metric='luck'"),
    (tuning(pruner="asha"), "pruner='asha'"),
    (tuning(seeds=(0, 1)), "one seed"),
    (tuning(folds=3), "one seed and one split"),
    (tuning(axes={"student.learning_rate": Range(1e-2, 1e-3)}), "is empty"),
    (
        tuning(axes={"student.learning_rate": Range(0, 1e-3, log=True)}),
        "log from above",
    ),
    (tuning(axes={"student.loss": Range(0, 1)}), "needs a number"),
    (tuning(axes={"student.dropout": Range(0, 1)}), "config.student.dropout=1"),
    (tuning(axes={}, cells=({"student.pool": "max"},)), "axes, not cells"),
]


@pytest.mark.parametrize(("study", "reason"), BAD, ids=[reason for _, reason in BAD])
def test_a_bad_study_is_refused_in_one_line(study: Study, reason: str):
    with pytest.raises(UserError) as refused:
        check(study)
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_command_line_cannot_change_an_axis():
    study = grid()
    config = study.base.copy_and_resolve_references()
    config.student.pool = "max"
    with pytest.raises(UserError, match="config.student.pool: is an axis"):
        check_study(study, name="made_up", base=config)
    config.student.pool = "avg"
    config.student.epochs = 5
    assert check_study(study, name="made_up", base=config).base.student.epochs == 5


def test_different_runs_have_different_folders():
    keys = [
        run_key(cell, seed=seed, fold=fold)
        for cell in ("init=a/b", "init=a_b", "init=" + "x" * 300, "init=" + "x" * 299)
        for seed in (0, 1)
        for fold in (-1, 0, 1)
    ]
    assert len(set(keys)) == len(keys)
    assert all("/" not in key and len(key) <= 255 for key in keys)
    assert (
        run_key("student.pool=max", seed=1, fold=2) == "student.pool=max,seed=1,fold=2"
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = 1", "has no function get_study().*configs/studies/"),
        ("def get_study(): return 3", "returned int"),
        ("import no_such_module", "line 1: ModuleNotFoundError.*no_such_module"),
        ("\ndef get_study(:", "line 2: SyntaxError"),
        ("x = 1\0", "null bytes"),
        (
            "import ast\ndef get_study(): return ast.literal_eval('(1')",
            "study.py, line 2: SyntaxError",
        ),
        (
            "from configs import tiny\n"
            "def get_study():\n    c = tiny.get_config()\n    c.no_field = 1",
            "study.py, line 4: AttributeError.*no_field",
        ),
        (
            "import configs.tiny\n"
            "def get_study():\n    return open(configs.tiny.nothing)",
            "study.py, line 3: AttributeError.*nothing",
        ),
    ],
)
def test_a_file_that_gives_no_study_is_refused(tmp_path, text: str, reason: str):
    path = tmp_path / "study.py"
    path.write_text(text)
    with pytest.raises(UserError, match=reason) as refused:
        load_study(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_studies_of_this_house_are_sound(path: Path):
    study = load_study(path)
    found = check_study(study, name=path.stem, base=study.base)
    assert dataclasses.asdict(found)["name"] == path.stem
    assert (found.method == "tune") == (not found.cells)


def test_the_proposals_ablation_has_every_setting_that_it_names():
    study = load_study(Path("configs/studies/proposal_ablation.py"))
    found = check_study(study, name="ablation", base=study.base)
    losses = {
        (s["distill.enabled"], s["student.loss"], s["student.focal_gamma"])
        for s in found.cells
    }
    for distilled in (False, True):
        assert (distilled, "cross_entropy", 2.0) in losses
        assert {(distilled, "focal", gamma) for gamma in (1.0, 2.0, 4.0)} <= losses
    mixed = {
        (s["distill.temperature"], s["distill.alpha"])
        for s in found.cells
        if s["distill.enabled"] and s["student.loss"] == "cross_entropy"
    }
    assert mixed == {(t, a) for t in (1.0, 2.0) for a in (0.1, 0.5, 0.9)}
    heads = {(s["distill.enabled"], s["student.pool"]) for s in found.cells}
    assert heads == {(d, p) for d in (False, True) for p in ("avg", "max")}
    assert not found.reference["distill.enabled"]
    assert len(found.cells) == 15
