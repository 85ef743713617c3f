"""The report of one model's scores, or of several: metrics.json and report.html.

From the command line, for any model's scores::

    python -m mela_jax.evaluation.report --val=val.csv --test=test.csv --output=DIR

The CSVs have the columns ``image_id,label,score`` and, where known,
``lesion_id,age,sex,localization,dx,dx_type,source``; or they are files of the ISIC
challenge, with ``--val-truth`` and ``--test-truth`` beside them. Files with a score of
every diagnosis, ``p_mel,p_nv,...`` beside ``score`` or ``image,MEL,NV,BCC,...``, get
tables of all of them too. The threshold is chosen on validation and measured on the
test set.
"""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mela_jax.atomic import write_atomically
from mela_jax.errors import UserError
from mela_jax.evaluation.checklist import ABOUT
from mela_jax.evaluation.compare import compare
from mela_jax.evaluation.contact import MAX_ALARMS, find_images, thumbnails
from mela_jax.evaluation.figures import draw_figures
from mela_jax.evaluation.isic import read_scores
from mela_jax.evaluation.measure import CALIBRATIONS, Settings, evaluate_model
from mela_jax.evaluation.metadata import join_details
from mela_jax.evaluation.operating_point import POLICIES
from mela_jax.evaluation.page import find_leader, render
from mela_jax.evaluation.scores import Predictions, pool


