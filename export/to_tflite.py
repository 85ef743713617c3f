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
import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Before TensorFlow is imported: its notices say nothing to a user.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from mela_jax.errors import UserError
from mela_jax.quiet import hide_chatter
from mela_jax.tflite import INPUT_DTYPES, METADATA_VERSION

MODES = ("float32", "float16", "weight_int8", "int8")
MIN_CALIBRATION_IMAGES = 256
# The largest difference of logits, relative to 1 + |logit|, or of class probabilities,
# between the float32 file and the network, above which the conversion is wrong and not
# merely rounded.
FLOAT32_TOLERANCE = 1e-3
_EPILOG = (
    "exit status: 0 done, 2 refused with one line. A file's figures are not a promise "
    "about other images, and no score is a diagnosis."
)


def export(options: argparse.Namespace) -> dict[str, Any]:
    """Export what the command line asks for and return metrics.json.

    Raises:
      UserError: for anything that its user can mend.
    """
    modes = _modes(options.modes)
    if options.calibration_images < MIN_CALIBRATION_IMAGES:
        raise UserError(
            f"--calibration_images={options.calibration_images}: give "
            f"{MIN_CALIBRATION_IMAGES} or more"
        )
    # After the command line: a mistake in it is answered at once.
    from mela_jax import parallel, run_record
    from mela_jax.config import expand_user

    workdir = expand_user(options.workdir)
    output = expand_user(options.output) if options.output else workdir / "export"
    if not workdir.is_dir():
        raise UserError(
            f"--workdir: there is no folder {workdir}; give that of a finished "
            "mela_jax.main run"
        )
    parallel.set_up(
        cpu_devices=1,
        distributed=False,
        compilation_cache=expand_user("~/.cache/mela_jax") / "xla",
    )
    from export.finished import open_run

    with run_record.exclusive(workdir):
        run = open_run(workdir, options.model, data_dir=options.data_dir)
        metrics = Export(run, options, output).write(modes)
        if output == workdir / "export":
            _show_in_report(workdir / "report" / "report.html", metrics)
        return metrics


