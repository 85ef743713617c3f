"""Training batches before rendering: pictures, labels, and how each is to be viewed.

What a step sees follows from the seed and the step's number alone. NumPy only: where
the training step renders the views itself, nothing else is needed.
"""

import collections
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from mela_jax.data.augment import AugmentSettings, draw_views
from mela_jax.errors import UserError

# Step -> its batch, as `make_fetch` has it.
Fetch = Callable[[int], dict[str, np.ndarray]]

_THREADS = 2
_AHEAD = 3


def make_fetch(
    images: np.ndarray,
    labels: np.ndarray,
    indices: np.ndarray,
    *,
    image_size: int,
    batch_size: int,
    seed: int,
    settings: AugmentSettings,
    process_index: int = 0,
    process_count: int = 1,
) -> Fetch:
    """Return fetch(step) -> the step's batch, not yet rendered.

    Epoch e is a permutation of `indices` from (seed, e), cut into
    `len(indices) // batch_size` batches; the remainder waits for another epoch's order.
    Augmentation sees the image's row in `images`, the seed and the epoch.

    Args:
      images: uint8[N, S, S, 3], RGB; may be mapped from the disk.
      labels: int[N], 1 for melanoma.
      indices: int[n], the rows to train on.
      image_size: side s of the views.
      batch_size: images in a step, over all processes.
      seed: not negative.
      settings: augmentation.
      process_index: which process this is.
      process_count: how many share a step. Process p gets rows p b to (p + 1) b of the
        step's batch, with b = batch_size / process_count.

    Returns:
      Function from a step's number to a dict: image uint8[b, S, S, 3], RGB; label
      int32[b]; index int32[b], the rows; transform float32[b, 8] and colour
      float32[b, 3, 4], the views as `draw_views` has them.

    Raises:
      UserError: fewer images than `batch_size`, or one that does not divide among the
        processes.
    """
    share = process_share(batch_size, process_count)
    rows = np.asarray(indices, np.int64)
    steps_per_epoch = len(rows) // batch_size
    if steps_per_epoch == 0:
        raise UserError(
            f"{len(rows)} training images are too few for one batch of {batch_size}; "
            "lower the batch size"
        )
    labels = np.asarray(labels, np.int32)

    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> np.ndarray:
        rng = np.random.default_rng(np.random.SeedSequence([seed, epoch]))
        return rng.permutation(rows)

    def fetch(step: int) -> dict[str, np.ndarray]:
        epoch, position = divmod(step, steps_per_epoch)
        start = position * batch_size + process_index * share
        chosen = order(epoch)[start : start + share]
        transforms, colours = draw_views(
            seed=seed,
            epoch=epoch,
            indices=chosen,
            settings=settings,
            size_in=images.shape[1],
            size_out=image_size,
        )
        return {
            "image": images[chosen],
            "label": labels[chosen],
            "index": chosen.astype(np.int32),
            "transform": transforms,
            "colour": colours,
        }

    return fetch


def fetch_ahead(
    fetch: Fetch, *, start: int, stop: int
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the batches of steps `start` to `stop - 1` in order, fetched by threads."""
    with ThreadPoolExecutor(_THREADS) as threads:
        waiting: collections.deque = collections.deque()
        for step in range(start, stop):
            waiting.append(threads.submit(fetch, step))
            if len(waiting) > _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def process_share(batch_size: int, process_count: int) -> int:
    """Return how many images of a batch are one process's.

    Raises:
      UserError: when they do not divide evenly.
    """
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"a batch of {batch_size} does not divide among {process_count} processes"
        )
    return batch_size // process_count
