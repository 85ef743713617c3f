"""Times of things that compete, taken in turn."""

import statistics
import time
from collections.abc import Callable, Mapping


def interleave(
    runs: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 1
) -> dict[str, list[float]]:
    """Time each callable once a round, one after the other.

    What disturbs the machine for a while then disturbs all of them, and a ratio of
    medians survives it.

    Args:
      runs: name -> callable that returns when its work is done.
      rounds: timed calls of each.
      warmup: calls of each beforehand, which compile and are not counted.

    Returns:
      name -> seconds of each timed call, in order.
    """
    for _ in range(warmup):
        for run in runs.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def rates(seconds: Mapping[str, list[float]], images: int) -> dict[str, float]:
    """Return images/s by name, from the median of the times."""
    return {name: images / statistics.median(times) for name, times in seconds.items()}
