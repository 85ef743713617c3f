"""The main job in a process of its own: its time, its memory, what it logged."""

import dataclasses
import os
import re
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import CORES
from mela_jax.errors import UserError

REPOSITORY = Path(__file__).resolve().parent.parent
_POLL_SECONDS = 0.02


@dataclasses.dataclass(frozen=True)
class Finished:
    """What a process took.

    CPU seconds are those of all its threads, `started` is in seconds since 1970, and MB
    are 1e6 bytes of resident memory. `peak_own_mb` leaves out the pages of mapped
    files, which the system takes back when it needs them; a short peak is missed.
    """

    stdout: str
    started: float
    seconds: float
    cpu_seconds: float
    peak_mb: float
    peak_own_mb: float


def run_module(arguments: Sequence[str]) -> Finished:
    """Run `python -m arguments...` to its end in the repository.

    The caller should be a small process: on Linux a child's peak starts at what its
    parent held.

    Raises:
      UserError: it failed; with the last line that it wrote to stderr.
    """
    peak_own = 0.0
    with (
        tempfile.TemporaryFile("w+", errors="replace") as out,
        tempfile.TemporaryFile("w+", errors="replace") as err,
    ):
        started, start = time.time(), time.perf_counter()
        child = subprocess.Popen(
            [sys.executable, "-m", *arguments], cwd=REPOSITORY, stdout=out, stderr=err
        )
        try:
            while True:
                pid, status, usage = os.wait4(child.pid, os.WNOHANG)
                seconds = time.perf_counter() - start
                if pid:
                    child.returncode = os.waitstatus_to_exitcode(status)
                    break
                peak_own = max(peak_own, _own_mb(child.pid))
                time.sleep(_POLL_SECONDS)
        finally:
            # Also when this script is interrupted.
            if child.returncode is None:
                child.kill()
                child.wait()
        out.seek(0)
        err.seek(0)
        stdout, lines = out.read(), err.read().strip().splitlines() or ["no message"]
    if child.returncode:
        raise UserError(f"{arguments[0]} ended with {child.returncode}: {lines[-1]}")
    cpu_seconds = usage.ru_utime + usage.ru_stime
    peak = usage.ru_maxrss * 1024 / 1e6
    return Finished(stdout, started, seconds, cpu_seconds, peak, peak_own)


def _own_mb(pid: int) -> float:
    """Return the anonymous memory of a process in MB; 0 once it has ended."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 / 1e6 if found else 0.0


def run_student(workdir: Path, data: Path, fields: Mapping[str, Any]) -> Finished:
    """Run the main job of a student without a teacher on a data set "csv".

    `fields` are others of the config than those of `configs/tiny.py`. Jobs whose
    workdirs lie side by side share a cache of decoded images.
    """
    given = {
        "cpu_devices": CORES,
        "eval_batch_size": 32 * CORES,
        "baseline": False,
        "distill.enabled": False,
        "data.name": "csv",
        "data.dir": data,
        "data.cache_dir": workdir.parent / "cache",
        **fields,
    }
    flags = [f"--config.{name}={value}" for name, value in given.items()]
    job = ["mela_jax.main", "--config=configs/tiny.py", f"--workdir={workdir}"]
    return run_module([*job, *flags])


def read_events(scalars: Path) -> Iterator[Any]:
    """Yield the events of a folder, of a file being written to as far as it goes.

    Without TensorFlow, which TensorBoard's own readers import. A record is its length,
    a checksum, its content and another checksum. The folder need not be there yet.

    Yields:
      `tensorboard.compat.proto.event_pb2.Event`.
    """
    from tensorboard.compat.proto.event_pb2 import Event

    for file in sorted(scalars.glob("events.*")):
        content, start = file.read_bytes(), 0
        while start + 12 <= len(content):
            (length,) = struct.unpack_from("<Q", content, start)
            end = start + 12 + length
            if end + 4 > len(content):
                break
            yield Event.FromString(content[start + 12 : end])
            start = end + 4


def loss_times(workdir: Path) -> dict[int, float]:
    """Return step -> when the student's loss was written, in seconds since 1970."""
    return {
        event.step: event.wall_time
        for event in read_events(workdir / "student" / "scalars")
        for value in event.summary.value
        if value.tag == "train/loss"
    }
