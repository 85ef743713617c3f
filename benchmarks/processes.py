"""Processes whose time and memory are measured from outside."""

import dataclasses
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mela_jax.errors import UserError

REPOSITORY = Path(__file__).resolve().parent.parent
_POLL_SECONDS = 0.02


@dataclasses.dataclass(frozen=True)
class Finished:
    """What a process took.

    Attributes:
      seconds: from its start to its end.
      cpu_seconds: of all its threads, which other programs disturb less.
      started: when, in seconds since 1970.
      peak_mb: largest resident memory in MB (1e6 bytes), pages of mapped files
        included.
      peak_own_mb: the same without pages of mapped files, which the system takes back
        when it needs them. Sampled, so that a shorter peak is missed.
      stdout: what it printed.
    """

    seconds: float
    cpu_seconds: float
    started: float
    peak_mb: float
    peak_own_mb: float
    stdout: str


def run_module(arguments: Sequence[str], *, log: Path) -> Finished:
    """Run `python -m arguments...` to its end in the repository.

    The caller should be a small process: on Linux a child's peak starts at what its
    parent held.

    Args:
      arguments: module and its arguments.
      log: file for what it writes to stderr.

    Raises:
      UserError: it failed; with its last line.
    """
    output = log.with_suffix(".out")
    peak_own = 0.0
    with log.open("wb") as err, output.open("wb") as out:
        started, start = time.time(), time.perf_counter()
        child = subprocess.Popen(
            [sys.executable, "-m", *arguments], cwd=REPOSITORY, stdout=out, stderr=err
        )
        try:
            while True:
                pid, status, usage = os.wait4(child.pid, os.WNOHANG)
                now = time.perf_counter() - start
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
    words = log.read_text(errors="replace").strip().splitlines() or ["no message"]
    if child.returncode:
        raise UserError(f"{arguments[0]} ended with {child.returncode}: {words[-1]}")
    return Finished(
        seconds=now,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        started=started,
        peak_mb=usage.ru_maxrss * 1024 / 1e6,
        peak_own_mb=peak_own,
        stdout=output.read_text(errors="replace"),
    )


def _own_mb(pid: int) -> float:
    """Return the anonymous memory of a process in MB; 0 once it has ended."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 / 1e6 if found else 0.0
