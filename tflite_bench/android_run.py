"""Time models on one device: push, compare, run, check the outputs, clean up."""

import hashlib
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mela_jax.atomic import write_text
from tflite_bench import android_output
from tflite_bench.adb import (
    ANSWER_SECONDS,
    Adb,
    Answer,
    Device,
    open_device,
    signal_name,
)
from tflite_bench.android_device import (
    check_space,
    read_condition,
    read_identity,
    wait_until_cool,
)
from tflite_bench.android_folder import File, Folder
from tflite_bench.android_output import HostRun
from tflite_bench.benchmark_log import delegate_use, parse_log
from tflite_bench.failures import ENDS_THE_DEVICE, BenchmarkError, Failure

SPARE_BYTES = 4 * 2**20  # logs and what the file system itself wants
DELEGATE_FLAGS = {"gpu": "--use_gpu=true", "nnapi": "--use_nnapi=true"}
NOT_RUN = "not_run"


@dataclass(frozen=True)
class Binary(File):
    """The ``benchmark_model`` program and the ABI that it was built for."""

    abi: str


@dataclass(frozen=True)
class Model(File):
    """A model; ``host`` is its run on this machine, None where none was asked for."""

    host: HostRun | None


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        num_threads: threads of the interpreter on the device.
        runs: timed runs, at least.
        warmup: runs before them, at least.
        taskset: mask of the cores to stay on, hexadecimal without 0x.
        delegate: "gpu" or "nnapi"; None for the CPU.
        timeout: seconds that a push or a run may take.
        cooldown: seconds of rest between models.
        max_battery_celsius: no model is timed while the battery is warmer.
        cooldown_timeout: seconds to wait for that.
        output_tolerance: see `android_output.compare`; None chooses by the model.
        log_dir: where raw logs go.
        stamp: what their names begin with, so that no run overwrites another's.
    """

    num_threads: int
    runs: int
    warmup: int
    taskset: str | None
    delegate: str | None
    timeout: float
    cooldown: float
    max_battery_celsius: float
    cooldown_timeout: float
    output_tolerance: float | None
    log_dir: Path
    stamp: str


def new_record(serial: str, models: Sequence[Model]) -> dict[str, Any]:
    """Return what is known of a device before anything was asked of it."""
    return {
        "serial": serial,
        "status": NOT_RUN,
        "message": None,
        "device": None,
        "results": [
            {
                "model": model.path.name,
                "path": str(model.path),
                "sha256": model.sha256,
                "num_bytes": model.num_bytes,
                "status": NOT_RUN,
                "message": None,
                "notes": [],
            }
            for model in models
        ],
    }


def benchmark_device(
    adb: Adb,
    record: dict[str, Any],
    *,
    binary: Binary,
    models: Sequence[Model],
    settings: Settings,
    save: Callable[[], None],
) -> None:
    """Time every model on the device of `record`, and write into it what comes out.

    No failure of the device or of a model is raised: each is in the record, beside what
    was measured before it.

    Args:
        adb: the client.
        record: from `new_record`; filled in as the work goes on.
        binary: the program to time with.
        models: those of the record, in its order.
        settings: how to measure.
        save: called whenever the record has something new.

    Raises:
        UserError: a log or the result cannot be written.
        KeyboardInterrupt: the folder on the device is removed first.
    """
    try:
        device = open_device(adb, record["serial"])
        identity = read_identity(device)
        record["device"] = asdict(identity)
        if binary.abi not in identity.abis:
            raise BenchmarkError(
                Failure.WRONG_ABI,
                f"{device.serial}: {binary.path.name} is for {binary.abi}, the device "
                f"runs {', '.join(identity.abis)}; get the one for {identity.abis[0]}",
            )
        folder = Folder(device)
        try:
            with folder:
                bench = _Bench(device, folder, settings)
                bench.install(binary, models)
                for index, model in enumerate(models):
                    if index:
                        time.sleep(settings.cooldown)
                    bench.time_model(index, model, record["results"][index])
                    save()
        finally:
            if folder.left_behind:
                _report_left_behind(record, folder)
        record["status"] = Failure.OK.name.lower()
    except BenchmarkError as error:
        record["status"] = error.failure.name.lower()
        record["message"] = str(error)
    except KeyboardInterrupt:
        record["status"] = Failure.INTERRUPTED.name.lower()
        raise
    finally:
        save()


class _Bench:
    """A folder on a device with ``benchmark_model`` in it."""

    def __init__(self, device: Device, folder: Folder, settings: Settings):
        self._device = device
        self._folder = folder
        self._settings = settings
        self._known_flags: frozenset[str] = frozenset()

    def install(self, binary: Binary, models: Sequence[Model]) -> None:
        """Push the program and see that it starts and knows the flags it will get."""
        device, settings = self._device, self._settings
        folder = self._folder.path
        tensors = [
            tensor.value.nbytes
            for model in models
            if model.host
            for tensor in (*model.host.inputs, *model.host.outputs)
        ]
        files = [binary.num_bytes, *(model.num_bytes for model in models)]
        check_space(device, folder, num_bytes=sum(files + tensors) + SPARE_BYTES)
        self._folder.push(binary, "benchmark_model", seconds=settings.timeout)
        device.shell(f"chmod 755 {folder}/benchmark_model")
        if settings.taskset:
            answer = device.shell(f"taskset {settings.taskset} true")
            if answer.status != 0:
                raise BenchmarkError(
                    Failure.BAD_INPUT,
                    f"{device.serial}: --taskset={settings.taskset} does not work "
                    f"there: {answer.last_line}",
                )
        # It prints its usage and ends with status 1, as it does for a failure.
        answer = self._run(["--help"], seconds=ANSWER_SECONDS)
        self._known_flags = frozenset(re.findall(r"--(\w+)=", answer.output))
        if not self._known_flags:
            self._check_end(answer, seconds=ANSWER_SECONDS)
        elif unknown := [
            flag
            for flag in self._flags("model")
            if flag.partition("=")[0].removeprefix("--") not in self._known_flags
        ]:
            raise self._ignored(unknown)

    def time_model(self, index: int, model: Model, result: dict[str, Any]) -> None:
        """Time one model and check its outputs; a failure of its own ends in `result`.

        Raises:
            BenchmarkError: the device can do nothing more.
        """
        try:
            self._time_model(index, model, result)
            self._check_outputs(index, model, result)
            result["status"] = Failure.OK.name.lower()
        except BenchmarkError as error:
            result["status"] = error.failure.name.lower()
            result["message"] = str(error)
            if error.failure in ENDS_THE_DEVICE:
                raise
        except KeyboardInterrupt:
            result["status"] = Failure.INTERRUPTED.name.lower()
            raise

    def _time_model(self, index: int, model: Model, result: dict[str, Any]) -> None:
        device, settings = self._device, self._settings
        name = f"{index:02d}.tflite"
        self._folder.push(model, name, seconds=settings.timeout)
        flags = self._flags(name)
        before, waited = wait_until_cool(
            device,
            max_battery_celsius=settings.max_battery_celsius,
            seconds=settings.cooldown_timeout,
        )
        result |= {
            "flags": flags,
            "taskset": settings.taskset,
            "delegate": settings.delegate,
            "waited_for_cool_down_s": round(waited, 1),
            "before": before.as_json(),
        }
        answer = self._run(flags, seconds=settings.timeout)
        result["raw_log"] = self._keep_log(index, model, answer.output)
        self._check_end(answer, seconds=settings.timeout)
        log = parse_log(answer.output)
        if log.ignored_flags:
            raise self._ignored(log.ignored_flags)
        if settings.delegate:
            use = delegate_use(answer.output, settings.delegate)
            result["delegate_use"] = use
            if use == "none":
                raise BenchmarkError(
                    Failure.FLAG_IGNORED,
                    f"{device.serial}: no part of {model.path.name} runs on "
                    f"{settings.delegate}: it would have been the CPU's time",
                )
            if use is None:
                result["notes"].append(
                    f"the log does not say whether {settings.delegate} was used"
                )
        result |= {
            "tool": log.tool,
            "num_runs": log.num_runs,
            "metrics": log.metrics,
            "memory_measure": log.memory_measure,
        }
        if log.num_runs is not None and log.num_runs < settings.runs:
            result["notes"].append(
                f"{log.num_runs} runs of {settings.runs}: the tool stops at its own "
                "time limit"
            )
        if log.tool == "litert":
            result["notes"].append(
                "some versions of LiteRT's tool accept --num_threads and do not use it"
            )
        after = read_condition(device)
        result["after"] = after.as_json()
        if after.thermal_status:
            result["notes"].append(
                f"the device throttled (thermal status {after.thermal_status} at the "
                "end): the times are too long"
            )

    def _check_outputs(self, index: int, model: Model, result: dict[str, Any]) -> None:
        """Compare the outputs with those of this machine, in a run of its own."""
        host, settings = model.host, self._settings
        if host is None:
            result["output_check"] = {"compared": False, "reason": "not asked for"}
            return
        reason = android_output.why_not_comparable(host, self._known_flags)
        if reason:
            result["output_check"] = {"compared": False, "reason": reason}
            return
        tolerance = settings.output_tolerance
        if tolerance is None:
            is_coarse = host.is_quantized or settings.delegate is not None
            tolerance = (
                android_output.COARSE_TOLERANCE
                if is_coarse
                else android_output.FLOAT_TOLERANCE
            )
        folder = self._folder.path
        output = f"{folder}/output"
        with tempfile.TemporaryDirectory() as scratch:
            inputs = []
            for number, tensor in enumerate(host.inputs):
                file = Path(scratch) / f"input_{number}"
                file.write_bytes(tensor.value.tobytes())
                digest = hashlib.sha256(tensor.value.tobytes()).hexdigest()
                self._folder.push(
                    File(file, digest, tensor.value.nbytes),
                    file.name,
                    seconds=settings.timeout,
                )
                inputs.append(f"{folder}/{file.name}")
            flags = [
                f"--graph={folder}/{index:02d}.tflite",
                f"--num_threads={settings.num_threads}",
                *("--num_runs=1", "--warmup_runs=1"),
                *("--min_secs=0", "--warmup_min_secs=0"),
                *self._delegate_flags(),
                *android_output.input_flags(host.inputs, inputs),
                f"--output_filepath={output}",
            ]
            # What an earlier model left must not pass for this one's.
            self._device.shell(f"rm -f {output}")
            answer = self._run(flags, seconds=settings.timeout)
            result["output_check_log"] = self._keep_log(
                index, model, answer.output, suffix=".outputs"
            )
            self._check_end(answer, seconds=settings.timeout)
            pulled = Path(scratch) / "output"
            if self._device.shell(f"test -f {output}").status == 0:
                self._device.pull(output, pulled, seconds=settings.timeout)
            content = pulled.read_bytes() if pulled.exists() else b""
        check = android_output.compare(host.outputs, content, tolerance=tolerance)
        result["output_check"] = check
        if not check["equal"]:
            raise BenchmarkError(
                Failure.OUTPUTS_DIFFER,
                f"{self._device.serial}: {model.path.name} gives other outputs there "
                f"than here ({android_output.describe(check)}); its times stand, its "
                "scores there do not",
            )

    def _flags(self, graph: str) -> list[str]:
        return [
            f"--graph={self._folder.path}/{graph}",
            f"--num_threads={self._settings.num_threads}",
            f"--num_runs={self._settings.runs}",
            f"--warmup_runs={self._settings.warmup}",
            *self._delegate_flags(),
        ]

    def _delegate_flags(self) -> list[str]:
        delegate = self._settings.delegate
        return [DELEGATE_FLAGS[delegate]] if delegate else []

    def _run(self, flags: Sequence[str], *, seconds: float) -> Answer:
        """Run ``benchmark_model`` on the device; it is killed when the time is up."""
        pid, program = self._folder.pid_file, f"{self._folder.path}/benchmark_model"
        if self._settings.taskset:
            program = f"taskset {self._settings.taskset} {program}"
        words = " ".join(shlex.quote(flag) for flag in flags)
        start = f"echo $$ > {pid}; exec {program} {words}"
        answer = self._device.shell(
            f"sh -c {shlex.quote(start)}; s=$?; rm -f {pid}; exit $s", seconds=seconds
        )
        if answer.status is None:
            self._folder.stop_program()
        return answer

    def _check_end(self, answer: Answer, *, seconds: float) -> None:
        """Refuse a run that did not end by itself and well."""
        serial = self._device.serial
        if answer.status is None:
            raise BenchmarkError(
                Failure.TIMEOUT,
                f"{serial}: benchmark_model ran longer than {seconds:g} s and was "
                "stopped; raise --timeout or lower --runs",
            )
        if answer.status != 0:
            raise BenchmarkError(
                Failure.CRASHED,
                f"{serial}: benchmark_model ended with {signal_name(answer.status)}; "
                f"it last said: {answer.last_line[:200]}",
            )

    def _ignored(self, flags: Sequence[str]) -> BenchmarkError:
        return BenchmarkError(
            Failure.FLAG_IGNORED,
            f"{self._device.serial}: this benchmark_model does not know "
            f"{' '.join(flags)} and would time something else; leave the flag out or "
            "take another build (docs/android.md)",
        )

    def _keep_log(
        self, index: int, model: Model, text: str, *, suffix: str = ""
    ) -> str:
        """Write the raw log to this machine and return where."""
        serial = re.sub(r"[^\w.-]", "_", self._device.serial)
        stem = re.sub(r"[^\w.-]", "_", model.path.stem)
        name = f"{self._settings.stamp}_{serial}_{index:02d}_{stem}{suffix}.log"
        path = self._settings.log_dir / name
        write_text(path, text)
        return str(path)


def _report_left_behind(record: dict[str, Any], folder: Folder) -> None:
    record["left_behind"] = folder.path
    print(
        f"warning: {record['serial']}: {folder.path} could not be removed; when the "
        f"device is back: adb -s {record['serial']} shell rm -r {folder.path}",
        file=sys.stderr,
    )
