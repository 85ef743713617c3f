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
from mela_jax.data.raw_batches import fetch_ahead, make_fetch, process_share
from mela_jax.errors import UserError

# TensorFlow prepares images on the CPU; by default it would claim all memory of every
# GPU, of which JAX then finds none. This must come before its first operation.
tf.config.set_visible_devices([], "GPU")

_THREADS = 2
_AHEAD = 3


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
      render: render the views here. Otherwise the batches are those of `make_fetch`,
        and the training step renders them.
      process_index: which process this is.
      process_count: how many share a step. Process p gets rows p b to (p + 1) b of the
        step's batch, with b = batch_size / process_count.

    Returns:
      Iterator over dicts: image float32[b, s, s, 3], RGB in [0, 255]; label int32[b];
      index int32[b], the rows.

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
        process_index=process_index,
        process_count=process_count,
    )
    if not render:
        return fetch_ahead(fetch, start=start_step, stop=num_steps)
    share = process_share(batch_size, process_count)
    size_in = images.shape[1]

    def fetch_tuple(step: np.int64) -> tuple[np.ndarray, ...]:
        raw = fetch(int(step))
        names = ("image", "label", "index", "transform", "colour")
        return tuple(raw[name] for name in names)

    def load(step: tf.Tensor) -> dict[str, tf.Tensor]:
        types = (tf.uint8, tf.int32, tf.int32, tf.float32, tf.float32)
        image, label, index, transforms, colours = tf.numpy_function(
            fetch_tuple, [step], types
        )
        image = tf.ensure_shape(image, [share, size_in, size_in, 3])
        transforms = tf.ensure_shape(transforms, [share, 8])
        colours = tf.ensure_shape(colours, [share, 3, 4])
        view = augment_batch(image, transforms, colours, size=image_size)
        return {"image": view, "label": label, "index": index}

    return _iterate(load, start=start_step, stop=num_steps)


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
    rows = np.asarray(indices, np.int64)
    if len(rows) == 0:
        raise UserError("there are no images to evaluate")
    if images.shape[1:] != (image_size, image_size, 3):
        raise UserError(
            f"images of {images.shape[1]} pixels cannot be evaluated at {image_size}"
        )
    labels = np.asarray(labels, np.int32)
    num_batches = -(-len(rows) // batch_size)
    padded = np.full(num_batches * batch_size, rows[0])
    padded[: len(rows)] = rows
    mask = (np.arange(len(padded)) < len(rows)).astype(np.float32)

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

    return _iterate(load, start=0, stop=num_batches)


def _iterate(load: Any, *, start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
    steps = tf.data.Dataset.range(start, stop)
    batches = steps.map(load, num_parallel_calls=_THREADS, deterministic=True)
    return batches.prefetch(_AHEAD).as_numpy_iterator()
