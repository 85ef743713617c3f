"""Measure several things in turn, so that none has the machine's better hour."""

import time
from collections.abc import Callable


def interleave(
    runs: dict[str, Callable[[], None]], *, rounds: int, warmup: int
) -> dict[str, list[float]]:
    """Call each of `runs` once a round, one after the other.

    Args:
      runs: name -> what to measure; it returns when its work is done, so whatever it
        computes asynchronously it waits for itself.
      rounds: calls that are measured, of each, at least 1.
      warmup: rounds before, which compile and fill caches and are not measured.

    Returns:
      name -> seconds of each measured call.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(warmup + rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if number >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds
