"""Fetching ahead by plain threads: what `tf.data` is compared with, and replaced by.

`benchmarks.gpu` runs where TensorFlow is not installed.
"""

import collections
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from mela_jax.data.input_pipeline import Batch, Fetch

_THREADS = 2
_AHEAD = 3


def fetch_ahead(fetch: Fetch, *, start: int, stop: int) -> Iterator[Batch]:
    """Yield the batches of `start` to `stop - 1` in order, fetched by threads."""
    with ThreadPoolExecutor(_THREADS) as threads:
        waiting: collections.deque = collections.deque()
        for number in range(start, stop):
            waiting.append(threads.submit(fetch, number))
            if len(waiting) > _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
