"""Decoded squares of all images in one file, so that training never decodes.

An image of 128x128 pixels takes 48 KiB, all of HAM10000 half a gigabyte; the file is
mapped, not read. NumPy and Pillow only.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mela_jax.atomic import hold_lock
from mela_jax.data.image_io import BadImageError, load_square
from mela_jax.data.records import Record
from mela_jax.errors import UserError

# Part of a cache's name: raise it whenever the same file would give other pixels.
FORMAT_VERSION = 1

# Images in memory at once while decoding.
_CHUNK = 128

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ImageCache:
    """All images of a data set, in the order of its records.

    Attributes:
      images: uint8[N, size, size, 3], RGB in [0, 255], mapped from the disk and
        read-only. Rows that could not be read are black.
      readable: bool[N].
      bad: for every row that could not be read, one line with the file and the reason.
    """

    images: np.ndarray
    readable: np.ndarray
    bad: list[str]


def open_cache(
    records: Sequence[Record],
    *,
    size: int,
    crop: str,
    directory: str | os.PathLike[str],
    on_bad_image: str,
) -> ImageCache:
    """Open the decoded images, decoding them first where that has not been done.

    The cache is named after the files' paths, sizes and times of change, and after
    `size` and `crop`: a changed image means another cache. It appears whole or not at
    all; of several processes that want it at once, one builds it and the rest wait.

    Args:
      records: images, in the order of the rows wanted.
      size: side of the squares in pixels.
      crop: "center" or "pad", as `image_io.to_square`.
      directory: where caches are kept; created where it is missing.
      on_bad_image: "error", or "skip" to count and log files that cannot be read.

    Returns:
      The cache.

    Raises:
      UserError: the disk is full or not writable; or, with "error", files cannot be
        read: their count and the first five.
      ValueError: `on_bad_image` is neither.
    """
    if on_bad_image not in ("error", "skip"):
        raise ValueError(f"on_bad_image is {on_bad_image!r}; it may be error or skip")
    root = Path(directory).expanduser()
    target = root / fingerprint(records, size=size, crop=crop)
    megabytes = len(records) * size * size * 3 / 1e6
    try:
        root.mkdir(parents=True, exist_ok=True)
        with hold_lock(target.with_suffix(".lock")):
            cache = _open(target, num_images=len(records), size=size)
            if cache is None:
                _build(target, records, size=size, crop=crop)
                cache = _open(target, num_images=len(records), size=size)
    except OSError as error:
        raise UserError(
            f"cannot keep decoded images in {root}: {error.strerror or error}; "
            f"{megabytes:.0f} MB are needed: free some space or name another folder "
            "with --config.data.cache_dir"
        ) from error
    if cache is None:
        raise UserError(f"{target} is damaged as soon as written; check the disk")
    if cache.bad:
        if on_bad_image == "error":
            raise UserError(
                f"{len(cache.bad)} of {len(records)} images cannot be read: "
                f"{'; '.join(cache.bad[:5])}. Replace them, or leave them out with "
                "--config.data.on_bad_image=skip"
            )
        _logger.warning(
            "left out %d of %d images that cannot be read: %s",
            len(cache.bad),
            len(records),
            "; ".join(cache.bad[:5]),
        )
    return cache


def fingerprint(records: Sequence[Record], *, size: int, crop: str) -> str:
    """Return the name of the cache of these files at this size, 32 hexadecimal digits.

    A file that is absent counts as one of no size.
    """
    digest = hashlib.sha256(f"{FORMAT_VERSION} {size} {crop}\n".encode())
    for record in records:
        path = os.path.abspath(record.path)
        try:
            status = os.stat(path)
            state = f"{status.st_size} {status.st_mtime_ns}"
        except OSError:
            state = "absent"
        digest.update(f"{path}\0{state}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:32]


def _open(target: Path, *, num_images: int, size: int) -> ImageCache | None:
    """Open a cache, or return None where there is none that is whole."""
    try:
        bad = json.loads((target / "bad.json").read_text())
        images = np.load(target / "images.npy", mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if images.shape != (num_images, size, size, 3) or images.dtype != np.uint8:
        return None
    readable = np.ones(num_images, bool)
    readable[[row for row, _ in bad]] = False
    return ImageCache(images=images, readable=readable, bad=[why for _, why in bad])


def _build(target: Path, records: Sequence[Record], *, size: int, crop: str) -> None:
    """Decode all images into the folder `target`. The caller holds the lock."""
    # What a process left that was killed while it held the lock.
    for leftover in target.parent.glob(f".{target.name}-*"):
        shutil.rmtree(leftover)
    shutil.rmtree(target, ignore_errors=True)
    _logger.info("decoding %d images to %dx%d pixels", len(records), size, size)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        bad = []
        # Not through a mapping: on a full disk, writing to one kills the process.
        with (temporary / "images.npy").open("wb") as file:
            shape = (len(records), size, size, 3)
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            squares = _decode(records, size=size, crop=crop)
            for row, square in enumerate(squares):
                if isinstance(square, str):
                    bad.append((row, square))
                    square = np.zeros((size, size, 3), np.uint8)
                file.write(square.tobytes())
            file.flush()
            os.fsync(file.fileno())
        (temporary / "bad.json").write_text(json.dumps(bad))
        os.rename(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _decode(
    records: Sequence[Record], *, size: int, crop: str
) -> Iterator[np.ndarray | str]:
    """Yield each image as uint8[size, size, 3], or why it cannot be read."""

    def decode(record: Record) -> np.ndarray | str:
        try:
            return load_square(record.path, size=size, crop=crop)
        except BadImageError as error:
            return str(error)

    # Threads suffice: Pillow decodes and resizes without the interpreter's lock.
    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(records), _CHUNK):
            yield from pool.map(decode, records[start : start + _CHUNK])
