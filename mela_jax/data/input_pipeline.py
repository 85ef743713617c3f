"""Batches for training and evaluation, the same on every machine and after a restart.

tf.data fetches and augments ahead of the step that computes. What a batch holds follows
from the seed and its number alone: nothing is shuffled in a buffer, nothing depends on
which thread is first, and any step can be the first.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from mela_jax.data.augment import AugmentSettings, augment_batch, draw_views
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
    num_views: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Make the training batches of steps `start_step` to `num_steps - 1`.

    Epoch e is a permutation of `indices` from (seed, e), cut into
    `len(indices) // batch_size` batches; the remainder waits for another epoch's order.
    A step's batch does not depend on `start_step`. Augmentation sees the image's row in
    `images`, the seed and the view: epoch e has view e, or e modulo `num_views`.

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
    share = _share(batch_size, process_count)
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

    def choose(step: int) -> tuple[np.ndarray, int]:
        epoch, position = divmod(step, steps_per_epoch)
        start = position * batch_size + process_index * share
        view = epoch % num_views if num_views else epoch
        return order(epoch)[start : start + share], view

    load = _make_load_views(
        images, choose, seed=seed, settings=settings, share=share, size_out=image_size
    )
    return (
        {**batch, "label": labels[batch["index"]]}
        for batch in _iterate(load, start=start_step, stop=num_steps)
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
      process_index: which process this is.
      process_count: how many share a batch, each taking its rows as in training.

    Returns:
      Iterator over dicts: image float32[b, s, s, 3], RGB in [0, 255]; index int32[b],
      the rows; view int32[b]; mask float32[b], 1 for an image, 0 for filling.

    Raises:
      UserError: no images, or a batch size that does not divide among the processes.
    """
    share = _share(batch_size, process_count)
    padded, mask = _fill_up(indices, batch_size)

    def mine(step: int) -> slice:
        start = step * batch_size + process_index * share
        return slice(start, start + share)

    load = _make_load_views(
        images,
        lambda step: (padded[mine(step)], view),
        seed=seed,
        settings=settings,
        share=share,
        size_out=image_size,
    )
    batches = _iterate(load, start=0, stop=len(padded) // batch_size)
    return ({**b, "mask": mask[mine(step)]} for step, b in enumerate(batches))


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
    share = _share(batch_size, process_count)
    if images.shape[1:] != (image_size, image_size, 3):
        raise UserError(
            f"images of {images.shape[1]} pixels cannot be evaluated at {image_size}"
        )
    padded, mask = _fill_up(indices, batch_size)
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


def _make_load_views(
    images: np.ndarray,
    choose: Callable[[int], tuple[np.ndarray, int]],
    *,
    seed: int,
    settings: AugmentSettings,
    share: int,
    size_out: int,
) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """Return load(step), which renders what `choose` names: rows int[share], view."""
    size_in = images.shape[1]

    def fetch(step: np.int64) -> tuple[np.ndarray, ...]:
        chosen, view = choose(int(step))
        transforms, colours = draw_views(
            seed=seed,
            epoch=view,
            indices=chosen,
            settings=settings,
            size_in=size_in,
            size_out=size_out,
        )
        index = chosen.astype(np.int32)
        return images[chosen], index, np.full_like(index, view), transforms, colours

    def load(step: tf.Tensor) -> dict[str, tf.Tensor]:
        types = (tf.uint8, tf.int32, tf.int32, tf.float32, tf.float32)
        image, index, view, transforms, colours = tf.numpy_function(
            fetch, [step], types
        )
        image = tf.ensure_shape(image, [share, size_in, size_in, 3])
        transforms = tf.ensure_shape(transforms, [share, 8])
        colours = tf.ensure_shape(colours, [share, 3, 4])
        rendered = augment_batch(image, transforms, colours, size=size_out)
        return {"image": rendered, "index": index, "view": view}

    return load


def _fill_up(indices: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows for whole batches, filled up with the first, and 1 for the real."""
    rows = np.asarray(indices, np.int64)
    if len(rows) == 0:
        raise UserError("there are no images to evaluate")
    padded = np.full(-(-len(rows) // batch_size) * batch_size, rows[0])
    padded[: len(rows)] = rows
    return padded, (np.arange(len(padded)) < len(rows)).astype(np.float32)


def _share(batch_size: int, process_count: int) -> int:
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"a batch of {batch_size} does not divide among {process_count} processes"
        )
    return batch_size // process_count


def _iterate(load: Any, *, start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
    steps = tf.data.Dataset.range(start, stop)
    batches = steps.map(load, num_parallel_calls=_THREADS, deterministic=True)
    return batches.prefetch(_AHEAD).as_numpy_iterator()
