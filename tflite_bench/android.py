r"""Time TFLite models on Android devices, with ``benchmark_model`` through adb.

Usage::

    python -m tflite_bench.android --models runs/kd/export/*.tflite \
        --benchmark_binary=benchmark_model [--serial=S | --all_devices] \
        [--json=out.json]

On each device: is the binary for its processor, is there space; then the files are
pushed into a folder of their own, compared by SHA-256, and every model is timed after
the device has cooled down. The folder is removed at the end, also after a failure or
Ctrl-C. ``docs/android.md`` explains the result.

Exit status, that of the first failure where there are several:

==== ================ =================================================================
0    ok               every model was timed on every device
2    bad_input        wrong arguments, a file that is no model, an unwritable result
10   no_adb           adb is not installed
11   adb_failed       adb or its server does not work, or a copy failed
12   no_device        no device, or not the one asked for
13   unauthorized     the device does not trust this computer yet
14   offline          the device does not answer
15   several_devices  several devices, and none chosen
16   missing_binary   --benchmark_binary is absent or not a program
17   wrong_abi        the binary is for another processor or system
18   no_space         not enough space on the device
19   crashed          benchmark_model crashed, or gave up with an error
20   timeout          benchmark_model or a copy took longer than --timeout
21   device_lost      the device went away half way
22   corrupt_push     a file did not arrive as it was sent
23   unreadable_log   the log of benchmark_model is not understood
24   flag_ignored     benchmark_model ignored a flag, or did not use the delegate
25   outputs_differ   the model gives other outputs on the device
26   too_hot          the device did not cool down in time
130  interrupted      Ctrl-C or SIGTERM; what was measured until then is kept
==== ================ =================================================================
"""

import argparse
import datetime
import hashlib
import json
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from mela_jax.atomic import write_text
from mela_jax.command import prepare_process
from mela_jax.errors import UserError
from tflite_bench.adb import Adb, choose_serials
from tflite_bench.android_output import run_on_host
from tflite_bench.android_run import (
    DELEGATE_FLAGS,
    NOT_RUN,
    Binary,
    Model,
    Settings,
    benchmark_device,
    new_record,
)
from tflite_bench.elf import read_abi
from tflite_bench.failures import BenchmarkError, Failure

FORMAT = 1  # of the JSON; raised when the meaning of a field changes
IDENTIFIER = b"TFL3"  # at byte 4 of every TFLite model


def main(arguments: Sequence[str] | None = None) -> int:
    """Time the models and return the exit status of the table above."""
    options = _parse(arguments)
    terminate = signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _benchmark(options)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.failure
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return Failure.BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted; what was measured until then is kept", file=sys.stderr)
        return Failure.INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, terminate)


def _benchmark(options: argparse.Namespace) -> int:
    started = datetime.datetime.now(datetime.UTC)
    settings = Settings(
        num_threads=options.num_threads,
        runs=options.runs,
        warmup=options.warmup,
        taskset=options.taskset,
        delegate=options.delegate,
        timeout=options.timeout,
        cooldown=options.cooldown,
        max_battery_celsius=options.max_battery_celsius,
        cooldown_timeout=options.cooldown_timeout,
        output_tolerance=options.output_tolerance,
        log_dir=options.log_dir or _log_dir(options.json),
        stamp=started.strftime("%Y%m%dT%H%M%SZ"),
    )
    adb = Adb()
    binary = _read_binary(options.benchmark_binary)
    models = [
        _read_model(path, is_checked=not options.skip_output_check)
        for path in options.models
    ]
    serials = choose_serials(
        adb, serial=options.serial, all_devices=options.all_devices
    )
    records = [new_record(serial, models) for serial in serials]
    report: dict[str, Any] = {
        "format": FORMAT,
        "started": started.isoformat(timespec="seconds"),
        "benchmark_binary": {
            "path": str(binary.path),
            "sha256": binary.sha256,
            "abi": binary.abi,
        },
        "settings": {
            "num_threads": settings.num_threads,
            "runs": settings.runs,
            "warmup": settings.warmup,
            "taskset": settings.taskset,
            "delegate": settings.delegate,
            "timeout_s": settings.timeout,
            "cooldown_s": settings.cooldown,
            "max_battery_celsius": settings.max_battery_celsius,
            "cooldown_timeout_s": settings.cooldown_timeout,
        },
        "devices": records,
    }

    def save() -> None:
        if options.json:
            content = json.dumps(report, indent=2, allow_nan=False) + "\n"
            write_text(options.json, content)

    save()  # a result that cannot be written is found out before the hours of work
    for record in records:
        benchmark_device(
            adb, record, binary=binary, models=models, settings=settings, save=save
        )
        _show(record)
    failures = [failure for record in records for failure in _failures(record)]
    return failures[0] if failures else Failure.OK


def _failures(record: dict[str, Any]) -> list[Failure]:
    """Return what went wrong on one device, in the order in which it did."""
    results = [*record["results"], record]
    names = [result["status"] for result in results]
    failures = [Failure[name.upper()] for name in names if name != NOT_RUN]
    return [failure for failure in failures if failure is not Failure.OK]


