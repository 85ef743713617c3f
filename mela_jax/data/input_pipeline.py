"""Batches for training and evaluation, the same on every machine and after a restart.

Threads fetch and augment ahead of the step that computes. What a batch holds follows
from the seed and its number alone: nothing is shuffled in a buffer, nothing depends on
which thread is first, and any step can be the first.
"""

from collections.abc import Iterator

import numpy as np

from mela_jax.data.augment import AugmentSettings, augment_batch
from mela_jax.data.raw_batches import (
    Fetch,
    fetch_ahead,
    make_fetch,
    make_row_fetch,
    make_view_fetch,
)
from mela_jax.errors import UserError


def make_train_batches(
    images: np.ndarray,
    labels: np.ndarray,
    indices: np.ndarray,
    *,
    image_size: int,
    batch_size: int,
    seed: int,
    start_step: int,
    num_steps: int,
    settings: AugmentSettings,
    num_views: int = 0,
    render: bool = True,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Make the training batches of steps `start_step` to `num_steps - 1`.

    Order and views are those of `make_fetch`: a step's batch does not depend on
    `start_step`.

    Args:
      images: uint8[N, S, S, 3], RGB; may be mapped from the disk.
      labels: int[N], 1 for melanoma.
      indices: int[n], the rows to train on.
      image_size: side s of the images in a batch.
      batch_size: images in a step, over all processes.
      seed: not negative.
      start_step: the first step wanted; 0 at the start of training.
      num_steps: the length of the whole training: the first step not wanted.
      settings: augmentation.
      num_views: views of an image that recur; 0 for a fresh one every epoch.
      render: render the views here. Otherwise the batches are those of `make_fetch`,
        and the training step renders them.
      process_index: which process this is.
      process_count: how many share a step. Process p gets rows p b to (p + 1) b of the
        step's batch, with b = batch_size / process_count.

    Returns:
      Iterator over dicts: image float32[b, s, s, 3], RGB in [0, 255]; label int32[b];
      index int32[b], the rows; view int32[b], which of their views.

    Raises:
      UserError: fewer images than `batch_size`, or one that does not divide among the
        processes.
    """
    fetch = make_fetch(
        images,
        labels,
        indices,
        image_size=image_size,
        batch_size=batch_size,
        seed=seed,
        settings=settings,
        num_views=num_views,
        process_index=process_index,
        process_count=process_count,
    )
    if render:
        fetch = _rendered(fetch, image_size=image_size)
    return fetch_ahead(fetch, start=start_step, stop=num_steps)


def make_view_batches(
    images: np.ndarray,
    indices: np.ndarray,
    *,
    view: int,
    image_size: int,
    batch_size: int,
    seed: int,
    settings: AugmentSettings,
    render: bool = True,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Make batches that hold one view of every row of `indices` once, in order.

    It is the view that training sees in the epoch of that number. The last batch is
    filled up with the first row; `mask` tells.

    Args:
      images: uint8[N, S, S, 3], RGB; may be mapped from the disk.
      indices: int[n], the rows.
      view: number of the view, from 0.
      image_size: side s of the images in a batch.
      batch_size: images in a batch, over all processes.
      seed: that of the training.
      settings: augmentation.
      render: render the view here. Otherwise the batches are those of
        `make_view_fetch`, for a device to render.
      process_index: which process this is.
      process_count: how many share a batch, each taking its rows as in training.

    Returns:
      Iterator over dicts: image float32[b, s, s, 3], RGB in [0, 255]; index int32[b],
      the rows; view int32[b]; mask float32[b], 1 for an image, 0 for filling.

    Raises:
      UserError: no images, or a batch size that does not divide among the processes.
    """
    fetch, num_batches = make_view_fetch(
        images,
        indices,
        view=view,
        image_size=image_size,
        batch_size=batch_size,
        seed=seed,
        settings=settings,
        process_index=process_index,
        process_count=process_count,
    )
    if render:
        fetch = _rendered(fetch, image_size=image_size)
    return fetch_ahead(fetch, start=0, stop=num_batches)


def make_eval_batches(
    images: np.ndarray,
    labels: np.ndarray,
    indices: np.ndarray,
    *,
    image_size: int,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Make batches that hold every row of `indices` once, in order, unaugmented.

    The last batch is filled up with the first row; `mask` tells.

    Args:
      images: uint8[N, s, s, 3], RGB; may be mapped from the disk.
      labels: int[N], 1 for melanoma.
      indices: int[n], the rows to evaluate.
      image_size: side s; images are not resized here.
      batch_size: images in a batch, over all processes.
      process_index: which process this is.
      process_count: how many share a batch, each taking its rows as in training.

    Returns:
      Iterator over dicts: image float32[b, s, s, 3], RGB in [0, 255]; label int32[b];
      index int32[b], the rows; mask float32[b], 1 for an image, 0 for filling.

    Raises:
      UserError: no images, images of another size, or a batch size that does not divide
        among the processes.
    """
    if images.shape[1:] != (image_size, image_size, 3):
        raise UserError(
            f"images of {images.shape[1]} pixels cannot be evaluated at {image_size}"
        )
    rows_of, num_batches = make_row_fetch(
        indices,
        batch_size=batch_size,
        process_index=process_index,
        process_count=process_count,
    )
    labels = np.asarray(labels, np.int32)

    def fetch(number: int) -> dict[str, np.ndarray]:
        rows, mask = rows_of(number)
        return {
            "image": images[rows].astype(np.float32),
            "label": labels[rows],
            "index": rows.astype(np.int32),
            "mask": mask,
        }

    return fetch_ahead(fetch, start=0, stop=num_batches)


def _rendered(fetch: Fetch, *, image_size: int) -> Fetch:
    """Return a fetch that renders the views; their draws are used up."""

    def fetch_rendered(number: int) -> dict[str, np.ndarray]:
        batch = fetch(number)
        batch["image"] = augment_batch(
            batch["image"],
            batch.pop("transform"),
            batch.pop("colour"),
            size=image_size,
        )
        return batch

    return fetch_rendered