def find_comparisons(models: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return what is compared on the test set: name -> (a, b), read as a minus b.

    >>> list(find_comparisons({"teacher": 0, "teacher_2": 0, "student": 0}))
    ['student_minus_teacher', 'student_minus_teacher_2']
    """
    teachers = [name for name in models if name.startswith("teacher")]
    pairs = [
        ("student", "baseline"),
        *(("student", teacher) for teacher in teachers),
        ("model", "other"),
    ]
    return {f"{a}_minus_{b}": (a, b) for a, b in pairs if a in models and b in models}


def write_report(
    directory: str | os.PathLike[str],
    *,
    models: Mapping[str, Mapping[str, Any]],
    predictions: Mapping[str, Mapping[str, Predictions]],
    settings: Settings,
    made_up: bool = False,
    histories: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    run: Mapping[str, str] | None = None,
    about: Mapping[str, str] | None = None,
    images: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write report.html and metrics.json.

    Args:
        directory: where to; created where it is missing.
        models: name -> figures of `evaluate_model`, and "name", "params" and "flops"
            where known; in the order of the report, which is about "student", or about
            the first where there is none.
        predictions: model -> "val" and "test" -> scores.
        settings: how the models were judged.
        made_up: the lesions are made up; said in the report and on every plot.
        histories: model -> one row per epoch, see `plots_training.draw_training`.
        run: what was run, name -> text, shown as a table.
        about: key of `checklist.ABOUT` -> text, for model card and checklist.
        images: image_id -> file, for the contact sheet.

    Returns:
        What metrics.json holds.

    Raises:
        UserError: there is no model, two were scored on different images, or the
            folder cannot be written to.
    """
    if not models:
        raise UserError("there is no model to report on; evaluate one first")
    metrics = {
        "models": dict(models),
        "comparisons": {
            name: compare(
                predictions[a]["test"],
                predictions[b]["test"],
                settings,
                threshold_a=_threshold(models[a]),
                threshold_b=_threshold(models[b]),
                names=(a, b),
            )
            for name, (a, b) in find_comparisons(models).items()
        },
        "made_up_data": made_up,
        "target_sensitivity": settings.target,
        "settings": dataclasses.asdict(settings),
        "run": dict(run or {}),
    }
    test = models[find_leader(models)]["test"]
    page = render(
        metrics,
        plots=draw_figures(
            models, predictions, histories or {}, settings.target, made_up=made_up
        ),
        missed=thumbnails(test["missed"], images or {}),
        alarms=thumbnails(test["false_alarms"][:MAX_ALARMS], images or {}),
        about=about or {},
    )
    folder = Path(directory)
    # allow_nan=False: NaN is not JSON, and no figure may be one.
    content = json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(folder / "report.html", page.encode("utf-8"))
    write_atomically(folder / "metrics.json", (content + "\n").encode("utf-8"))
    return metrics


def _threshold(model: Mapping[str, Any]) -> float:
    """Return the model's frozen threshold."""
    return float(model["test"]["operating_point"]["threshold"])


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; exits with status 2 where it is wrong."""
    defaults = Settings()
    parser = argparse.ArgumentParser(
        prog="python -m mela_jax.evaluation.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--val",
        required=True,
        action="append",
        metavar="CSV",
        help="scores on validation; again: pooled",
    )
    add(
        "--test",
        required=True,
        action="append",
        metavar="CSV",
        help="scores on the test set; again: pooled",
    )
    add("--output", required=True, metavar="DIR", help="folder of the report")
    add("--val-truth", metavar="CSV", help="ISIC ground truth of --val")
    add("--test-truth", metavar="CSV", help="ISIC ground truth of --test")
    add(
        "--melanoma-only",
        action="store_true",
        help="leave out the scores of other diagnoses than melanoma",
    )
    add(
        "--other-val", action="append", metavar="CSV", help="likewise, of another model"
    )
    add(
        "--other-test",
        action="append",
        metavar="CSV",
        help="likewise, of another model",
    )
    add("--metadata", metavar="CSV", help="image_id and lesion_id, age, sex, dx, ...")
    add("--images", metavar="DIR", help="the images, to show those it got wrong")
    add("--about", metavar="JSON", help=f"texts for the model card: {', '.join(ABOUT)}")
    add("--target", type=float, default=defaults.target, help="wanted sensitivity")
    add("--policy", choices=POLICIES, default=defaults.policy)
    add("--delta", type=float, default=defaults.delta, help="risk of the guarantee")
    add(
        "--prevalences",
        default=",".join(map(str, defaults.prevalences)),
        help="shares of melanoma, separated by commas (default: %(default)s)",
    )
    add("--calibration", choices=CALIBRATIONS, default=defaults.calibration)
    add("--bootstrap", type=int, default=defaults.num_bootstrap, metavar="N")
    add("--seed", type=int, default=defaults.seed)
    return parser.parse_args(arguments)


def _read(
    paths: Sequence[str], truth: str | None, options: argparse.Namespace
) -> Predictions:
    pooled = pool(
        [read_scores(p, truth, melanoma_only=options.melanoma_only) for p in paths]
    )
    return join_details(pooled, options.metadata) if options.metadata else pooled


def _read_about(path: str | None) -> dict[str, str]:
    """Read what is told of the study."""
    if path is None:
        return {}
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--about={path}: cannot be read as JSON ({error})") from error
    if not isinstance(found, dict) or set(found) - set(ABOUT):
        raise UserError(
            f"--about={path}: give an object with any of {', '.join(ABOUT)}"
        )
    return {key: str(value) for key, value in found.items()}


def _run(options: argparse.Namespace) -> None:
    try:
        prevalences = tuple(float(p) for p in options.prevalences.split(",") if p)
    except ValueError as error:
        raise UserError(f"--prevalences={options.prevalences}: {error}") from error
    if options.bootstrap < 100:
        raise UserError(
            f"--bootstrap={options.bootstrap}: give 100 or more; the ends of an"
            " interval need that many replicates"
        )
    settings = Settings(
        target=options.target,
        policy=options.policy,
        delta=options.delta,
        prevalences=prevalences,
        calibration=options.calibration,
        num_bootstrap=options.bootstrap,
        seed=options.seed,
    )
    if bool(options.other_val) != bool(options.other_test):
        raise UserError("give --other-val and --other-test together")
    about = _read_about(options.about)
    predictions = {
        "model": {
            "val": _read(options.val, options.val_truth, options),
            "test": _read(options.test, options.test_truth, options),
        }
    }
    if options.other_val:
        predictions["other"] = {
            "val": _read(options.other_val, options.val_truth, options),
            "test": _read(options.other_test, options.test_truth, options),
        }
    images = find_images(options.images) if options.images else {}
    write_report(
        options.output,
        models={
            name: evaluate_model(splits["val"], splits["test"], settings)
            for name, splits in predictions.items()
        },
        predictions=predictions,
        settings=settings,
        about=about,
        images=images,
        run={
            "validation": ", ".join(options.val),
            "test": ", ".join(options.test),
            "seed of the bootstrap": str(settings.seed),
        },
    )
    print(f"Report: {Path(options.output) / 'report.html'}")
    print("This is not a diagnosis.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0 done, 2 refused.

    Args:
        arguments: the words after the program's name; those of the process when None.
    """
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    try:
        _run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
