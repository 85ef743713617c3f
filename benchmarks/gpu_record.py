"""What `benchmarks.gpu` keeps of a run, so that one that is stopped is not lost."""

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks import STARTED
from benchmarks.harness import clock
from mela_jax.atomic import write_atomically

Run = Callable[[], object]


class Record:
    """What a run has done so far.

    Each phase is printed with the seconds since the start. After each, everything is
    written to the JSON file `path`, if any: `facts`, the phases and, of each
    competitor, the seconds of its warm-up calls and of its timed calls.
    """

    def __init__(self, path: str | None = None, **facts: Any):
        self._path = path
        self._calls: dict[str, dict[str, Any]] = {}
        self._content = {**facts, "phases": [], "calls": self._calls}

    def say(self, phase: str, **facts: Any) -> None:
        """Say that a phase is over, and keep it with its facts."""
        seconds = round(time.perf_counter() - STARTED, 1)
        print(f"{seconds:7.1f} s  {phase}", flush=True)
        self._content.update(facts)
        self._content["phases"].append([seconds, phase])
        if self._path:
            text = json.dumps(self._content, indent=2) + "\n"
            write_atomically(self._path, text.encode())

    def time(
        self,
        makers: Mapping[str, tuple[Callable[[], Run], float, str]],
        rounds: int,
        warmup: int,
    ) -> dict[str, list[float]]:
        """Time runs in turn and return the seconds of each timed call.

        Each is made and warmed up before the next one is made. `makers` also say how
        much a call does, and in which unit.
        """
        runs: dict[str, Run] = {}
        for name, (make, work, unit) in makers.items():
            self._calls[name] = {"work": work, "unit": unit}
            self._calls[name] |= {"warmup_seconds": [], "seconds": []}
            runs[name] = make()
            self.say(f"{name}: made, not compiled")
            for _ in range(warmup):
                self._call(name, runs[name], "warmup_seconds")
        for _ in range(rounds):
            for name, run in runs.items():
                self._call(name, run, "seconds")
        return {name: self._calls[name]["seconds"] for name in runs}

    def _call(self, name: str, run: Run, kind: str) -> None:
        calls = self._calls[name]
        seconds = clock(run)
        calls[kind].append(seconds)
        rate = f"{calls['work'] / seconds:.4g} {calls['unit']}/s"
        word = "timed" if kind == "seconds" else "warm-up"
        self.say(f"{name}: {word} call took {seconds:.2f} s, {rate}")
