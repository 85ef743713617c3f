"""Time an export beside the same architecture of keras.applications, in turn.

Usage::

    python -m tflite_bench.compare_keras --export=runs/kd/export [--model=student]
        [--num_threads=1] [--runs=1000] [--json=out.json]

Two ratios of medians: the float32 file over Keras's own, converted by TFLiteConverter
(wanted: at most 1.05), and the int8 file over the float32 one (wanted: at most 0.65).
The exit status is 1 where one of them is missed.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mela_jax.atomic import write_text
from mela_jax.command import Parser, guarded, positive, prepare_process
from mela_jax.errors import UserError
from mela_jax.tflite import read_metadata, read_model_file
from tflite_bench import timing

FLOAT32_OVER_KERAS = 1.05
INT8_OVER_FLOAT32 = 0.65


def compare(export: Path, *, model: str, num_threads: int, runs: int) -> dict[str, Any]:
    """Return the latencies of the three files and the two ratios.

    Args:
        export: folder of export.to_tflite with the modes float32 and int8.
        model: "student", "teacher" or "baseline".
        num_threads: at least 1.
        runs: timed runs of each.

    Raises:
        UserError: a file is missing or not of this project, or Keras has no such
            network.
    """
    contents = {
        mode: read_model_file(export / f"{model}_{mode}.tflite")
        for mode in ("float32", "int8")
    }
    metadata = read_metadata(contents["float32"])
    if metadata is None:
        raise UserError(f"{export}: {model}_float32.tflite holds no metadata")
    contents["keras"] = _keras_twin(
        metadata["network"], image_size=metadata["input"]["shape"][1]
    )
    samples = timing.time_in_turn(
        {
            name: timing.interpreter_runner(
                content, num_threads=num_threads, use_xnnpack=True
            )
            for name, content in contents.items()
        },
        runs=runs,
    )
    latency = {name: timing.summarize(values) for name, values in samples.items()}
    median = {name: figures["median"] for name, figures in latency.items()}
    return {
        "network": metadata["network"],
        "image_size": metadata["input"]["shape"][1],
        "num_threads": num_threads,
        "bytes": {name: len(content) for name, content in contents.items()},
        "latency_ms": latency,
        "float32_over_keras": median["float32"] / median["keras"],
        "int8_over_float32": median["int8"] / median["float32"],
    }


def _keras_twin(network: str, *, image_size: int) -> bytes:
    """Return the twin, built in a process of its own: this one has no TensorFlow."""
    with tempfile.TemporaryDirectory() as folder:
        twin = Path(folder) / "keras.tflite"
        command = [sys.executable, "-m", "export.keras_twin"]
        command += [f"--network={network}", f"--image_size={image_size}"]
        done = subprocess.run(
            [*command, f"--output={twin}"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["it said nothing"]
            raise UserError(f"export.keras_twin: {lines[-1].removeprefix('error: ')}")
        return twin.read_bytes()


@guarded
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0: both ratios hold, 1: one does not, 2: refused."""
    parser = Parser(prog="python -m tflite_bench.compare_keras")
    parser.add_argument("--export", required=True, metavar="DIR", type=Path)
    parser.add_argument("--model", default="student")
    parser.add_argument("--num_threads", type=positive, default=1)
    parser.add_argument("--runs", type=positive, default=1000)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args(arguments)
    found = compare(
        options.export,
        model=options.model,
        num_threads=options.num_threads,
        runs=options.runs,
    )
    if options.json:
        text = json.dumps(found, indent=2, allow_nan=False)
        write_text(options.json, f"{text}\n")
    print(f"{found['network']}, {found['image_size']} px, one image, milliseconds")
    for name, times in found["latency_ms"].items():
        print(
            f"  {name:8} median {times['median']:.3f}  min {times['min']:.3f}  "
            f"p90 {times['p90']:.3f}  {found['bytes'][name] / 1e6:.2f} MB"
        )
    missed = False
    for name, limit in (
        ("float32_over_keras", FLOAT32_OVER_KERAS),
        ("int8_over_float32", INT8_OVER_FLOAT32),
    ):
        holds = found[name] <= limit
        missed |= not holds
        verdict = "holds" if holds else "MISSED"
        print(f"  {name} {found[name]:.3f}, wanted {limit} or less: {verdict}")
    return int(missed)


def command() -> int:
    """Run the command line of this process and return its exit status."""
    prepare_process()
    return main()


if __name__ == "__main__":
    sys.exit(command())