def _show(record: dict[str, Any]) -> None:
    """Print one device's table, and what went wrong to standard error."""
    device = record["device"]
    if device:
        print(
            f"{device['manufacturer']} {device['model']} ({record['serial']}), Android "
            f"{device['android_version']}, {device['abis'][0]}"
        )
        print(
            f"{'model':<32} {'median ms':>10} {'mean ms':>10} {'min ms':>10} "
            f"{'init ms':>10} {'memory MiB':>10} {'battery C':>10} outputs"
        )
    for result in record["results"]:
        metrics = result.get("metrics")
        if metrics:
            check = result.get("output_check") or {"compared": False}
            word = {True: "equal", False: "DIFFERENT", None: "not compared"}
            cells = [
                metrics.get("inference_median_ms"),
                metrics["inference_avg_ms"],
                metrics.get("inference_min_ms"),
                metrics["init_ms"],
                metrics.get("memory_overall_mib"),
                result["before"]["battery_celsius"],
            ]
            row = " ".join("         -" if x is None else f"{x:10.3f}" for x in cells)
            print(f"{result['model']:<32} {row} {word[check.get('equal')]}")
        elif device:
            print(f"{result['model']:<32} {result['status']}")
        for note in result["notes"]:
            print(f"note: {result['model']}: {note}", file=sys.stderr)
    said = [result["message"] for result in [*record["results"], record]]
    for message in dict.fromkeys(filter(None, said)):
        print(f"error: {message}", file=sys.stderr)


def _read_binary(path: Path) -> Binary:
    abi = read_abi(path)
    content = path.read_bytes()
    return Binary(path, hashlib.sha256(content).hexdigest(), len(content), abi)


def _read_model(path: Path, *, is_checked: bool) -> Model:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BenchmarkError(
            Failure.BAD_INPUT, f"cannot read the model {path}: {error.strerror}"
        ) from error
    if content[4:8] != IDENTIFIER:
        raise BenchmarkError(
            Failure.BAD_INPUT,
            f"{path} is not a TFLite model (no {IDENTIFIER.decode()})",
        )
    digest = hashlib.sha256(content).hexdigest()
    return Model(path, digest, len(content), run_on_host(path) if is_checked else None)


def _log_dir(json_path: Path | None) -> Path:
    if json_path is None:
        return Path("android_logs")
    return json_path.with_name(f"{json_path.stem}_logs")


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


# argparse puts a parser's name into its message: "invalid whole number from 1 value".
def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1e6:
        raise ValueError
    return value


def _mask(text: str) -> str:
    digits = text.lower().removeprefix("0x")
    if not re.fullmatch(r"[0-9a-f]{1,16}", digits) or not int(digits, 16):
        raise ValueError
    return digits


_count.__name__ = "whole number from 1"
_seconds.__name__ = "number from 0 to a million"
_mask.__name__ = "hexadecimal mask of cores, such as f0,"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    usage, _, table = (__doc__ or "").partition("\nExit status")
    parser = argparse.ArgumentParser(
        prog="python -m tflite_bench.android",
        description=usage,
        epilog=f"Exit status{table}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--models", nargs="+", type=Path, required=True, metavar="FILE")
    add("--benchmark_binary", type=Path, required=True, metavar="PATH")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--serial", help="device, as `adb devices` lists it, or host:port"
    )
    which.add_argument(
        "--all_devices", action="store_true", help="every device that adb lists"
    )
    add("--num_threads", type=_count, default=1, help="default: %(default)s")
    add("--runs", type=_count, default=200, help="timed runs, at least (%(default)s)")
    add(
        "--warmup", type=_count, default=10, help="warm-up runs, at least (%(default)s)"
    )
    add("--taskset", type=_mask, metavar="MASK", help="stay on these cores, such as f0")
    add("--delegate", choices=sorted(DELEGATE_FLAGS), help="default: the CPU, XNNPACK")
    add("--timeout", type=_seconds, default=300.0, help="seconds a run may take")
    add(
        *("--cooldown",),
        type=_seconds,
        default=10.0,
        help="seconds of rest between models (%(default)s)",
    )
    add(
        *("--max_battery_celsius",),
        type=_seconds,
        default=35.0,
        help="wait while the battery is warmer (%(default)s)",
    )
    add(
        *("--cooldown_timeout",),
        type=_seconds,
        default=600.0,
        help="seconds to wait for that at most (%(default)s)",
    )
    add(
        *("--output_tolerance",),
        type=_seconds,
        help="largest difference of an output, relative (0.001; 0.02 where 8 bits or a "
        "delegate are in play)",
    )
    add(
        *("--skip_output_check",),
        action="store_true",
        help="do not compare the outputs with this machine's",
    )
    add("--json", type=Path, metavar="FILE", help="write the result here")
    add("--log_dir", type=Path, metavar="DIR", help="raw logs; default: beside --json")
    return parser.parse_args(arguments)


def command() -> int:
    """Run the command line of this process and return its exit status."""
    prepare_process()
    return main()


if __name__ == "__main__":
    sys.exit(command())
