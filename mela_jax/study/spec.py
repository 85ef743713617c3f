"""What a study is: a base configuration, and what is tried on it.

A file of configs/studies/ returns a `Study` from `get_study()`. `check_study` checks it
before anything runs, and writes it out in full.
"""

import dataclasses
import hashlib
import importlib.util
import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
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
_FIXED = {
    field: reason
    for reason, fields in {
        "give Study.seeds": "seed",
        "give Study.folds": "data.fold data.num_folds",
        "settings are compared on the same test lesions, so it is set in `base`": (
            "data.name data.dir data.on_bad_image data.phantom_lesions data.split_seed"
            " data.val_fraction data.test_fraction data.splits_file"
        ),
        "it changes nothing that could be compared": (
            "data.download data.cache_dir log_every_steps"
        ),
        "all settings are measured alike": (
            "num_bootstrap target_sensitivity evaluation.threshold_policy"
            " evaluation.guarantee_delta evaluation.prevalences evaluation.calibration"
        ),
        "one process runs many trials, with the same devices": "cpu_devices",
    }.items()
    for field in fields.split()
}

Setting = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Range:
    """Values to tune over, both ends included; whole numbers for a whole field.

    Attributes:
      low: smallest value.
      high: largest value.
      log: draw evenly on a logarithmic scale.
    """

    low: float
    high: float
    log: bool = False


@dataclasses.dataclass(frozen=True)
class Study:
    """A study as its file gives it, or as `check_study` has written it out.

    Attributes:
      base: configuration of every run, but for what follows.
      method: "grid" runs every setting with every seed and fold; "tune" lets TPE choose
        settings by the validation metric.
      axes: field of the configuration -> its values. A grid takes their full product;
        tuning takes values or a `Range`.
      cells: for a grid, settings in place of the full product: {field: value}; a field
        that one leaves out has the value of `base`. Written out: every setting, with a
        value for every axis.
      reference: the setting that all others are compared with, as a cell.
      seeds: `config.seed` of the runs. Tuning takes one.
      folds: k for k-fold cross-validation; None for the split of `base`.
      metric: validation metric that tuning maximises: one that `select_by` may be.
      pruner: for tuning, what stops a hopeless run early: one of `PRUNERS`.
      trials: for tuning, how many settings to try where --trials does not say.
      name: written out, that of the file.
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
    name: str = ""

    @property
    def fold_numbers(self) -> tuple[int, ...]:
        """`config.data.fold` of the runs; -1 for a fixed split."""
        return (self.base.data.fold,) if self.folds is None else (*range(self.folds),)

    def run_config(
        self, setting: Mapping[str, Any], *, seed: int, fold: int
    ) -> ConfigDict:
        """Return the configuration of one run; it does not name a shared teacher."""
        fields = {**setting, "seed": seed, "data.fold": fold}
        return _with_values(self.base, fields)

    def label(self, setting: Mapping[str, Any]) -> str:
        """Name a setting by what differs from the base; "base" where nothing does."""
        base = flatten(self.base.to_dict())
        changed = [f"{k}={value}" for k, value in setting.items() if value != base[k]]
        return ",".join(changed) or "base"

    def to_json(self) -> dict[str, Any]:
        """Return the written-out study as JSON."""
        content = dataclasses.asdict(self) | {
            "base": json.loads(self.base.to_json()),
            "cells": {self.label(cell): cell for cell in self.cells},
            "folds": self.fold_numbers,
        }
        # Not part of what the study is: it may grow.
        del content["trials"]
        return json.loads(json.dumps(content))

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Study":
        """Return the study whose `to_json` this is.

        Raises:
          AttributeError, KeyError, TypeError, ValueError: when it is none.
        """
        base = _with_values(default(), flatten(content["base"]))
        folds = content["folds"]
        written_out = {
            "base": base,
            "axes": {
                axis: Range(**values) if isinstance(values, dict) else tuple(values)
                for axis, values in content["axes"].items()
            },
            "cells": tuple(content["cells"].values()),
            "seeds": tuple(content["seeds"]),
            "folds": None if folds == [base.data.fold] else len(folds),
        }
        return cls(**{**content, **written_out})


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


def check_study(study: Study, *, name: str, base: ConfigDict) -> Study:
    """Check a study and write it out in full.

    Args:
      study: as its file gives it.
      name: of the file.
      base: `study.base` with the command line's changes.

    Raises:
      UserError: naming what is wrong with it.
    """
    _check_method(study)
    axes, settings = _write_out(study, base)
    given, changed = (flatten(config.to_dict()) for config in (study.base, base))
    for axis in axes:
        _require(
            given[axis] == changed[axis],
            f"--config.{axis}: is an axis of this study; change the study file instead",
        )
    base = base.copy_and_resolve_references()
    if study.folds is not None:
        _require(base.data.fold == -1, "give folds, or config.data.fold, not both")
        base.data.num_folds = study.folds
    stray = sorted(study.reference.keys() - axes.keys())
    _require(not stray, f"the reference names {stray}, which is no axis")
    reference = _fill(study.reference, axes, base, what="reference")
    is_grid = study.method == "grid"
    cells = tuple(settings) if is_grid else ()
    study = dataclasses.replace(
        study, name=name, base=base, axes=axes, cells=cells, reference=reference
    )
    runs = itertools.product(settings, study.seeds, study.fold_numbers)
    for setting, seed, fold in runs:
        try:
            validate(study.run_config(setting, seed=seed, fold=fold))
        except (UserError, TypeError, ValueError) as error:
            raise UserError(f"study: {study.label(setting)}: {error}") from error
    for i, cell in enumerate(cells):
        first = cells.index(cell)
        _require(first == i, f"cells {first} and {i} are the same setting: {cell}")
    is_known = not is_grid or reference in cells
    _require(is_known, f"the reference {reference} is not in the grid")
    return study


def axis_values(values: Sequence[Any] | Range) -> Sequence[Any]:
    """Return the values of an axis, of a range its ends."""
    return (values.low, values.high) if isinstance(values, Range) else values


def run_key(label: str, *, seed: int, fold: int) -> str:
    """Return the name of a run's folder; different runs have different ones."""
    name = f"{label},seed={seed}" + (f",fold={fold}" if fold >= 0 else "")
    plain = re.sub(r"[^\w.,=+-]", "_", name)
    if plain == name and len(name) <= 200:
        return name
    return f"{plain[:180]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _check_method(study: Study) -> None:
    """Check what does not depend on the configuration's fields."""
    tunes, seeds = study.method == "tune", study.seeds
    choices = {"method": METHODS, "pruner": PRUNERS, "metric": CHOICES["*.select_by"]}
    for field, allowed in choices.items():
        value = getattr(study, field)
        _require(value in allowed, f"{field}={value!r}: give one of {allowed}")
    several = len(seeds) > 1 or study.folds is not None
    for mistake, is_made in {
        "a grid runs every cell: no pruner": not tunes and study.pruner != "none",
        "no seeds: give at least one": not seeds,
        f"seeds {seeds}: one is there twice": len(set(seeds)) < len(seeds),
        "tuning compares settings on one seed and one split: give seeds=(n,), no folds;"
        " then run its best settings as a grid over seeds": tunes and several,
        "no axes and no cells: there is nothing to compare": not (
            study.axes or study.cells
        ),
        "give either axes or cells of a grid, not both": study.axes and study.cells,
        "tuning takes axes, not cells": tunes and study.cells,
    }.items():
        _require(not is_made, mistake)


