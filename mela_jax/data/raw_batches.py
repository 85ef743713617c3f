"""Batches before rendering: pictures, and how each is to be viewed.

What a batch holds follows from the seed and its number alone.
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
    num_views: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Fetch:
    """Return fetch(step) -> the step's batch, not yet rendered.

    Epoch e is a permutation of `indices` from (seed, e), cut into
    `len(indices) // batch_size` batches; the remainder waits for another epoch's order.
    Augmentation sees the image's row in `images`, the seed and the view: epoch e has
    view e, or e modulo `num_views`.

    Args:
      images: uint8[N, S, S, 3], RGB; may be mapped from the disk.
      labels: int[N], 1 for melanoma.
      indices: int[n], the rows to train on.
      image_size: side s of the views.
      batch_size: images in a step, over all processes.
      seed: not negative.
      settings: augmentation.
      num_views: views of an image that recur; 0 for a fresh one every epoch.
      process_index: which process this is.
      process_count: how many share a step. Process p gets rows p b to (p + 1) b of the
        step's batch, with b = batch_size / process_count.

    Returns:
      Function from a step's number to a dict: image uint8[b, S, S, 3], RGB; label
      int32[b]; index int32[b], the rows; view int32[b], which of their views; transform
      float32[b, 2, 3] and colour float32[b, 3, 4], the views as `draw_views` has them.

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
        view = epoch % num_views if num_views else epoch
        raw = _draw(
            images,
            chosen,
            view=view,
            image_size=image_size,
            seed=seed,
            settings=settings,
        )
        return {**raw, "label": labels[chosen]}

    return fetch


def make_view_fetch(
    images: np.ndarray,
    indices: np.ndarray,
    *,
    view: int,
    image_size: int,
    batch_size: int,
    seed: int,
    settings: AugmentSettings,
    process_index: int = 0,
    process_count: int = 1,
) -> tuple[Fetch, int]:
    """Return fetch(number) -> a batch of one view of every row, and their count.

    All batches together hold every row of `indices` once, in order. The last is filled
    up with the first row; `mask` tells.

    Args:
      images: uint8[N, S, S, 3], RGB; may be mapped from the disk.
      indices: int[n], the rows.
      view: number of the view, from 0.
      image_size: side s of the views.
      batch_size: images in a batch, over all processes.
      seed: that of the training.
      settings: augmentation.
      process_index: which process this is.
      process_count: how many share a batch, each taking its rows as in training.

    Returns:
      Function from a batch's number to a dict as that of `make_fetch`, with mask
      float32[b], 1 for an image, 0 for filling, in place of the label; and the number
      of batches.

    Raises:
      UserError: no images, or a batch size that does not divide among the processes.
    """
    rows_of, num_batches = make_row_fetch(
        indices,
        batch_size=batch_size,
        process_index=process_index,
        process_count=process_count,
    )

    def fetch(number: int) -> dict[str, np.ndarray]:
        rows, mask = rows_of(number)
        raw = _draw(
            images,
            rows,
            view=view,
            image_size=image_size,
            seed=seed,
            settings=settings,
        )
        return {**raw, "mask": mask}

    return fetch, num_batches


def make_row_fetch(
    indices: np.ndarray, *, batch_size: int, process_index: int, process_count: int
) -> tuple[Callable[[int], tuple[np.ndarray, np.ndarray]], int]:
    """Return rows_of(number) -> a batch's rows and mask, and the number of batches.

    All batches together hold every row of `indices` once, in order. The last is filled
    up with the first row; the mask tells.

    Args:
      indices: int[n], the rows.
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
    rows = np.asarray(indices, np.int64)
    if len(rows) == 0:
        raise UserError("there are no images to evaluate")
    num_batches = -(-len(rows) // batch_size)
    padded = np.full(num_batches * batch_size, rows[0])
    padded[: len(rows)] = rows
    mask = (np.arange(len(padded)) < len(rows)).astype(np.float32)

    def rows_of(number: int) -> tuple[np.ndarray, np.ndarray]:
        start = number * batch_size + process_index * share
        mine = slice(start, start + share)
        return padded[mine], mask[mine]

    return rows_of, num_batches


def _draw(
    images: np.ndarray,
    chosen: np.ndarray,
    *,
    view: int,
    image_size: int,
    seed: int,
    settings: AugmentSettings,
) -> dict[str, np.ndarray]:
    """Return some rows' pictures and how a view of each is to be rendered."""
    transforms, colours = draw_views(
        seed=seed,
        epoch=view,
        indices=chosen,
        settings=settings,
        size_in=images.shape[1],
        size_out=image_size,
    )
    index = chosen.astype(np.int32)
    return {
        "image": images[chosen],
        "index": index,
        "view": np.full_like(index, view),
        "transform": transforms,
        "colour": colours,
    }


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
