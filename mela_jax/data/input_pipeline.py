"""Batches for training and evaluation, the same on every machine and after a restart.

tf.data fetches and augments ahead of the step that computes. What a batch holds follows
from the seed and its number alone: nothing is shuffled in a buffer, nothing depends on
which thread is first, and any step can be the first.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from mela_jax.data.augment import AugmentSettings, augment_batch
from mela_jax.data.raw_batches import (
    Fetch,
    fetch_ahead,
    fill_up,
    make_fetch,
    make_view_fetch,
    process_share,
)
from mela_jax.errors import UserError

# TensorFlow prepares images on the CPU; by default it would claim all memory of every
# GPU, of which JAX then finds none. This must come before its first operation.
tf.config.set_visible_devices([], "GPU")

_THREADS = 2
_AHEAD = 3
# What every batch holds before rendering.
_RAW_TYPES = {
    "image": tf.uint8,
    "index": tf.int32,
    "view": tf.int32,
    "transform": tf.float32,
    "colour": tf.float32,
}


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
    if not render:
        return fetch_ahead(fetch, start=start_step, stop=num_steps)
    return _render(
        fetch,
        {**_RAW_TYPES, "label": tf.int32},
        start=start_step,
        stop=num_steps,
        share=process_share(batch_size, process_count),
        size_in=images.shape[1],
        size_out=image_size,
    )


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
    if not render:
        return fetch_ahead(fetch, start=0, stop=num_batches)
    return _render(
        fetch,
        {**_RAW_TYPES, "mask": tf.float32},
        start=0,
        stop=num_batches,
        share=process_share(batch_size, process_count),
        size_in=images.shape[1],
        size_out=image_size,
    )


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
    share = process_share(batch_size, process_count)
    if images.shape[1:] != (image_size, image_size, 3):
        raise UserError(
            f"images of {images.shape[1]} pixels cannot be evaluated at {image_size}"
        )
    padded, mask = fill_up(indices, batch_size)
    labels = np.asarray(labels, np.int32)

    def fetch(step: np.int64) -> tuple[np.ndarray, ...]:
        start = int(step) * batch_size + process_index * share
        chosen = padded[start : start + share]
        index = chosen.astype(np.int32)
        return images[chosen], labels[chosen], index, mask[start : start + share]

    def load(step: tf.Tensor) -> dict[str, tf.Tensor]:
        types = (tf.uint8, tf.int32, tf.int32, tf.float32)
        image, label, index, real = tf.numpy_function(fetch, [step], types)
        image = tf.cast(image, tf.float32)
        return {"image": image, "label": label, "index": index, "mask": real}

    return _iterate(load, start=0, stop=len(padded) // batch_size)


def _render(
    fetch: Fetch,
    types: dict[str, tf.DType],
    *,
    start: int,
    stop: int,
    share: int,
    size_in: int,
    size_out: int,
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the batches `start` to `stop - 1` of `fetch`, rendered ahead of use.

    `types` names what `fetch` gives; the draws of the views are used up.
    """

    def fetch_tuple(step: np.int64) -> tuple[np.ndarray, ...]:
        raw = fetch(int(step))
        return tuple(raw[name] for name in types)

    def load(step: tf.Tensor) -> dict[str, tf.Tensor]:
        values = tf.numpy_function(fetch_tuple, [step], list(types.values()))
        batch = dict(zip(types, values, strict=True))
        batch["image"] = augment_batch(
            tf.ensure_shape(batch["image"], [share, size_in, size_in, 3]),
            tf.ensure_shape(batch.pop("transform"), [share, 8]),
            tf.ensure_shape(batch.pop("colour"), [share, 3, 4]),
            size=size_out,
        )
        return batch

    return _iterate(load, start=start, stop=stop)


def _iterate(load: Any, *, start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
    steps = tf.data.Dataset.range(start, stop)
    batches = steps.map(load, num_parallel_calls=_THREADS, deterministic=True)
    return batches.prefetch(_AHEAD).as_numpy_iterator()
