"""A folder of our own on a device, which is gone when the work is done."""

import contextlib
import hashlib
import signal
import tempfile
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tflite_bench.adb import Device
from tflite_bench.failures import BenchmarkError, Failure

PARENT = "/data/local/tmp"


@dataclass(frozen=True)
class File:
    """A file of this machine that goes to the device."""

    path: Path
    sha256: str
    num_bytes: int


class Folder:
    """A new folder under the device's temporary folder.

    Use it as a context manager: it is made on entry, and removed on exit, whatever
    happened, after the program that `pid_file` names was stopped.

    Attributes:
        path: where it is on the device.
        pid_file: where the program that runs from it leaves its process id.
        left_behind: whether it could not be removed.
    """

    def __init__(self, device: Device):
        self._device = device
        self.path = f"{PARENT}/mela_bench_{uuid.uuid4().hex[:12]}"
        self.pid_file = f"{self.path}/pid"
        self.left_behind = False

    def __enter__(self) -> "Folder":
        try:
            made = self._device.shell(f"mkdir {self.path}")
        except BaseException:
            # It may have been made before the answer was lost.
            self._remove()
            raise
        if made.status != 0:
            is_full = "No space left" in made.output
            raise BenchmarkError(
                Failure.NO_SPACE if is_full else Failure.ADB_FAILED,
                f"{self._device.serial}: cannot make {self.path}: {made.last_line}",
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def push(self, file: File, name: str, *, seconds: float) -> None:
        """Copy a file into the folder and compare what arrived by SHA-256.

        Raises:
            BenchmarkError: it did not arrive, not whole or not in time.
        """
        device, target = self._device, f"{self.path}/{name}"
        device.push(file.path, target, seconds=seconds)
        answer = device.shell(f"sha256sum {target}", seconds=seconds)
        arrived = answer.output.split(" ")[0].strip()
        if answer.status != 0:
            # Devices before Android 8 may have no sha256sum: fetch the file back.
            with tempfile.TemporaryDirectory() as scratch:
                back = Path(scratch) / "back"
                device.pull(target, back, seconds=seconds)
                arrived = hashlib.sha256(back.read_bytes()).hexdigest()
        if arrived != file.sha256:
            raise BenchmarkError(
                Failure.CORRUPT_PUSH,
                f"{device.serial}: {file.path.name} did not arrive as it was sent "
                f"(SHA-256 {arrived[:12]} instead of {file.sha256[:12]}); run this "
                "again, and try another cable",
            )

    def stop_program(self) -> None:
        """Stop the program that runs from this folder, if one does.

        Raises:
            BenchmarkError: the device went away.
        """
        self._device.shell(self._kill)

    @property
    def _kill(self) -> str:
        return f"test ! -f {self.pid_file} || kill -9 $(cat {self.pid_file})"

    def _remove(self) -> None:
        remove = f"{self._kill}; rm -rf {self.path}; test ! -e {self.path}"
        with _uninterrupted():
            try:
                self.left_behind = self._device.shell(remove).status != 0
            except BenchmarkError:
                self.left_behind = True


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let neither a second Ctrl-C nor SIGTERM cut the cleaning up short."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
