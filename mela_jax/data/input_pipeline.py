"""Batches for training and evaluation, the same on every machine and after a restart.

A batch is a pure function of its number, which `stream` calls ahead of the step that
computes: nothing depends on which thread is first, and any step can be the first.
TensorFlow is imported when the first batch is asked for: see `lazy_tensorflow`.
"""

from collections.abc import Callable, Generator, Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from mela_jax import lazy_tensorflow
from mela_jax.data.sampling import make_order, make_sweep, process_share
from mela_jax.data.views import Views, aligned_empty, augment_batch, draw_views
from mela_jax.errors import UserError

Batch = dict[str, np.ndarray]
# Number of a batch -> the batch.
Fetch = Callable[[int], Batch]

_THREADS = 2


def make_train_batches(
    images: np.ndarray,
    labels: np.ndarray,
    indices: np.ndarray,
    *,
    views: Views,
    start_step: int,
    num_steps: int,
    **options: Any,
) -> Generator[Batch]:
    """Stream the batches of `make_train_fetch` from `start_step` to `num_steps - 1`."""
    fetch = make_train_fetch(images, labels, indices, views=views, **options)
    dtypes = _dtypes(views, label=np.int32)
    return stream(fetch, dtypes=dtypes, start=start_step, stop=num_steps)


def make_train_fetch(
    images: np.ndarray,
    labels: np.ndarray,
    indices: np.ndarray,
    *,
    views: Views,
    image_size: int,
    batch_size: int,
    seed: int,
    row_weights: np.ndarray | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> Fetch:
    """Return fetch(step) -> the step's training batch.

    Epoch e is cut from its order (`make_order`) into n // (batch_size / V) steps; the
    remainder waits for another epoch's order. An image that is shown for the t-th time
    (from 0; without weights, in epoch t) has its views t V to t V + V - 1, modulo
    `views.recurring`, one after the other in the batch.

    Args:
      images: uint8[N, S, S, 3], RGB; may be mapped from the disk.
      labels: int[N].
      indices: int[n], the rows to train on.
      views: which views; V is its `per_image`.
      image_size: side s of the views.
      batch_size: views in a step, over all processes: V of each image.
      seed: not negative.
      row_weights: float[n], not negative: an epoch draws n rows with replacement, in
        proportion to these. None: every row once.
      process_index: which process this is.
      process_count: how many share a step. Process p gets views p b to (p + 1) b of the
        step's batch, with b = batch_size / process_count.

    Returns:
      Function from a step's number to a dict: image float32[b, s, s, 3], RGB in
      [0, 255]; label int32[b / V]; index int32[b], the rows; view int32[b], which of
      their views. Row r is of image r // V, and upright where r mod V is 0. With
      `views.on_device`, the image is uint8[b / V, S, S, 3], and there are also
      transform float32[b, 2, 3] and colour float32[b, 3, 4], as `draw_views`.

    Raises:
      UserError: too few images for a batch, or a batch that does not divide into V
        views of each image or among the processes.
    """
    per_image = views.per_image
    if batch_size % per_image:
        raise UserError(
            f"a batch of {batch_size} does not divide into {per_image} views of each"
            " image; make the batch size a multiple"
        )
    images_per_step = batch_size // per_image
    share = process_share(images_per_step, process_count)
    rows = np.asarray(indices, np.int64)
    steps_per_epoch = len(rows) // images_per_step
    if steps_per_epoch == 0:
        raise UserError(
            f"{len(rows)} training images are too few for one batch of"
            f" {images_per_step}; lower the batch size"
        )
    labels = np.asarray(labels, np.int32)
    order = make_order(len(rows), seed=seed, weights=row_weights)

    def fetch(step: int) -> Batch:
        epoch, position = divmod(step, steps_per_epoch)
        start = position * images_per_step + process_index * share
        chosen, times = (part[start : start + share] for part in order(epoch))
        view = (times[:, None] * per_image + np.arange(per_image)).ravel()
        if views.recurring:
            view %= views.recurring
        batch = _show(
            images, rows[chosen], view, views=views, image_size=image_size, seed=seed
        )
        return {**batch, "label": labels[rows[chosen]]}

    return fetch


def make_view_batches(
    images: np.ndarray,
    indices: np.ndarray,
    *,
    view: int,
    views: Views,
    image_size: int,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Generator[Batch]:
    """Make batches that hold one view of every row of `indices` once, in order.

    It is the view that training with the same arguments shows under that number, from
    0. A batch is as of `make_train_fetch`, with one row for each image, and with the
    mask of `make_eval_batches` in place of the label.

    Raises:
      UserError: no images, or a batch size that does not divide among the processes.
    """

    def show(rows: np.ndarray) -> Batch:
        view_of_row = np.full(len(rows), view)
        return _show(
            images, rows, view_of_row, views=views, image_size=image_size, seed=seed
        )

    return _sweep(
        show,
        indices,
        dtypes=_dtypes(views),
        batch_size=batch_size,
        process_index=process_index,
        process_count=process_count,
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
) -> Generator[Batch]:
    """Make batches that hold every row of `indices` once, in order, unaugmented.

    The last batch is filled up with the first row. Images are not resized here; the
    arguments are otherwise those of `make_train_fetch`.

    Returns:
      Iterator as `stream` over dicts: image float32[b, s, s, 3], RGB in [0, 255]; label
      int32[b]; index int32[b], the rows; mask float32[b], 1 for an image, 0 for
      filling.

    Raises:
      UserError: no images, images of another size, or a batch size that does not divide
        among the processes.
    """
    if images.shape[1:] != (image_size, image_size, 3):
        raise UserError(
            f"images of {images.shape[1]} pixels cannot be evaluated at {image_size}"
        )
    labels = np.asarray(labels, np.int32)

    def show(rows: np.ndarray) -> Batch:
        return {
            "image": _copy(images, rows, np.float32),
            "label": labels[rows],
            "index": rows.astype(np.int32),
        }

    return _sweep(
        show,
        indices,
        dtypes={"image": np.float32, "label": np.int32, "index": np.int32},
        batch_size=batch_size,
        process_index=process_index,
        process_count=process_count,
    )


def _sweep(
    show: Callable[[np.ndarray], Batch],
    indices: np.ndarray,
    *,
    dtypes: Mapping[str, DTypeLike],
    **sharing: int,
) -> Generator[Batch]:
    """Stream batches of all rows in order, each with its mask, as `make_sweep`."""
    rows_of, num_batches = make_sweep(indices, **sharing)

    def fetch(number: int) -> Batch:
        rows, mask = rows_of(number)
        return {**show(rows), "mask": mask}

    dtypes = {**dtypes, "mask": np.float32}
    return stream(fetch, dtypes=dtypes, start=0, stop=num_batches)


def _copy(images: np.ndarray, rows: np.ndarray, dtype: DTypeLike) -> np.ndarray:
    """Return the images of rows int[b], in aligned memory."""
    pixels = aligned_empty((len(rows), *images.shape[1:]), dtype)
    for row, picture in zip(rows, pixels, strict=True):
        picture[:] = images[row]
    return pixels


def _show(
    images: np.ndarray,
    rows: np.ndarray,
    view: np.ndarray,
    *,
    views: Views,
    image_size: int,
    seed: int,
) -> Batch:
    """Return views int[b] of rows int[b / V] of the images, one after the other."""
    index = np.repeat(rows, len(view) // len(rows))
    transforms, colours = draw_views(
        seed=seed,
        view=view,
        indices=index,
        settings=views.settings,
        size_in=images.shape[1],
        size_out=image_size,
        per_image=views.per_image,
    )
    batch = {"index": index.astype(np.int32), "view": view.astype(np.int32)}
    if views.on_device:
        pictures = _copy(images, rows, np.uint8)
        return batch | {"image": pictures, "transform": transforms, "colour": colours}
    rendered = augment_batch(
        (images[row] for row in rows), transforms, colours, size=image_size
    )
    return batch | {"image": rendered}


def _dtypes(views: Views, **more: DTypeLike) -> dict[str, DTypeLike]:
    """Return the dtypes of a batch of `_show`, and more."""
    drawn = {"transform": np.float32, "colour": np.float32} if views.on_device else {}
    image = np.uint8 if views.on_device else np.float32
    return {"index": np.int32, "view": np.int32, "image": image, **drawn, **more}


def stream(
    fetch: Fetch, *, dtypes: Mapping[str, DTypeLike], start: int, stop: int
) -> Generator[Batch]:
    """Yield the batches of `start` to `stop - 1` in order, fetched ahead by tf.data.

    Two threads call `fetch`, a pure function, and one batch waits. Ending or closing
    the iterator ends the threads. What `fetch` raises is raised when its batch is next.
    The arrays, of the `dtypes` of each key, are not to be written to.
    """
    tf = lazy_tensorflow.import_tensorflow()
    # TensorFlow never lets go of a function that it may call. All that it keeps of this
    # one is emptied in the end.
    held = {"fetch": fetch}
    errors: dict[int, Exception] = {}

    def call(number: np.int64) -> list[np.ndarray]:
        try:
            batch = held["fetch"](int(number))
            return [batch[key] for key in dtypes]
        except Exception as error:
            # TensorFlow would make an UnknownError of it.
            errors[int(number)] = error
            raise

    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False
    options.threading.private_threadpool_size = _THREADS
    batches = iter(
        tf.data.Dataset.range(start, stop)
        .map(
            # A whole batch a call: a call for each view costs 1.6 times as much.
            lambda number: tf.numpy_function(call, [number], list(dtypes.values())),
            num_parallel_calls=_THREADS,
        )
        .prefetch(1)
        .with_options(options)
        .as_numpy_iterator()
    )
    try:
        for number in range(start, stop):
            try:
                batch = next(batches)
            except (tf.errors.OpError, StopIteration):
                raise errors[number] from None
            yield dict(zip(dtypes, batch, strict=True))
    finally:
        # Waits for the calls that still run.
        del batches
        held.clear()
        errors.clear()
