"""Write a file whole or not at all, and one process at a time."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from mela_jax.errors import UserError


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write bytes to `path` so that a reader sees the old file or the new, never half.

    The folder is created where it is missing. The bytes go to a hidden file beside
    the target, reach the disk, and take the target's name in one step.

    Raises:
      UserError: the folder cannot be written to, or the disk is full.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write {target}: {error.strerror}; "
            "free some space or choose a folder you may write to"
        ) from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write text in UTF-8, whole or not at all, as `write_atomically` does bytes.

    A file's name that is no UTF-8 is written as the bytes that it has.
    """
    write_atomically(path, text.encode("utf-8", "surrogateescape"))


@contextlib.contextmanager
def hold_lock(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a lock that the system frees when the process ends, however it ends.

    `path` is the lock's own file, which stays; its folder is made where it is missing.

    Raises:
      BlockingIOError: the lock is not free, and `wait` is False.
      OSError: the file cannot be opened.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
