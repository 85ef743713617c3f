"""Made-up studies: trials whose folders hold drawn scores, for the tests of reports."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

from mela_jax.evaluation.scores import Predictions, write_predictions
from mela_jax.evaluation.study_runs import Run


def draw_scores(
    split: str,
    *,
    strength: float,
    run: Sequence[int],
    seed_sd: float = 0.0,
    run_noise: float = 0.5,
    num_lesions: int = 150,
    data: int = 0,
) -> Predictions:
    """Draw the scores of one run; images, labels and lesions depend on the data alone.

    Args:
        split: "val" or "test", or whatever names the set.
        strength: melanomas lie this much higher, in units of the lesions' spread.
        run: numbers that name the run.
        seed_sd: standard deviation of the strength over runs.
        run_noise: standard deviation of what a run adds to each image.
        num_lesions: lesions; every third has two images.
        data: seed of images and lesions.
    """
    of_split = [data, *split.encode()]
    lesions = np.random.default_rng(of_split)
    label = (np.arange(num_lesions) % 5 == 0).astype(int)
    offset = lesions.normal(size=num_lesions)
    lesion = np.concatenate([np.arange(num_lesions), np.arange(0, num_lesions, 3)])
    image = lesions.normal(scale=0.3, size=lesion.size)
    own = np.random.default_rng([*of_split, *run])
    luck = np.random.default_rng([data, *run]).normal(scale=seed_sd)
    logits = (strength + luck) * label[lesion] + offset[lesion] + image - 2
    logits += own.normal(scale=run_noise, size=lesion.size)
    return Predictions(
        [f"{split}-{data}-{i}" for i in range(lesion.size)],
        [f"{split}-{data}-lesion{k}" for k in lesion],
        label[lesion],
        expit(logits),
    )


def write_trial(
    folder: Path,
    number: int,
    setting: dict[str, Any],
    *,
    seed: int,
    fold: int = -1,
    val: Predictions | None = None,
    test: Predictions | None = None,
    state: str = "complete",
    error: str = "",
    params: int = 940_000,
    milliseconds: float | None = None,
    made_up_data: bool = False,
) -> Run:
    """Write the folder of a trial as a finished run leaves it."""
    workdir = folder / "trials" / str(number)
    if val is not None and test is not None:
        write_predictions(workdir / "predictions" / "student_val.csv", val)
        write_predictions(workdir / "predictions" / "student_test.csv", test)
        _write(workdir / "report" / "metrics.json", {"made_up_data": made_up_data})
        _write(
            workdir / "student" / "model.json",
            {"params": params, "flops": 40 * params, "seconds": 90.0 + number},
        )
    if milliseconds is not None:
        _write(
            workdir / "export" / "host.json",
            {
                "machine": {"processor": "A processor"},
                "num_threads": 1,
                "results": [
                    {
                        "model": f"export/student_{mode}.tflite",
                        "latency_ms": {"xnnpack": {"median": factor * milliseconds}},
                    }
                    for mode, factor in (("float32", 1.0), ("int8", 0.5))
                ],
            },
        )
    return Run(number, setting, seed, fold, state, error, workdir)


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
