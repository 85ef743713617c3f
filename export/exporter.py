"""Make the files of one model, judge each by what it answers, and write them."""

import argparse
import functools
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from export import answers, conversion, file_metadata, quantize
from export.answers import Answers
from export.finished import FinishedRun, open_run
from mela_jax import parallel, run_record
from mela_jax.atomic import write_atomically, write_text
from mela_jax.config import expand_user
from mela_jax.errors import UserError
from mela_jax.report import export_tables
from mela_jax.tflite import METADATA_VERSION, add_metadata

# The largest difference of logits, relative to 1 + |logit|, or of class probabilities,
# between the float32 file and the network, above which the conversion is wrong and not
# merely rounded.
FLOAT32_TOLERANCE = 1e-3


def export(options: argparse.Namespace) -> dict[str, Any]:
    """Export what the command line asks for and return metrics.json.

    Raises:
      UserError: for anything that its user can correct.
    """
    workdir = options.workdir
    output = expand_user(options.output) if options.output else workdir / "export"
    parallel.set_up(
        cpu_devices=1,
        distributed=False,
        compilation_cache=expand_user("~/.cache/mela_jax") / "xla",
    )
    with run_record.exclusive(workdir):
        run = open_run(workdir, options.model, data_dir=options.data_dir)
        metrics = Exporter(run, options, output).write(options.modes)
        if output == workdir / "export":
            path = workdir / "report" / "report.html"
            page = path.read_text(encoding="utf-8") if path.exists() else ""
            page = export_tables.show_in(page, metrics)
            if page is None:
                _say(
                    f"{path} is absent or older, and does not show the files; see "
                    "report.md"
                )
            else:
                write_text(path, page)
    return metrics


