"""The smallest whole job, in processes of its own, for the end-to-end tests."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from configs import tiny
from mela_jax.evaluation.calibration import Calibration, write_calibration

REPOSITORY = Path(__file__).resolve().parent.parent
# Seconds for one process or one event in it. Only a machine that hangs comes near.
TIMEOUT = 600.0


@dataclasses.dataclass(frozen=True)
class Finished:
    """A process that has ended."""

    returncode: int
    stdout: str
    stderr: str

    def error_line(self, *, returncode: int = 2) -> str:
        """Return its one line of complaint, having checked that there is just one."""
        assert self.returncode == returncode, self.stderr
        assert "Traceback" not in self.stderr + self.stdout, self.stderr
        lines = [x for x in self.stderr.splitlines() if x.startswith("error:")]
        assert len(lines) == 1, self.stderr
        return lines[0]


class Running:
    """A process whose output goes to files."""

    def __init__(self, command: list[str], *, log: Path, environment: dict[str, str]):
        self._out, self._err = log.with_suffix(".out"), log.with_suffix(".err")
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._process = subprocess.Popen(
                command, cwd=REPOSITORY, env=environment, stdout=out, stderr=err
            )

    @property
    def stderr(self) -> str:
        """What it has said so far."""
        return self._err.read_text(errors="replace")

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def wait_for(self, event: Callable[[], object]) -> None:
        """Poll for an event as fast as may be; the process must not end before."""
        deadline = time.monotonic() + TIMEOUT
        while not event():
            if self._process.poll() is not None and not event():
                raise AssertionError(f"it ended before that: {self.stderr[-3000:]}")
            if time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"it never happened: {self.stderr[-3000:]}")
            time.sleep(0.0005)

    def wait_for_line(self, pattern: str) -> None:
        """Poll for a line of the log."""
        self.wait_for(lambda: re.search(pattern, self.stderr, re.MULTILINE))

    def terminate(self) -> Finished:
        """Ask it to stop, and wait until it has."""
        self._process.send_signal(signal.SIGTERM)
        return self.finish()

    def kill(self) -> None:
        """Kill it as a power cut would."""
        self._process.kill()
        self._process.wait()

    def finish(self) -> Finished:
        """Wait for its end."""
        try:
            code = self._process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        return Finished(code, self._out.read_text(errors="replace"), self.stderr)


@dataclasses.dataclass(frozen=True)
class Job:
    """The job of configs/tiny.py; all its runs share images and compiled programs.

    Attributes:
      root: folder of everything that the tests leave behind.
    """

    root: Path

    @property
    def data(self) -> Path:
        """Folder of the made-up lesions."""
        return self.root / "phantom"

    @property
    def cache(self) -> Path:
        """Folder of the decoded images and of the compiled programs."""
        return self.root / "cache"

    def config(self) -> ConfigDict:
        """Return the configuration of the runs."""
        config = tiny.get_config()
        config.data.dir, config.data.cache_dir = str(self.data), str(self.cache)
        return config

    def start(self, workdir: Path, *overrides: str) -> Running:
        """Start `mela_jax.main`; `overrides` are further words of its command line."""
        return self.start_module(
            "mela_jax.main",
            "--config=configs/tiny.py",
            f"--workdir={workdir}",
            f"--config.data.dir={self.data}",
            f"--config.data.cache_dir={self.cache}",
            *overrides,
        )

    def run(self, workdir: Path, *overrides: str) -> Finished:
        """Run `mela_jax.main` to its end."""
        return self.start(workdir, *overrides).finish()

    def start_module(self, module: str, *arguments: str) -> Running:
        """Start `python -m module arguments...`."""
        number = f"{os.getpid()}-{len(list(self.root.glob('log-*.err')))}"
        return Running(
            [sys.executable, "-m", module, *arguments],
            log=self.root / f"log-{number}.log",
            environment=os.environ
            | {
                # Of this code alone: the folder is the session's own.
                "JAX_ENABLE_COMPILATION_CACHE": "true",
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
            },
        )

    def run_module(self, module: str, *arguments: str) -> Finished:
        """Run `python -m module arguments...` to its end."""
        return self.start_module(module, *arguments).finish()


def make_up_calibration(workdir: Path) -> None:
    """Give the student of a finished run a calibration.

    It has none: the network is hardly trained, and its logits too much alike.
    """
    report = workdir / "report" / "metrics.json"
    metrics = json.loads(report.read_text())
    figures = metrics["models"]["student"]
    threshold = figures["val"]["operating_point"]["threshold"]
    made_up = Calibration("platt", 0.8, -0.3, threshold, threshold)
    write_calibration(workdir / "student" / "calibration.json", made_up, about={})
    figures["uncalibrated"] = None
    report.write_text(json.dumps(metrics))
