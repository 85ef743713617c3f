"""What a study is: a base configuration, and what is tried on it.

A file of configs/studies/ returns a `Study` from `get_study()`. `make_plan` judges it,
before anything runs, and spells it out: every setting in full, every seed, every fold.
"""

import dataclasses
import hashlib
import importlib.util
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mela_jax.config import CHOICES, default, flatten, mistake_in_file, validate
from mela_jax.errors import UserError

# The name under which the file of `--study` is imported.
_FILE_MODULE = "study_file"

METHODS = ("grid", "tune")
PRUNERS = ("none", "median", "hyperband")
# Fields that cannot be an axis, and why.
_TEST_LESIONS = "settings are compared on the same test lesions, so it is set in `base`"
_FIXED = {
    "seed": "give Study.seeds",
    "data.fold": "give Study.folds",
    "data.num_folds": "give Study.folds",
    "data.name": _TEST_LESIONS,
    "data.dir": _TEST_LESIONS,
    "data.on_bad_image": _TEST_LESIONS,
    "data.phantom_lesions": _TEST_LESIONS,
    "data.split_seed": _TEST_LESIONS,
    "data.val_fraction": _TEST_LESIONS,
    "data.test_fraction": _TEST_LESIONS,
    "data.splits_file": _TEST_LESIONS,
    "data.download": "it changes nothing that could be compared",
    "data.cache_dir": "it changes nothing that could be compared",
    "log_every_steps": "it changes nothing that could be compared",
    "num_bootstrap": "all settings are measured alike",
    "target_sensitivity": "all settings are measured alike",
    "evaluation.threshold_policy": "all settings are measured alike",
    "evaluation.guarantee_delta": "all settings are measured alike",
    "evaluation.prevalences": "all settings are measured alike",
    "evaluation.calibration": "all settings are measured alike",
    "cpu_devices": "one process runs many trials, with the same devices",
}

Setting = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Range:
    """Values between two ends, both included, for tuning; whole ones for a whole field.

    Attributes:
      low: smallest value.
      high: largest value.
      log: draw evenly on the scale of the logarithm.
    """

    low: float
    high: float
    log: bool = False


@dataclasses.dataclass(frozen=True)
class Study:
    """What a study file asks for.

    Attributes:
      base: configuration of every run, but for what follows.
      method: "grid" runs every setting with every seed and fold; "tune" lets TPE choose
        settings by the validation metric.
      axes: field of the configuration -> its values. A grid takes their full product;
        tuning takes values or a `Range`.
      cells: for a grid, settings in place of the full product: {field: value}; a field
        that one leaves out has the value of `base`.
      reference: the setting that all others are compared with, as a cell.
      seeds: `config.seed` of the runs. Tuning takes one.
      folds: k for k-fold cross-validation; None for the split of `base`.
      metric: validation metric that tuning maximises: one that `select_by` may be.
      pruner: for tuning, what stops a hopeless run early: one of `PRUNERS`.
      trials: for tuning, how many settings to try where --trials does not say.
    """

    base: ConfigDict
    method: str = "grid"
    axes: Mapping[str, Sequence[Any] | Range] = dataclasses.field(default_factory=dict)
    cells: Sequence[Mapping[str, Any]] = ()
    reference: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seeds: Sequence[int] = (0, 1, 2)
    folds: int | None = None
    metric: str = "roc_auc"
    pruner: str = "none"
    trials: int = 0


@dataclasses.dataclass(frozen=True)
class Plan:
    """A study that has been judged, spelt out.

    Attributes:
      name: of the study file, without its folder and ending.
      base: configuration of every run.
      method: "grid" or "tune".
      axes: field -> values, in order; for tuning a `Range` or values.
      cells: name -> setting, a value for every axis; empty for tuning.
      reference: a setting.
      seeds: of the runs.
      folds: of the runs; of one fold when there is no cross-validation.
      metric: validation metric, for tuning.
      pruner: one of `PRUNERS`.
    """

    name: str
    base: ConfigDict
    method: str
    axes: dict[str, tuple[Any, ...] | Range]
    cells: dict[str, Setting]
    reference: Setting
    seeds: tuple[int, ...]
    folds: tuple[int, ...]
    metric: str
    pruner: str

    def run_config(self, setting: Setting, *, seed: int, fold: int) -> ConfigDict:
        """Return the configuration of one run; teachers are not shared in it yet."""
        config = _with_values(self.base, setting)
        config.seed = seed
        config.data.fold = fold
        return config

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON."""
        content = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self)
        }
        content["base"] = json.loads(self.base.to_json())
        content["axes"] = {
            name: dataclasses.asdict(values) if isinstance(values, Range) else values
            for name, values in self.axes.items()
        }
        return json.loads(json.dumps(content))

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Plan":
        """Return the plan whose `to_json` this is.

        Raises:
          KeyError, TypeError, ValueError: when it is none.
        """
        base = default()
        for name, value in flatten(content["base"]).items():
            _assign(base, name, tuple(value) if isinstance(value, list) else value)
        axes = {
            name: Range(**values) if isinstance(values, dict) else tuple(values)
            for name, values in content["axes"].items()
        }
        plain = {name: content[name] for name in ("name", "method", "metric", "pruner")}
        return cls(
            base=base,
            axes=axes,
            cells=content["cells"],
            reference=content["reference"],
            seeds=tuple(content["seeds"]),
            folds=tuple(content["folds"]),
            **plain,
        )


def load_study(path: Path) -> Study:
    """Run a study file and return what its `get_study()` returns.

    Raises:
      UserError: when there is no such file, or it gives no study.
    """
    if not path.is_file():
        raise UserError(
            f"--study={path}: there is no such file; give one of configs/studies/"
        )
    spec = importlib.util.spec_from_file_location(_FILE_MODULE, path)
    if spec is None or spec.loader is None:
        raise UserError(f"--study={path}: is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        study = module.get_study()
    except UserError:
        raise
    # Anything may go wrong in somebody's file.
    except Exception as error:
        mistake = mistake_in_file(
            error, flag="--study", module=_FILE_MODULE, function="get_study"
        )
        reason = " ".join(str(error).split())
        raise UserError(mistake or f"--study={path}: {reason}") from error
    if not isinstance(study, Study):
        raise UserError(
            f"--study={path}: get_study() returned {type(study).__name__}, not a"
            " mela_jax.study.spec.Study"
        )
    return study


def make_plan(study: Study, *, name: str, base: ConfigDict) -> Plan:
    """Judge a study and spell it out.

    Args:
      study: what the file asks for.
      name: of the study.
      base: `study.base` with the command line's changes.

    Raises:
      UserError: naming what is wrong with it.
    """
    _require(study.method in METHODS, f"method={study.method!r}: give one of {METHODS}")
    _require(study.pruner in PRUNERS, f"pruner={study.pruner!r}: give one of {PRUNERS}")
    metrics = CHOICES["*.select_by"]
    _require(study.metric in metrics, f"metric={study.metric!r}: give one of {metrics}")
    tunes = study.method == "tune"
    _require(tunes or study.pruner == "none", "a grid runs every cell: no pruner")
    seeds = tuple(study.seeds)
    _require(bool(seeds), "no seeds: give at least one")
    _require(len(set(seeds)) == len(seeds), f"seeds {seeds}: one is there twice")
    _require(
        not tunes or (len(seeds) == 1 and study.folds is None),
        "tuning compares settings on one seed and one split: give seeds=(n,), no folds;"
        " then run its best settings as a grid over seeds",
    )
    axes = _axes(study, base)
    for axis in axes:
        _require(
            _value(base, axis) == _value(study.base, axis),
            f"--config.{axis}: is an axis of this study; change the study file instead",
        )
    base = base.copy_and_resolve_references()
    folds: tuple[int, ...] = (base.data.fold,)
    if study.folds is not None:
        _require(base.data.fold == -1, "give folds, or config.data.fold, not both")
        base.data.num_folds = study.folds
        folds = tuple(range(study.folds))
    _require(not study.reference.keys() - axes.keys(), _stray(study.reference, axes))
    plan = Plan(
        name=name,
        base=base,
        method=study.method,
        axes=axes,
        cells={},
        reference=_fill(study.reference, axes, base, what="reference"),
        seeds=seeds,
        folds=folds,
        metric=study.metric,
        pruner=study.pruner,
    )
    settings = _extremes(plan) if tunes else _grid(study, plan)
    for setting in settings:
        for seed, fold in itertools.product(seeds, folds):
            try:
                validate(plan.run_config(setting, seed=seed, fold=fold))
            except (UserError, TypeError, ValueError) as error:
                raise UserError(f"study: {_label(setting, base)}: {error}") from error
    if tunes:
        return plan
    _require(
        plan.reference in settings, f"the reference {plan.reference} is not in the grid"
    )
    return dataclasses.replace(
        plan, cells={_label(setting, base): setting for setting in settings}
    )


def key_of(cell: str, *, seed: int, fold: int) -> str:
    """Return the name of a run's folder; different runs have different ones."""
    name = f"{cell},seed={seed}" + (f",fold={fold}" if fold >= 0 else "")
    plain = re.sub(r"[^\w.,=+-]", "_", name)
    if plain == name and len(name) <= 200:
        return name
    return f"{plain[:180]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _axes(study: Study, base: ConfigDict) -> dict[str, tuple[Any, ...] | Range]:
    """Return every axis with its values, in their order."""
    fields = flatten(default().to_dict())
    tunes = study.method == "tune"
    _require(
        bool(study.axes) or bool(study.cells),
        "no axes and no cells: there is nothing to compare",
    )
    _require(
        not (study.axes and study.cells),
        "give either axes or cells of a grid, not both",
    )
    _require(not (tunes and study.cells), "tuning takes axes, not cells")
    named = dict(study.axes)
    for cell in study.cells:
        for axis in cell:
            # The base's own value first, where a cell leaves the field out.
            named.setdefault(axis, ())
    for axis in named:
        _require(axis in fields, f"axis {axis!r}: the configuration has no such field")
        _require(axis not in _FIXED, f"axis {axis!r}: {_FIXED.get(axis)}")
    if study.cells:
        filled = [_fill(cell, named, base, what="cell") for cell in study.cells]
        named = {
            axis: tuple(dict.fromkeys(cell[axis] for cell in filled)) for axis in named
        }
    axes: dict[str, tuple[Any, ...] | Range] = {}
    for axis, values in named.items():
        if isinstance(values, Range):
            _require(tunes, f"axis {axis!r}: a grid takes values, not a Range")
            number = isinstance(fields[axis], (int, float))
            _require(
                number and not isinstance(fields[axis], bool),
                f"axis {axis!r}: a Range needs a number",
            )
            ends = (values.low, values.high)
            _require(
                all(map(math.isfinite, ends)) and values.low < values.high,
                f"axis {axis!r}: {values} is empty",
            )
            _require(
                not values.log or values.low > 0, f"axis {axis!r}: log from above 0"
            )
            axes[axis] = values
            continue
        _require(
            not isinstance(values, str) and isinstance(values, Sequence),
            f"axis {axis!r}: give a tuple of values",
        )
        _require(len(values) > 0, f"axis {axis!r}: is empty")
        given = tuple(
            _fill({axis: value}, [axis], base, what="axis")[axis] for value in values
        )
        _require(
            len(set(given)) == len(given),
            f"axis {axis!r}: a value is there twice: {given}",
        )
        axes[axis] = given
    return axes