def _write_out(
    study: Study, base: ConfigDict
) -> tuple[dict[str, Sequence[Any] | Range], list[Setting]]:
    """Return every axis with its values, and every setting in full.

    Those of tuning are what shows, axis by axis, every end and every choice.
    """
    fields = flatten(default().to_dict())
    names = dict.fromkeys(study.axes or itertools.chain(*study.cells))
    for axis in names:
        _require(axis in fields, f"axis {axis!r}: the configuration has no such field")
        _require(axis not in _FIXED, f"axis {axis!r}: {_FIXED.get(axis)}")
    if study.cells:
        cells = [_fill(cell, names, base, what="cell") for cell in study.cells]
        return {n: tuple(dict.fromkeys(c[n] for c in cells)) for n in names}, cells
    axes: dict[str, Sequence[Any] | Range] = {}
    for axis, values in study.axes.items():
        if isinstance(values, Range):
            field, low, high = fields[axis], values.low, values.high
            is_number = isinstance(field, int | float) and not isinstance(field, bool)
            is_finite = math.isfinite(low) and math.isfinite(high)
            for holds, otherwise in (
                (study.method == "tune", "a grid takes values, not a Range"),
                (is_number, "a Range needs a number"),
                (is_finite and low < high, f"{values} is empty"),
                (not values.log or low > 0, "log from above 0"),
            ):
                _require(holds, f"axis {axis!r}: {otherwise}")
            axes[axis] = values
            continue
        is_sequence = isinstance(values, Sequence) and not isinstance(values, str)
        _require(is_sequence, f"axis {axis!r}: give a tuple of values")
        _require(len(values) > 0, f"axis {axis!r}: is empty")
        held = tuple(_fill({axis: v}, [axis], base, what="axis")[axis] for v in values)
        is_unique = len(set(held)) == len(held)
        _require(is_unique, f"axis {axis!r}: a value is there twice: {held}")
        axes[axis] = held
    if study.method == "tune":
        tried = [(axis, v) for axis in axes for v in axis_values(axes[axis])]
        return axes, [_fill({a: v}, axes, base, what="axis") for a, v in tried]
    products = itertools.product(*map(axis_values, axes.values()))
    return axes, [dict(zip(axes, values, strict=True)) for values in products]


def _fill(
    cell: Mapping[str, Any], axes: Iterable[str], base: ConfigDict, *, what: str
) -> Setting:
    """Return a value for every axis: the cell's, or else the base's."""
    for axis, value in cell.items():
        _require(
            isinstance(value, bool | int | float | str),
            f"{what}, {axis}={value!r}: give a number, a string, True or False",
        )
    try:
        config = _with_values(base, cell)
    except (TypeError, ValueError) as error:
        raise UserError(f"study: {what} {dict(cell)}: {error}") from error
    # Read back: 1 has become 1.0 where the field is a float.
    fields = flatten(config.to_dict())
    return {axis: fields[axis] for axis in axes}


def _with_values(base: ConfigDict, values: Mapping[str, Any]) -> ConfigDict:
    config = base.copy_and_resolve_references()
    config.update_from_flattened_dict(values)
    return config


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise UserError(f"study: {otherwise}")
