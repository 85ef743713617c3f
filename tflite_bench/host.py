"""Time .tflite files on this machine.

Usage::

    python -m tflite_bench.host --models runs/kd/export/*.tflite [--num_threads=1]
        [--runs=200] [--json=out.json] [--plot=out.png]

For each file: latency with XNNPACK, without it, and through LiteRT's CompiledModel;
peak memory, size, operations, and what XNNPACK leaves out. Any .tflite file will do;
the plot wants files of export.to_tflite, whose specificity it shows.
"""

import argparse
import hashlib
import json
import multiprocessing
import platform
import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mela_jax.atomic import write_atomically, write_text
from mela_jax.command import Parser, guarded, positive, prepare_process
from mela_jax.tflite import read_metadata, read_model_file
from tflite_bench import timing
from tflite_bench.graph import read_graph

_MEMORY_RUNS = 5


def benchmark(
    paths: Sequence[str], *, num_threads: int, runs: int
) -> list[dict[str, Any]]:
    """Return the figures of every file.

    Args:
        paths: .tflite files.
        num_threads: at least 1.
        runs: timed runs of each file and way to run it.

    Raises:
        UserError: a file cannot be read or is no whole TFLite model.
    """
    contents = {path: read_model_file(path) for path in dict.fromkeys(paths)}
    runners: dict[str, timing.Runner] = {}
    refusals: dict[str, str] = {}
    for path, content in contents.items():
        for way, use_xnnpack in (("xnnpack", True), ("builtin", False)):
            runners[f"{way} {path}"] = timing.interpreter_runner(
                content, num_threads=num_threads, use_xnnpack=use_xnnpack
            )
        try:
            runner = timing.compiled_runner(content, num_threads=num_threads)
            runner()
            runners[f"compiled_model {path}"] = runner
        except Exception as error:
            # LiteRT raises bare exceptions here; the other ways still count.
            refusals[path] = " ".join(str(error).split())[:200] or repr(error)
    samples = timing.time_in_turn(runners, runs=runs)
    return [
        {
            "model": path,
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "latency_ms": {
                way: timing.summarize(samples[f"{way} {path}"])
                for way in ("xnnpack", "builtin", "compiled_model")
                if f"{way} {path}" in samples
            },
            "compiled_model_refused": refusals.get(path),
            "memory_mb": peak_memory(path, num_threads=num_threads),
            "graph": asdict(read_graph(content)),
            "operating_point": _operating_point(content),
        }
        for path, content in contents.items()
    ]


def peak_memory(path: str, *, num_threads: int) -> dict[str, float]:
    """Return the memory that a process of its own needs for a file, in MB.

    Returns:
        "peak": the largest resident set of the process; "of_model": by how much the
        model raised it over Python and LiteRT alone.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        before, after = pool.apply(_memory_of, (path, num_threads))
    return {"peak": after, "of_model": after - before}


def _memory_of(path: str, num_threads: int) -> tuple[float, float]:
    """Return this process's peak before a file is loaded and after it has run."""
    before = _peak_mb()
    run = timing.interpreter_runner(
        Path(path).read_bytes(), num_threads=num_threads, use_xnnpack=True
    )
    for _ in range(_MEMORY_RUNS):
        run()
    return before, _peak_mb()


def _peak_mb() -> float:
    # In KiB, but on a Mac in bytes.
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _operating_point(content: bytes) -> dict[str, Any] | None:
    """Return threshold, sensitivity and specificity on test where a file has them."""
    metadata = read_metadata(content)
    if metadata is None:
        return None
    point = metadata["operating_point"]
    return {"threshold": point["threshold"], **point["test"]}


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Return the results as text for the terminal."""
    head = ("", "MB", "median", "p90", "p99", "min", "runs/s", "peak MB", "XNNPACK")
    rows = [head]
    for result in results:
        rows += [
            (
                f"{Path(result['model']).name}, {way}",
                f"{result['bytes'] / 1e6:.2f}",
                *(f"{times[k]:.3f}" for k in ("median", "p90", "p99", "min")),
                f"{times['throughput']:.0f}",
                f"{result['memory_mb']['peak']:.0f}" if way == "xnnpack" else "",
                _share(result["graph"]) if way == "xnnpack" else "",
            )
            for way, times in result["latency_ms"].items()
        ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["latency in milliseconds; peak memory of a process that runs the file"]
    for row in rows:
        first, *rest = (
            cell.rjust(width) for cell, width in zip(row, widths, strict=True)
        )
        lines.append("  ".join([row[0].ljust(len(first)), *rest]).rstrip())
    for result in results:
        operations = ", ".join(
            f"{name} {n}" for name, n in result["graph"]["operations"].items()
        )
        lines.append(f"{Path(result['model']).name}: {operations}")
        if result["compiled_model_refused"]:
            lines.append(f"  CompiledModel: {result['compiled_model_refused']}")
    return "\n".join(lines)


def _share(graph: Mapping[str, Any]) -> str:
    pieces = graph["partitions"]
    text = f"{pieces} partition{'' if pieces == 1 else 's'}"
    outside = ", ".join(f"{name} {n}" for name, n in graph["outside"].items())
    return f"{text}; outside: {outside}" if outside else f"{text}, nothing outside"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m tflite_bench.host",
        description="Time .tflite files on this machine.",
        epilog="exit status: 0 done, 2 refused with one line",
    )
    add = parser.add_argument
    add("--models", nargs="+", required=True, metavar="FILE", help=".tflite files")
    add("--num_threads", type=positive, default=1, help="default: %(default)s")
    add(
        "--runs",
        type=positive,
        default=200,
        help="timed runs of each (default: %(default)s)",
    )
    add("--json", metavar="FILE", help="write the figures here")
    add("--plot", metavar="FILE.png", help="plot latency against specificity")
    return parser.parse_args(arguments)


@guarded
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    options = _parse(arguments)
    results = benchmark(
        options.models, num_threads=options.num_threads, runs=options.runs
    )
    print(table(results))
    if options.json:
        content = {
            "machine": {
                "processor": _processor(),
                "system": platform.platform(),
                "ai-edge-litert": version("ai-edge-litert"),
            },
            "num_threads": options.num_threads,
            "results": results,
        }
        text = json.dumps(content, indent=2, allow_nan=False)
        write_text(options.json, f"{text}\n")
    if options.plot:
        from tflite_bench.plot import latency_plot

        write_atomically(
            options.plot, latency_plot(results, num_threads=options.num_threads)
        )
    return 0


def _processor() -> str:
    """Return the processor's name, or its architecture where Linux does not say it."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.machine()
    names = [x.split(":", 1)[1].strip() for x in text.splitlines() if "model name" in x]
    return names[0] if names else platform.machine()


def command() -> int:
    """Run the command line of this process and return its exit status."""
    prepare_process()
    return main()


if __name__ == "__main__":
    sys.exit(command())