class Export:
    """The files of one model.

    Args:
      run: the finished run.
      options: the command line.
      output: folder of the files.
    """

    def __init__(self, run: Any, options: argparse.Namespace, output: Path):
        from export import graph, measure

        self._run = run
        self._options = options
        self._output = output
        self._activation_map = graph.has_activation_map(run.description)
        self._tolerance = measure.Tolerance(
            roc_auc=options.max_auc_loss, specificity=options.max_specificity_loss
        )
        self._float32 = self._convert(float16=False)
        _say("scoring with the float model")
        self._reference = measure.float_answers(run)
        self._check_float32()

    def write(self, modes: Sequence[str]) -> dict[str, Any]:
        """Write the files of these modes, then metrics.json and report.md."""
        from mela_jax.atomic import write_atomically
        from mela_jax.report import export_tables as table

        makers: dict[str, Callable[[], dict[str, Any]]] = {
            "float32": lambda: self._made("float32", self._float32),
            "float16": lambda: self._made("float16", self._convert(float16=True)),
            "weight_int8": lambda: self._made("weight_int8", self._weight_int8()),
            "int8": self._int8,
        }
        # Read before the work, so that a damaged one is refused at once.
        metrics = _earlier_files(self._output)
        for mode in modes:
            _say(f"{mode}: converting, and scoring validation and test")
            name = f"{self._run.name}_{mode}.tflite"
            metrics["files"][name] = self._write_file(name, mode, makers[mode]())
            text = json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False)
            write_atomically(self._output / "metrics.json", f"{text}\n".encode())
        report = table.report_text(metrics)
        write_atomically(self._output / "report.md", report.encode())
        return metrics

    def _write_file(self, name: str, mode: str, made: dict[str, Any]) -> dict[str, Any]:
        """Write one file with its metadata; return its entry in metrics.json."""
        from export import measure, metadata
        from mela_jax.atomic import write_atomically
        from mela_jax.tflite import add_metadata

        run = self._run
        figures = measure.measure(run, self._reference, made["answers"])
        described = metadata.describe(
            run,
            figures,
            mode=mode,
            recipe=made["recipe"],
            input_dtype=self._options.input,
            activation_map=self._activation_map,
        )
        content = add_metadata(made["content"], described)
        if not measure.is_as_measured(run, content, made["answers"], made["recipe"]):
            raise RuntimeError(f"{name} answers differently with its metadata inside")
        identity = {
            "file": name,
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        beside = json.dumps({**identity, **described}, indent=2, ensure_ascii=False)
        write_atomically(self._output / name, content)
        write_atomically(
            (self._output / name).with_suffix(".json"), f"{beside}\n".encode()
        )
        return {
            **identity,
            "model": run.name,
            "network": run.description["model"],
            "mode": mode,
            "metadata_version": described["version"],
            "recipe": made["recipe"],
            "attempts": made["attempts"],
            "quantization_calibration": made["calibration"],
            "made_up_data": described["training_data"]["made_up"],
            "input": self._options.input,
            "float_threshold": run.threshold,
            **figures,
        }

    def _made(self, recipe: str, content: bytes) -> dict[str, Any]:
        """Return a file of no doubt, with its answers."""
        from export import measure

        return {
            "recipe": recipe,
            "content": content,
            "answers": {
                split: measure.file_answers(self._run, content, split)
                for split in measure.SPLITS
            },
            "attempts": [],
            "calibration": None,
        }

    def _int8(self) -> dict[str, Any]:
        """Return the first of the int8 recipes that keeps within the tolerance.

        Where none does: weights alone in int8, and if that loses too much, float16.
        """
        from export import measure, quantize

        run = self._run
        rows = quantize.choose_calibration_rows(
            run.images.rows["train"],
            run.images.labels,
            melanoma=run.classes.label_of_melanoma,
            count=self._options.calibration_images,
            seed=run.config.seed,
        )
        ranges = quantize.calibrate(self._float32, run.images.evaluation[rows])
        calibration = {
            "images": len(rows),
            "melanomas": int(run.images.melanoma[rows].sum()),
            "split": "train",
            "seed": run.config.seed,
        }
        ways: list[tuple[str, Callable[[], bytes]]] = [
            (r.name, lambda r=r: quantize.quantize_int8(self._float32, ranges, r))
            for r in quantize.int8_recipes(run.network)
        ]
        ways += [
            ("weight_int8", self._weight_int8),
            ("float16", lambda: self._convert(float16=True)),
        ]
        attempts = []
        for recipe, make in ways:
            content = make()
            val = measure.file_answers(run, content, "val")
            loss = measure.loss_on_validation(run, self._reference["val"], val)
            within = measure.is_within(loss, self._tolerance)
            attempts.append(
                {"recipe": recipe, "loss": loss, "within_tolerance": within}
            )
            if within:
                break
            _say(f"int8: {recipe} lost too much on validation: {loss}")
        return {
            "recipe": recipe,
            "content": content,
            "answers": {
                "val": val,
                "test": measure.file_answers(run, content, "test"),
            },
            "attempts": attempts,
            "calibration": calibration if recipe.startswith("int8") else None,
        }

    def _weight_int8(self) -> bytes:
        from export import quantize

        return quantize.quantize_weights(self._float32)

    def _convert(self, *, float16: bool) -> bytes:
        from export import graph

        _say(f"converting {self._run.name} ({self._run.description['model']})")
        return graph.convert(
            self._run.network,
            self._run.variables,
            image_size=self._run.config.image_size,
            input_dtype=self._options.input,
            activation_map=self._activation_map,
            classes=self._run.classes,
            float16=float16,
            calibration=(self._run.calibration.a, self._run.calibration.b),
        )

    def _check_float32(self) -> None:
        """Refuse a converted graph that does not compute what the network does."""
        from export import measure

        file = measure.file_answers(self._run, self._float32, "val")
        worst = measure.disagreement(self._reference["val"], file)
        if not worst <= FLOAT32_TOLERANCE:
            raise UserError(
                f"the converted {self._run.name} answers differently from the network "
                f"(by {worst:.2g} of 1 + |logit|, or of P(class), on validation); "
                "nothing was written: please file an issue with the versions of jax "
                "and tensorflow"
            )


def _show_in_report(path: Path, metrics: dict[str, Any]) -> None:
    """Put the table of the files into the run's report."""
    from mela_jax.atomic import write_atomically
    from mela_jax.report import export_tables as table

    page = path.read_text(encoding="utf-8") if path.exists() else ""
    page = table.show_in(page, metrics)
    if page is None:
        _say(f"{path} is absent or older, and does not show the files; see report.md")
    else:
        write_atomically(path, page.encode())


def _modes(text: str) -> list[str]:
    modes = [mode for mode in text.split(",") if mode]
    unknown = [mode for mode in modes if mode not in MODES]
    if unknown or not modes:
        raise UserError(
            f"--modes={text}: {', '.join(unknown) or 'nothing'} is not a mode; give "
            f"some of {','.join(MODES)}"
        )
    return [mode for mode in MODES if mode in modes]


def _earlier_files(output: Path) -> dict[str, Any]:
    """Return metrics.json of earlier exports, without files that are gone or changed.

    Nor are there files of an older mela_jax, whose metadata `predict` would refuse.

    Raises:
      UserError: it is damaged.
    """
    path = output / "metrics.json"
    if not path.exists():
        return {"files": {}}
    try:
        files = json.loads(path.read_text())["files"]
        return {
            "files": {
                name: entry
                for name, entry in files.items()
                if entry.get("metadata_version") == METADATA_VERSION
                and (output / name).is_file()
                and hashlib.sha256((output / name).read_bytes()).hexdigest()
                == entry["sha256"]
            }
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: is damaged; delete it and export again, or choose another "
            "folder with --output"
        ) from error


def _say(text: str) -> None:
    print(f"export: {text}", file=sys.stderr, flush=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m export.to_tflite",
        description="Export a trained model to .tflite files and choose and measure "
        "the operating point of each.",
        epilog=_EPILOG,
        allow_abbrev=False,
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
        type=int,
        default=512,
        help="training images that set the ranges of int8 (default: %(default)s)",
    )
    add(
        "--max_auc_loss",
        type=float,
        default=0.005,
        help="ROC-AUC that int8 may lose on validation (default: %(default)s)",
    )
    add(
        "--max_specificity_loss",
        type=float,
        default=0.02,
        help="specificity at the target sensitivity that int8 may lose on validation "
        "(default: %(default)s)",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0 done, 2 refused."""
    options = _parse(arguments)
    try:
        metrics = export(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    from mela_jax.report.export_tables import summary

    print(summary(metrics))
    print("This is not a diagnosis.")
    return 0


def command() -> int:
    """Run the command line of this process and return its exit status."""
    hide_chatter()
    return main()


if __name__ == "__main__":
    sys.exit(command())
