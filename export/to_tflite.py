"""Export a trained model to .tflite files, each with an operating point of its own.

Usage::

    python -m export.to_tflite --workdir=runs/kd
        [--modes=float32,float16,weight_int8,int8] [--input=float32|uint8]
        [--model=student|teacher|teacher_2|baseline|...]

Writes into WORKDIR/export, for each mode, MODEL_MODE.tflite with its metadata inside
and, beside it, the same as .json; and metrics.json and report.md over all files. The
report of the run, WORKDIR/report/report.html, shows them too.
"""

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

# Before TensorFlow is imported: its notices say nothing to a user.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from mela_jax.command import Parser, guarded, number, positive, prepare_process
from mela_jax.errors import UserError
from mela_jax.tflite import INPUT_DTYPES

MODES = ("float32", "float16", "weight_int8", "int8")
MIN_CALIBRATION_IMAGES = 256
_EPILOG = (
    "exit status: 0 done, 2 refused with one line. A file's figures are not a promise "
    "about other images, and no score is a diagnosis."
)


_loss = number(float, "finite number", math.isfinite)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m export.to_tflite",
        description="Export a trained model to .tflite files and choose and measure "
        "the operating point of each.",
        epilog=_EPILOG,
    )
    add = parser.add_argument
    add("--workdir", required=True, help="folder of a finished mela_jax.main run")
    add(
        "--model",
        default="student",
        metavar="NAME",
        help="which of its models: student, teacher, teacher_2, baseline, ... "
        "(default: %(default)s)",
    )
    add("--modes", default=",".join(MODES), help="default: %(default)s")
    add(
        "--input",
        choices=INPUT_DTYPES,
        default="float32",
        help="dtype of the image, raw RGB in [0, 255] either way (default: "
        "%(default)s)",
    )
    add("--output", help="folder of the files (default: WORKDIR/export)")
    add("--data_dir", help="the data folder, where it has moved since the training")
    add(
        "--calibration_images",
        type=positive,
        default=512,
        help="training images that set the ranges of int8 (default: %(default)s)",
    )
    add(
        "--max_auc_loss",
        type=_loss,
        default=0.005,
        help="ROC-AUC that int8 may lose on validation (default: %(default)s)",
    )
    add(
        "--max_specificity_loss",
        type=_loss,
        default=0.02,
        help="specificity at the target sensitivity that int8 may lose on validation "
        "(default: %(default)s)",
    )
    return parser.parse_args(arguments)


def _check(options: argparse.Namespace) -> None:
    """Refuse wrong flags before TensorFlow is imported, and put the modes in order."""
    given = [mode for mode in options.modes.split(",") if mode]
    unknown = [mode for mode in given if mode not in MODES]
    if unknown or not given:
        raise UserError(
            f"--modes={options.modes}: {', '.join(unknown) or 'nothing'} is not a "
            f"mode; give some of {','.join(MODES)}"
        )
    options.modes = [mode for mode in MODES if mode in given]
    if options.calibration_images < MIN_CALIBRATION_IMAGES:
        raise UserError(
            f"--calibration_images={options.calibration_images}: give "
            f"{MIN_CALIBRATION_IMAGES} or more"
        )
    options.workdir = Path(options.workdir).expanduser().absolute()
    if not options.workdir.is_dir():
        raise UserError(
            f"--workdir: there is no folder {options.workdir}; give that of a finished "
            "mela_jax.main run"
        )


@guarded
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0 done, 2 refused."""
    options = _parse(arguments)
    _check(options)
    from export.exporter import export

    metrics = export(options)
    from mela_jax.report.export_tables import summary

    print(summary(metrics))
    print("This is not a diagnosis.")
    return 0


def command() -> int:
    """Run the command line of this process and return its exit status."""
    prepare_process()
    return main()


if __name__ == "__main__":
    sys.exit(command())