def _grid(study: Study, plan: Plan) -> list[Setting]:
    """Return the settings of a grid, every one once."""
    if study.cells:
        settings = [
            _fill(cell, plan.axes, plan.base, what="cell") for cell in study.cells
        ]
    else:
        products = itertools.product(*plan.axes.values())  # type: ignore[arg-type]
        settings = [dict(zip(plan.axes, values, strict=True)) for values in products]
    for i, setting in enumerate(settings):
        _require(
            setting not in settings[:i],
            f"cells {settings.index(setting)} and {i} are the same setting: {setting}",
        )
    return settings


def _extremes(plan: Plan) -> list[Setting]:
    """Return settings that show, axis by axis, every end and every choice."""
    start = {axis: _value(plan.base, axis) for axis in plan.axes}
    return [
        _fill({**start, axis: value}, plan.axes, plan.base, what="axis")
        for axis, values in plan.axes.items()
        for value in (
            (values.low, values.high) if isinstance(values, Range) else values
        )
    ]


def _fill(
    cell: Mapping[str, Any], axes: Any, base: ConfigDict, *, what: str
) -> Setting:
    """Return a value for every axis: the cell's, or else the base's."""
    for axis, value in cell.items():
        _require(
            isinstance(value, (bool, int, float, str)),
            f"{what}, {axis}={value!r}: give a number, a string, True or False",
        )
    try:
        config = _with_values(base, cell)
    except (TypeError, ValueError) as error:
        raise UserError(f"study: {what} {dict(cell)}: {error}") from error
    # Read back: 1 has become 1.0 where the field is a float.
    return {axis: _value(config, axis) for axis in axes}


def _label(setting: Setting, base: ConfigDict) -> str:
    """Name a setting by what differs from the base; "base" where nothing does."""
    changed = [
        f"{axis}={value}"
        for axis, value in setting.items()
        if value != _value(base, axis)
    ]
    return ",".join(changed) or "base"


def _with_values(base: ConfigDict, values: Mapping[str, Any]) -> ConfigDict:
    config = base.copy_and_resolve_references()
    for axis, value in values.items():
        _assign(config, axis, value)
    return config


def _assign(config: ConfigDict, field: str, value: Any) -> None:
    *sections, last = field.split(".")
    for section in sections:
        config = config[section]
    config[last] = value


def _value(config: ConfigDict, field: str) -> Any:
    value: Any = config
    for part in field.split("."):
        value = value[part]
    return value


def _stray(cell: Mapping[str, Any], axes: Any) -> str:
    return f"the reference names {sorted(cell.keys() - set(axes))}, which is no axis"


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise UserError(f"study: {otherwise}")
