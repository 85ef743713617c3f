"""What the finished trials of a study left in their folders, checked before use."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mela_jax.errors import UserError
from mela_jax.evaluation.cross_validation import Fold
from mela_jax.evaluation.scores import Predictions, read_predictions
from mela_jax.evaluation.study_trial import STATES, Trial

# The file whose scores are those of the checkpoint, so that its latency and the
# specificity in the table belong to one model.
_TIMED = "_float32.tflite"


@dataclass(frozen=True)
class Row:
    """All that was run with one setting.

    Attributes:
        number: of the row, from 1; the reference is 1 in a grid.
        setting: value of each axis.
        runs: (seed, fold) -> the trial that got furthest.
        seeds: those of which every fold is complete, in order.
        folds: those of the study, in order; (-1,) for a fixed split.
    """

    number: int
    setting: Mapping[str, Any]
    runs: Mapping[tuple[int, int], Trial]
    seeds: tuple[int, ...]
    folds: tuple[int, ...]

    @property
    def trials(self) -> list[Trial]:
        """The trials behind the row's figures."""
        return [self.runs[seed, fold] for seed in self.seeds for fold in self.folds]


def are_numbers(values: Iterable[Any]) -> bool:
    """Tell whether all values are numbers; True and False are none.

    >>> are_numbers([1, 0.5]), are_numbers([True, False]), are_numbers([1, "two"])
    (True, False, False)
    """
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def setting_key(setting: Mapping[str, Any]) -> str:
    """Return a text that two settings share when they are the same.

    >>> setting_key({"b": 1, "a": (2, True)}) == setting_key({"a": [2.0, True], "b": 1})
    True
    >>> setting_key({"a": True}) == setting_key({"a": 1})
    False
    """
    return json.dumps(_plain(setting), sort_keys=True)


def _plain(value: Any) -> Any:
    """Forget what JSON and a storage forget: tuples, and whole numbers as float."""
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


def make_rows(
    settings: Sequence[Mapping[str, Any]], trials: Sequence[Trial]
) -> list[Row]:
    """Sort trials by setting, seed and fold.

    A run that was tried several times counts once, by the trial that got furthest.

    Args:
        settings: of the rows, in order.
        trials: of the study; those of other settings are passed over.
    """
    furthest: dict[str, dict[tuple[int, int], Trial]] = {}
    for trial in sorted(trials, key=lambda trial: trial.number):
        runs = furthest.setdefault(setting_key(trial.setting), {})
        before = runs.get((trial.seed, trial.fold))
        if before is None or STATES.index(trial.state) > STATES.index(before.state):
            runs[trial.seed, trial.fold] = trial
    planned = sorted({key for runs in furthest.values() for key in runs})
    folds = tuple(sorted({fold for _, fold in planned}))
    rows = []
    for number, setting in enumerate(settings, start=1):
        runs = furthest.get(setting_key(setting), {})
        seeds = tuple(
            seed
            for seed in sorted({seed for seed, _ in planned})
            if all(
                (seed, fold) in runs and runs[seed, fold].state == "complete"
                for fold in folds
            )
        )
        rows.append(Row(number, setting, runs, seeds, folds))
    return rows


class Scores:
    """Reads predictions, and holds every run to the images of the first.

    Figures of runs are paired lesion by lesion, so all runs of a fold must have been
    scored on the same validation and test images.
    """

    def __init__(self) -> None:
        self._first: dict[tuple[int, str], tuple[Path, list[tuple[str, str, int]]]] = {}

    def read(self, trial: Trial) -> Fold:
        """Return the student's scores of a complete trial.

        Raises:
            UserError: a file is missing or damaged, or holds other images, lesions or
                labels than that of another run of the same fold.
        """
        return Fold(trial.fold, self._read(trial, "val"), self._read(trial, "test"))

    def _read(self, trial: Trial, split: str) -> Predictions:
        path = trial.workdir / "predictions" / f"student_{split}.csv"
        scores = read_predictions(path)
        held = sorted(
            zip(scores.image_id, scores.lesion_id, scores.label.tolist(), strict=True)
        )
        other, first = self._first.setdefault((trial.fold, split), (path, held))
        if held != first:
            raise UserError(
                f"{path} and {other} differ in {len(set(held) ^ set(first))} image(s), "
                "lesions or labels; runs of one study are compared on the same images, "
                "so let no axis change the data or its split"
            )
        return scores


def read_cost(trials: Sequence[Trial]) -> dict[str, Any]:
    """Return what the students of one setting cost.

    Args:
        trials: complete ones, at least one.

    Returns:
        "params" (count), "flops" (per image) and "seconds", the mean training time of
        a student; None where model.json does not hold it.

    Raises:
        UserError: a model.json cannot be read, or two students of one setting are of
            different size.
    """
    found = [_read_json(trial.workdir / "student" / "model.json") for trial in trials]
    cost: dict[str, Any] = {}
    for name in ("params", "flops"):
        values = {model.get(name) for model in found}
        if len(values) > 1:
            raise UserError(
                f"{trials[0].workdir / 'student' / 'model.json'}: {name} differs from "
                "that of another run of the same setting; run the study anew"
            )
        cost[name] = values.pop()
    seconds = [model["seconds"] for model in found if "seconds" in model]
    cost["seconds"] = float(np.mean(seconds)) if seconds else None
    return cost


def is_made_up(trial: Trial) -> bool:
    """Tell whether a run's lesions were made up.

    Raises:
        UserError: its metrics.json cannot be read.
    """
    metrics = _read_json(trial.workdir / "report" / "metrics.json")
    return bool(metrics.get("made_up_data", False))


def read_latency(trials: Sequence[Trial]) -> dict[str, Any] | None:
    """Return how long a student's float32 file takes on the host, where it was timed.

    Looked for is what `tflite_bench.host --json` wrote into export/ of a run.

    Args:
        trials: complete ones of one setting.

    Returns:
        "milliseconds", the mean over runs of the median latency with XNNPACK; "runs",
        how many were timed; "machines": processor and threads of each. None where none
        was timed.

    Raises:
        UserError: a JSON file there cannot be read.
    """
    medians, machines = [], set()
    for trial in trials:
        for path in sorted((trial.workdir / "export").glob("*.json")):
            content = _read_json(path)
            for result in content.get("results", []):
                if str(result.get("model", "")).endswith(_TIMED):
                    medians.append(result["latency_ms"]["xnnpack"]["median"])
                    threads = content["num_threads"]
                    machines.add(
                        f"{content['machine']['processor']}, {threads} "
                        f"thread{'' if threads == 1 else 's'}"
                    )
    if not medians:
        return None
    return {
        "milliseconds": float(np.mean(medians)),
        "runs": len(medians),
        "machines": sorted(machines),
    }


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); the run is damaged, remove its folder "
            "and run the study again"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: is no JSON object; the run is damaged")
    return content
