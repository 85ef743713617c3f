"""Which rows of a data set, and which of their views, make up a batch.

What a batch holds follows from the seed and its number alone: nothing is shuffled in a
buffer, and any step can be the first.
"""

import functools
from collections.abc import Callable

import numpy as np

from mela_jax.errors import UserError


def make_order(
    num_rows: int, *, seed: int, weights: np.ndarray | None = None
) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
    """Return order(epoch) -> which rows an epoch shows, and the how-manieth time each.

    Without weights, an epoch is a permutation, and the time its number. With them, rows
    are drawn with replacement, each with a probability in proportion to its weight, and
    a row's times are counted from 0 over all epochs: it does not show twice what
    belongs to one time, such as its view.

    Args:
      num_rows: n.
      seed: not negative; an epoch's order follows from (seed, epoch).
      weights: float[n], not negative.

    Returns:
      Function from an epoch's number to int64[n], positions among the rows, and
      int64[n], the times.
    """
    chances = None if weights is None else np.asarray(weights, np.float64)
    if chances is not None:
        chances = chances / chances.sum()

    def draw(epoch: int) -> np.ndarray:
        rng = np.random.default_rng(np.random.SeedSequence([seed, epoch]))
        if chances is None:
            return rng.permutation(num_rows)
        return rng.choice(num_rows, num_rows, p=chances)

    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> tuple[np.ndarray, np.ndarray]:
        drawn = draw(epoch)
        if chances is None:
            return drawn, np.full(num_rows, epoch)
        times = np.empty(num_rows, np.int64)
        seen = np.zeros(num_rows, np.int64)
        for earlier in range(epoch):
            seen += np.bincount(draw(earlier), minlength=num_rows)
        by_row = np.argsort(drawn, kind="stable")
        in_order = drawn[by_row]
        first = np.searchsorted(in_order, in_order)
        times[by_row] = seen[in_order] + np.arange(num_rows) - first
        return drawn, times

    return order


def process_share(num: int, process_count: int) -> int:
    """Return how many images of a batch are one process's.

    Raises:
      UserError: when they do not divide evenly.
    """
    if num < 1 or num % process_count:
        raise UserError(
            f"a batch of {num} images does not divide among {process_count} processes"
        )
    return num // process_count


def make_sweep(
    rows: np.ndarray, *, batch_size: int, process_index: int, process_count: int
) -> tuple[Callable[[int], tuple[np.ndarray, np.ndarray]], int]:
    """Return rows_of(number) -> a batch's rows and mask, and the number of batches.

    All batches together hold every row once, in order. The last is filled up with the
    first row; the mask tells.

    Args:
      rows: int[n].
      batch_size: images in a batch, over all processes.
      process_index: which process this is.
      process_count: how many share a batch, each taking its rows as in training.

    Returns:
      Function from a batch's number to int64[b], the rows, and float32[b], 1 for an
      image, 0 for filling; and the number of batches.

    Raises:
      UserError: no rows, or a batch size that does not divide among the processes.
    """
    share = process_share(batch_size, process_count)
    if len(rows) == 0:
        raise UserError("there are no images to evaluate")
    num_batches = -(-len(rows) // batch_size)
    padded = np.full(num_batches * batch_size, rows[0], np.int64)
    padded[: len(rows)] = rows
    mask = (np.arange(len(padded)) < len(rows)).astype(np.float32)

    def rows_of(number: int) -> tuple[np.ndarray, np.ndarray]:
        start = number * batch_size + process_index * share
        mine = slice(start, start + share)
        return padded[mine], mask[mine]

    return rows_of, num_batches
