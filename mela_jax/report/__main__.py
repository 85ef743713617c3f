"""The report of one model's scores, or of several: metrics.json and report.html.

From the command line, for any model's scores::

    python -m mela_jax.report --val=val.csv --test=test.csv --output=DIR

The CSVs have the columns ``image_id,label,score`` and, where known,
``lesion_id,age,sex,localization,dx,dx_type,source``; or they are files of the ISIC
challenge, with ``--val-truth`` and ``--test-truth`` beside them. Files with a score of
every diagnosis, ``p_mel,p_nv,...`` beside ``score`` or ``image,MEL,NV,BCC,...``, get
tables of all of them too. The threshold is chosen on validation and measured on the
test set.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from mela_jax.command import (
    Parser,
    fraction,
    guarded,
    not_negative,
    number,
    prepare_process,
)
from mela_jax.errors import UserError
from mela_jax.evaluation.isic import read_scores
from mela_jax.evaluation.measure import CALIBRATIONS, Settings, evaluate_model
from mela_jax.evaluation.operating_point import POLICIES
from mela_jax.evaluation.scores import Predictions, join_details, pool
from mela_jax.report.checklist import ABOUT
from mela_jax.report.main_report import write_report
from mela_jax.report.thumbnails import find_images

# The ends of an interval need that many.
_replicates = number(int, "whole number from 100 up", lambda value: value >= 100)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; exits with status 2 where it is wrong."""
    defaults = Settings()
    parser = Parser(
        prog="python -m mela_jax.report",
        description=__doc__,
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
    add("--target", type=fraction, default=defaults.target, help="wanted sensitivity")
    add("--policy", choices=POLICIES, default=defaults.policy)
    add("--delta", type=fraction, default=defaults.delta, help="risk of the guarantee")
    add(
        "--prevalences",
        default=",".join(map(str, defaults.prevalences)),
        help="shares of melanoma, separated by commas (default: %(default)s)",
    )
    add("--calibration", choices=CALIBRATIONS, default=defaults.calibration)
    add("--bootstrap", type=_replicates, default=defaults.num_bootstrap, metavar="N")
    add("--seed", type=not_negative, default=defaults.seed)
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
    images = {}
    if options.images:
        shown = itertools.chain.from_iterable(
            splits["test"].image_id for splits in predictions.values()
        )
        images = find_images(options.images, sorted(set(shown)))
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


@guarded
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0 done, 2 refused.

    Args:
        arguments: the words after the program's name; those of the process when None.
    """
    _run(_parse(sys.argv[1:] if arguments is None else arguments))
    return 0


def command() -> int:
    """Run the command line of this process and return its exit status."""
    prepare_process()
    return main()


if __name__ == "__main__":
    sys.exit(command())
