"""A frozen teacher's logits of the student's views, computed once and kept on disk.

A view is a function of (seed, view, row), so the teacher's logits of it outlive the
run. Each view has a file of its own, named after the hash of all that the numbers
depend on. No file is ever updated: another teacher, other pixels or another version of
the code give another name.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import io
import json
import signal
import time
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path

import jax
import numpy as np
from absl import logging

from mela_jax import checkpoint, parallel, steps
from mela_jax.atomic import hold_lock, write_atomically
from mela_jax.config import expand_user
from mela_jax.data.input_pipeline import make_view_batches
from mela_jax.data.views import Views
from mela_jax.distill.logits import check_are_logits
from mela_jax.errors import Stopped, UserError
from mela_jax.plan import Context
from mela_jax.saved_models import Model
from mela_jax.train import score_batches, stop_requests

# What model.json says of a network beyond the shapes of its variables.
_NETWORK = ("model", "pool", "hidden", "compute_dtype")
# Packages that draw the views, render them and run the network.
_PACKAGES = ("numpy", "opencv-python-headless", "jax", "jaxlib", "flax")
# Part of a file's name: raise it whenever the code would draw or render other views, or
# a network of the same model.json would answer otherwise.
VERSION = 2
# Images hashed at a time.
_CHUNK = 256


def cached_logits(
    teacher: Model, context: Context, views: Views, *, num_views: int, seed: int
) -> np.ndarray:
    """Return a teacher's logits of the training images' views 0 to num_views - 1.

    A view that is not on disk is computed in one pass, by the same evaluation-mode
    forward that a step with the teacher in it runs, and written whole or not at all. Of
    several runs that want a view at once, one computes it and the rest wait. Of several
    processes of a run, the main one reads and writes; all get the numbers.

    `views` and `seed` are the student's. Files are kept in config.data.cache_dir.

    Returns:
      float32[num_views, N, K] for the N rows of the data set; NaN outside the training
      rows, so that no batch can use one unseen.

    Raises:
      UserError: the folder cannot be written to, or the outputs are no logits.
      Stopped: after SIGTERM or Ctrl-C; finished views are kept.
    """
    config, images, mesh = context.config, context.images, context.mesh
    rows, batch_size = images.rows["train"], config.eval_batch_size
    directory = expand_user(config.data.cache_dir) / "teacher_logits"
    ingredients = {
        "teacher": checkpoint.fingerprint(teacher.variables),
        "network": {name: teacher.description[name] for name in _NETWORK},
        "pixels": pixels_fingerprint(images.train, rows),
        "image_size": images.image_size,
        "augment": dataclasses.asdict(views.settings),
        "views_per_image": views.per_image,
        # Both renderers show the same view, but for rounding.
        "renderer": "device" if views.on_device else "host",
        # Where views cannot differ, all seeds share them.
        "seed": seed if views.settings.is_random else None,
        # Rounding depends on these, and a repeated run must give the same student.
        "batch_size": batch_size,
        "devices": parallel.describe_devices(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "version": VERSION,
    }
    render = None
    if views.on_device:
        make = steps.make_render(image_size=images.image_size)
        render = parallel.map_batch(make, mesh)

    def run_teacher(view: int) -> np.ndarray:
        batches = make_view_batches(
            images.train,
            rows,
            view=view,
            image_size=images.image_size,
            batch_size=batch_size,
            seed=seed,
            views=views,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        with contextlib.closing(_until_stopped(batches)) as batches:
            return score_batches(
                teacher.eval_step,
                teacher.variables,
                batches,
                rows,
                mesh=mesh,
                render=render,
            )

    shape = (len(rows), images.classes.num_logits)
    logits = np.full((num_views, len(images.train), shape[1]), np.nan, np.float32)
    for view in range(num_views):
        key = json.dumps({**ingredients, "view": view}, sort_keys=True)
        path = directory / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"
        with _main_process_holds(path.with_suffix(".lock")):
            found = None
            if parallel.is_main_process():
                found = read_view(path, key=key, shape=shape)
            if parallel.any_process(found is not None):
                if found is None:
                    found = np.empty(shape, np.float32)
                logits[view, rows] = parallel.from_main_process(found)
                logging.info("teacher: logits of view %d from %s", view, path)
                continue
            began = time.monotonic()
            found = run_teacher(view)
            check_are_logits(found, source="teacher")
            if parallel.is_main_process():
                write_view(path, found, key=key)
            logits[view, rows] = found
            logging.info(
                "teacher: logits of view %d (of %d) of %d images in %.0f s, kept in %s",
                view,
                num_views,
                len(rows),
                time.monotonic() - began,
                path,
            )
    return logits


def pixels_fingerprint(images: np.ndarray, rows: np.ndarray) -> str:
    """Return the SHA-256 of the pictures of some rows, and of the rows' numbers.

    The pixels themselves, not the files' times: what the teacher would see is what
    counts. (A row's number is part of the seed of its views.)
    """
    digest = hashlib.sha256(f"{images.shape} {images.dtype}\n".encode())
    digest.update(np.asarray(rows, "<i8").tobytes())
    for start in range(0, len(rows), _CHUNK):
        digest.update(images[rows[start : start + _CHUNK]].tobytes())
    return digest.hexdigest()


def write_view(path: Path, logits: np.ndarray, *, key: str) -> None:
    """Write a view's logits float32[n, K] and `key`, what they depend on.

    Raises:
      UserError: the folder cannot be written to, or the disk is full.
    """
    content = io.BytesIO()
    np.savez(content, logits=logits, key=np.array(key))
    write_atomically(path, content.getvalue())


def read_view(path: Path, *, key: str, shape: tuple[int, int]) -> np.ndarray | None:
    """Return a view's logits float32[n, K], or None without a whole file of them.

    An .npz file carries a checksum of every array, so a damaged one is found out.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            logits, found = file["logits"], str(file["key"])
    except FileNotFoundError:
        return None
    # A damaged file can raise nearly anything from within zipfile and NumPy.
    except Exception as error:
        logging.warning("%s: is damaged (%s) and computed anew", path, error)
        return None
    same = (found, logits.shape, logits.dtype) == (key, shape, np.float32)
    if not same or not np.isfinite(logits).all():
        logging.warning("%s: is not what its name says and computed anew", path)
        return None
    return logits


@contextlib.contextmanager
def _main_process_holds(path: Path) -> Iterator[None]:
    """Hold the lock in the main process; the others wait until it has it.

    Raises:
      UserError: the lock's folder cannot be written to.
    """
    with contextlib.ExitStack() as stack:
        if parallel.is_main_process():
            try:
                stack.enter_context(hold_lock(path))
            except OSError as error:
                raise UserError(
                    f"cannot keep the teacher's logits in {path.parent}:"
                    f" {error.strerror or error}; free some space or name another"
                    " folder with --config.data.cache_dir"
                ) from error
        parallel.wait_for_all(path.name)
        yield


def _until_stopped(
    batches: Iterable[dict[str, np.ndarray]],
) -> Generator[dict[str, np.ndarray]]:
    """Pass batches on until SIGTERM or Ctrl-C."""
    with stop_requests() as stop_requested:
        for batch in batches:
            if parallel.any_process(bool(stop_requested())):
                raise Stopped(
                    "teacher: stopped while it scored the student's views; the same"
                    " command goes on from the last whole view",
                    stop_requested() or signal.SIGTERM,
                )
            yield batch