class Exporter:
    """Writes the files of one model.

    Args:
      run: the finished run.
      options: the command line.
      output: folder of the files.

    Raises:
      UserError: the converted graph does not compute what the network does.
    """

    def __init__(self, run: FinishedRun, options: argparse.Namespace, output: Path):
        self._run = run
        self._options = options
        self._output = output
        self._activation_map = conversion.has_activation_map(run.description)
        self._float32 = self._convert(float16=False)
        _say("scoring with the float model")
        self._reference = answers.float_answers(run)
        file = answers.file_answers(run, self._float32, "val")
        worst = answers.disagreement(self._reference["val"], file)
        if not worst <= FLOAT32_TOLERANCE:
            raise UserError(
                f"the converted {run.name} answers differently from the network (by "
                f"{worst:.2g} of 1 + |logit|, or of P(class), on validation); nothing "
                "was written: please file an issue with the versions of jax and "
                "tensorflow"
            )

    def write(self, modes: Sequence[str]) -> dict[str, Any]:
        """Write the files of these modes, then metrics.json and report.md."""
        # Read before the work, so that a damaged one is refused at once.
        metrics = {"files": earlier_files(self._output)}
        for mode in modes:
            _say(f"{mode}: converting, and scoring validation and test")
            name = f"{self._run.name}_{mode}.tflite"
            metrics["files"][name] = self._write_file(name, mode)
            _write_json(self._output / "metrics.json", metrics)
        report = export_tables.report_text(metrics)
        write_text(self._output / "report.md", report)
        return metrics

    def _write_file(self, name: str, mode: str) -> dict[str, Any]:
        """Make and write one file with its metadata; return its metrics.json entry."""
        run = self._run
        content, found, about = self._make(mode)
        figures = answers.measure(run, self._reference, found)
        metadata = file_metadata.describe(
            run,
            figures,
            mode=mode,
            recipe=about["recipe"],
            input_dtype=self._options.input,
            activation_map=self._activation_map,
        )
        content = add_metadata(content, metadata)
        if not answers.is_as_measured(run, content, found, about["recipe"]):
            raise RuntimeError(f"{name} answers differently with its metadata inside")
        identity = {
            "file": name,
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        path = self._output / name
        write_atomically(path, content)
        _write_json(path.with_suffix(".json"), {**identity, **metadata})
        return {
            **identity,
            "model": run.name,
            "network": run.description["model"],
            "mode": mode,
            "metadata_version": metadata["version"],
            **about,
            "made_up_data": metadata["training_data"]["made_up"],
            "input": self._options.input,
            "float_threshold": run.threshold,
            **figures,
        }

    def _make(self, mode: str) -> tuple[bytes, dict[str, Answers], dict[str, Any]]:
        """Return a file without metadata, its answers by split, and how it was made.

        For int8, recipes are tried until a file is within the tolerance. The last ones
        are 8-bit weights alone and float16, which is taken in any case.
        """
        run, options = self._run, self._options
        makers: dict[str, Callable[[], bytes]] = {
            "float32": lambda: self._float32,
            "weight_int8": lambda: quantize.quantize_weights(self._float32),
            "float16": lambda: self._convert(float16=True),
        }
        recipes, int8, calibration, attempts = [mode], {}, None, []
        if mode == "int8":
            int8, calibration = self._int8_recipes()
            recipes = [*int8, "weight_int8", "float16"]
        for recipe in recipes:
            content = (makers | int8)[recipe]()
            val = answers.file_answers(run, content, "val")
            if mode != "int8":
                break
            loss = answers.loss_on_validation(run, self._reference["val"], val)
            within = (
                loss["roc_auc"] <= options.max_auc_loss
                and loss["specificity"] <= options.max_specificity_loss
            )
            attempts.append(
                {"recipe": recipe, "loss": loss, "within_tolerance": within}
            )
            if within:
                break
            _say(f"int8: {recipe} lost too much on validation: {loss}")
        test = answers.file_answers(run, content, "test")
        about = {
            "recipe": recipe,
            "attempts": attempts,
            "quantization_calibration": calibration if recipe in int8 else None,
        }
        return content, {"val": val, "test": test}, about

    def _int8_recipes(self) -> tuple[dict[str, Callable[[], bytes]], dict[str, Any]]:
        """Return makers of int8 files by recipe, and which images set the ranges."""
        run = self._run
        rows = quantize.choose_calibration_rows(
            run.images.rows["train"],
            run.images.labels,
            melanoma=run.classes.label_of_melanoma,
            count=self._options.calibration_images,
            seed=run.config.seed,
        )
        ranges = quantize.calibrate(self._float32, run.images.evaluation[rows])
        quantize_int8 = functools.partial(quantize.quantize_int8, self._float32, ranges)
        recipes = quantize.int8_recipes(run.network).items()
        makers = {
            name: functools.partial(quantize_int8, kept) for name, kept in recipes
        }
        return makers, {
            "images": len(rows),
            "melanomas": int(run.images.melanoma[rows].sum()),
            "split": "train",
            "seed": run.config.seed,
        }

    def _convert(self, *, float16: bool) -> bytes:
        run = self._run
        _say(f"converting {run.name} ({run.description['model']})")
        return conversion.convert(
            run.network,
            run.variables,
            image_size=run.config.image_size,
            input_dtype=self._options.input,
            activation_map=self._activation_map,
            classes=run.classes,
            float16=float16,
            calibration=(run.calibration.a, run.calibration.b),
        )


def earlier_files(output: Path) -> dict[str, Any]:
    """Return what an earlier metrics.json says of files that are still as written.

    Files of an older mela_jax, whose metadata `predict` would refuse, are left out.

    Raises:
      UserError: metrics.json is damaged.
    """
    path = output / "metrics.json"
    if not path.exists():
        return {}
    try:
        return {
            name: entry
            for name, entry in json.loads(path.read_text())["files"].items()
            if entry.get("metadata_version") == METADATA_VERSION
            and (output / name).is_file()
            and hashlib.sha256((output / name).read_bytes()).hexdigest()
            == entry["sha256"]
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: is damaged; delete it and export again, or choose another "
            "folder with --output"
        ) from error


def _write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, f"{text}\n")


def _say(text: str) -> None:
    print(f"export: {text}", file=sys.stderr, flush=True)
