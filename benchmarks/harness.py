"""What the scripts share: flags, one-line errors, timing in turn."""

import argparse
import collections
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

# Before TensorFlow is imported: its notices say nothing here.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from mela_jax.errors import UserError
from mela_jax.memory import use_huge_pages

CORES = len(os.sched_getaffinity(0))
MODEL = "mobilenet_v3_small"
# Flags of a training step.
STEP = {"size": (224, "pixels"), "batch_size": (32, "images")}


def positive(text: str) -> int:
    """Read a whole number of 1 or more."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def positives(text: str) -> list[int]:
    """Read whole numbers of 1 or more between commas."""
    return [positive(part) for part in text.split(",")]


def names_of(choices: Sequence[str]) -> Callable[[str], list[str]]:
    """Return a function that reads names between commas, each one of `choices`."""

    def read(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in choices:
                known = ", ".join(choices)
                raise argparse.ArgumentTypeError(f"{name!r} is none of {known}")
        return names

    return read


def make_parser(doc: str, **numbers: tuple[int, str]) -> argparse.ArgumentParser:
    """Return a parser that describes itself by a module's docstring.

    `numbers` become flags that take a whole number: default and help.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, (default, what) in numbers.items():
        parser.add_argument(f"--{name}", type=positive, default=default, help=what)
    return parser


def run(main: Callable[[], None]) -> None:
    """Run a script with large memory pages; a user's mistake ends in one line."""
    use_huge_pages()
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")


def clock(run: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def interleave(
    runs: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 1
) -> dict[str, list[float]]:
    """Time each callable once a round, one after the other.

    What disturbs the machine for a while then disturbs all of them, and a ratio of
    medians survives it. Warm-up calls compile and are not counted; a callable returns
    when its work is done.

    Returns:
      name -> seconds of each timed call, in order.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(warmup + rounds):
        for name, run in runs.items():
            took = clock(run)
            if number >= warmup:
                seconds[name].append(took)
    return seconds


def rates(seconds: Mapping[str, list[float]], images: int) -> dict[str, float]:
    """Return images/s by name, from the median of the times."""
    return {name: images / statistics.median(times) for name, times in seconds.items()}


def noise_batch(*, batch_size: int, size: int) -> dict[str, np.ndarray]:
    """Return a batch of noise with every other label 1, always the same.

    "image" is float32[batch_size, size, size, 3] in [0, 255], "label" int32.
    """
    shape = (batch_size, size, size, 3)
    return {
        "image": np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32),
        "label": (np.arange(batch_size) % 2).astype(np.int32),
    }


def fetch_ahead(
    fetch: Callable[[int], Any], *, start: int, stop: int, threads: int = 2
) -> Iterator[Any]:
    """Yield fetch(start) to fetch(stop - 1) in order, fetched ahead by plain threads.

    `tf.data` is compared with this, and replaced by it where there is no TensorFlow.
    """
    with ThreadPoolExecutor(threads) as pool:
        waiting: collections.deque = collections.deque()
        for number in range(start, stop):
            waiting.append(pool.submit(fetch, number))
            if len(waiting) > threads + 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
