"""The runs of a study, and what complete ones left in their folders, checked."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mela_jax.errors import UserError
from mela_jax.evaluation.cross_validation import Fold, Judged
from mela_jax.evaluation.scores import Predictions, read_predictions

# In the order in which a run goes through them.
STATES = ("waiting", "running", "pruned", "failed", "complete")
# The file whose scores are those of the checkpoint, so that its latency and the
# specificity in the table belong to one model.
_TIMED = "_float32.tflite"


@dataclass(frozen=True)
class Run:
    """One run of the main job within a study.

    Attributes:
        number: from 0, unique in the study.
        setting: value of each axis, {"student.loss": "focal", ...}; runs of one setting
            differ in seed and fold only.
        seed: `config.seed`.
        fold: `config.data.fold`; -1 for the fixed split.
        state: one of `STATES`.
        error: why it failed, in one line; empty otherwise.
        workdir: its folder.
    """

    number: int
    setting: dict[str, Any]
    seed: int
    fold: int
    state: str
    error: str
    workdir: Path


@dataclass(frozen=True)
class Row:
    """All that was run with one setting.

    Attributes:
        number: of the row, from 1; the reference is 1 in a grid.
        setting: value of each axis.
        runs: (seed, fold) -> the run that got furthest.
        seeds: those of which every fold is complete, in order.
        folds: those of the study, in order; (-1,) for a fixed split.
        judged: seed -> its run over all folds, once it is judged.
    """

    number: int
    setting: Mapping[str, Any]
    runs: Mapping[tuple[int, int], Run]
    seeds: tuple[int, ...]
    folds: tuple[int, ...]
    judged: Mapping[int, Judged] = field(default_factory=dict)


def are_numbers(values: Sequence[Any]) -> bool:
    """Tell whether all values are numbers; True and False are none.

    >>> are_numbers([1, 0.5]), are_numbers([True, False]), are_numbers([1, "two"])
    (True, False, False)
    """
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def make_rows(settings: Sequence[Mapping[str, Any]], runs: Sequence[Run]) -> list[Row]:
    """Return a row for each setting; of several like runs, the furthest one counts."""
    furthest: dict[frozenset[Any], dict[tuple[int, int], Run]] = {}
    for run in sorted(runs, key=lambda run: (STATES.index(run.state), -run.number)):
        of_setting = furthest.setdefault(frozenset(run.setting.items()), {})
        of_setting[run.seed, run.fold] = run
    planned = {key for of_setting in furthest.values() for key in of_setting}
    seeds, folds = (tuple(sorted({key[i] for key in planned})) for i in (0, 1))
    rows = []
    for number, setting in enumerate(settings, start=1):
        found = furthest.get(frozenset(setting.items()), {})
        complete = {key for key, run in found.items() if run.state == "complete"}
        whole = tuple(s for s in seeds if complete >= {(s, fold) for fold in folds})
        rows.append(Row(number, setting, found, whole, folds))
    return rows


class Scores:
    """Reads predictions, and holds every run to the images of the first.

    Figures of runs are paired lesion by lesion, so all runs of a fold must have been
    scored on the same validation and test images.
    """

    def __init__(self) -> None:
        self._first: dict[tuple[int, str], tuple[Path, list[Any]]] = {}

    def read(self, run: Run) -> Fold:
        """Return the student's scores of a complete run, or raise UserError."""
        return Fold(run.fold, self._read(run, "val"), self._read(run, "test"))

    def _read(self, run: Run, split: str) -> Predictions:
        path = run.workdir / "predictions" / f"student_{split}.csv"
        scores = read_predictions(path)
        held = sorted(
            zip(scores.image_id, scores.lesion_id, scores.label.tolist(), strict=True)
        )
        other, first = self._first.setdefault((run.fold, split), (path, held))
        if held != first:
            raise UserError(
                f"{path} and {other} differ in {len(set(held) ^ set(first))} image(s), "
                "lesions or labels; runs of one study are compared on the same images, "
                "so let no axis change the data or its split"
            )
        return scores


def read_cost(runs: Sequence[Run]) -> dict[str, Any]:
    """Return what the students of one setting cost, from their complete runs.

    Returns:
        "params" (count), "flops" (per image) and "seconds", the mean training time of
        a student; None where model.json does not hold it.

    Raises:
        UserError: a model.json cannot be read, or two students differ in size.
    """
    found = [_read_json(run.workdir / "student" / "model.json") for run in runs]
    cost: dict[str, Any] = {}
    for name in ("params", "flops"):
        values = {model.get(name) for model in found}
        if len(values) > 1:
            raise UserError(
                f"{runs[0].workdir / 'student' / 'model.json'}: {name} differs from "
                "that of another run of the same setting; run the study anew"
            )
        cost[name] = values.pop()
    seconds = [model["seconds"] for model in found if "seconds" in model]
    cost["seconds"] = float(np.mean(seconds)) if seconds else None
    return cost


def is_made_up(run: Run) -> bool:
    """Tell from its metrics.json whether the lesions of a complete run were made up."""
    metrics = _read_json(run.workdir / "report" / "metrics.json")
    return bool(metrics.get("made_up_data", False))


def read_latency(runs: Sequence[Run]) -> dict[str, Any] | None:
    """Return how long the float32 file of one setting's students takes on the host.

    Looked for is what `tflite_bench.host --json` wrote into export/ of complete runs.

    Returns:
        "milliseconds", the mean over runs of the median latency with XNNPACK; "runs",
        how many were timed; "machines": processor and threads of each. None where none
        was timed.
    """
    medians, machines = [], set()
    for path in (p for run in runs for p in sorted(run.workdir.glob("export/*.json"))):
        content = _read_json(path)
        for result in content.get("results", []):
            if str(result.get("model", "")).endswith(_TIMED):
                medians.append(result["latency_ms"]["xnnpack"]["median"])
                threads = content["num_threads"]
                plural = "s" * (threads != 1)
                processor = content["machine"]["processor"]
                machines.add(f"{processor}, {threads} thread{plural}")
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
