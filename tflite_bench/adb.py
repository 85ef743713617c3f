"""Drive the ``adb`` command: which devices there are, run, push and pull.

What adb says is read, not only its exit status: ``adb connect`` to nobody and
``adb devices`` with no device both exit with 0, and so does ``adb shell`` on devices
older than Android 7 whatever the command did. So every command on a device is followed
by a line of our own with its exit status; where that line is missing, the connection
broke.
"""

import os
import shutil
import signal
import subprocess
import uuid
from dataclasses import dataclass
from pathlib import Path

from tflite_bench.failures import BenchmarkError, Failure

ANSWER_SECONDS = 30.0  # for anything but a push and the benchmark itself
READY = "device"


@dataclass(frozen=True)
class Answer:
    """What a command printed, stdout and stderr, and its exit status.

    ``status`` is None where the command was stopped because its time was up.
    """

    status: int | None
    output: str
    errors: str = ""

    @property
    def last_line(self) -> str:
        """The last line that says something, of both streams."""
        said = [line.strip() for line in (self.output + self.errors).splitlines()]
        return next((line for line in reversed(said) if line), "nothing")


class Adb:
    """The adb client on this machine. It starts its server where none runs."""

    def __init__(self) -> None:
        found = shutil.which("adb")
        if found is None:
            raise BenchmarkError(
                Failure.NO_ADB,
                "adb is not installed or not on PATH; install it (Debian and Ubuntu: "
                "apt-get install adb)",
            )
        self._program = found

    def run(self, *arguments: str, seconds: float = ANSWER_SECONDS) -> Answer:
        """Run adb with `arguments`; it is killed after `seconds`."""
        try:
            process = subprocess.Popen(
                [self._program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        except OSError as error:
            raise BenchmarkError(
                Failure.ADB_FAILED, f"cannot run {self._program}: {error.strerror}"
            ) from error
        status: int | None
        try:
            output, errors = process.communicate(timeout=seconds)
            status = process.returncode
        except subprocess.TimeoutExpired:
            process.kill()
            output, errors = process.communicate()
            status = None
        except BaseException:
            process.kill()
            process.wait()
            raise
        # Old devices end lines as terminals do.
        return Answer(
            status,
            output.decode(errors="replace").replace("\r\n", "\n"),
            errors.decode(errors="replace").replace("\r\n", "\n"),
        )

    def devices(self) -> dict[str, str]:
        """Return serial -> state, as adb words it, of every device it knows.

        Raises:
            BenchmarkError: adb or its server does not work.
        """
        answer = self.run("devices")
        if answer.status != 0 or "List of devices attached" not in answer.output:
            raise BenchmarkError(
                Failure.ADB_FAILED,
                f"`adb devices` failed: {answer.last_line}; try `adb kill-server` and "
                "run this again",
            )
        listed = (line.split("\t", 1) for line in answer.output.splitlines())
        return {pair[0].strip(): pair[1].strip() for pair in listed if len(pair) == 2}

    def connect(self, address: str) -> None:
        """Reach a device over the network, ``host:port``.

        Raises:
            BenchmarkError: nobody answers there, or the device does not trust this
                computer.
        """
        answer = self.run("connect", address)
        said = answer.output + answer.errors
        if f"connected to {address}" in said:
            return
        if "failed to authenticate" in said:
            raise unready(address, "unauthorized")
        raise BenchmarkError(
            Failure.NO_DEVICE, f"no device at {address}: adb says {answer.last_line}"
        )


class Device:
    """One device that adb has listed as ready.

    Attributes:
        serial: what ``adb devices`` calls it.
    """

    def __init__(self, adb: Adb, serial: str):
        self._adb = adb
        self.serial = serial

    def shell(self, command: str, *, seconds: float = ANSWER_SECONDS) -> Answer:
        """Run a shell command on the device; its stderr comes among its stdout.

        Returns:
            the answer, whose status is None where `seconds` were not enough. Then the
            command may still run on the device.

        Raises:
            BenchmarkError: the device went away meanwhile.
        """
        marker = f"status-{uuid.uuid4().hex}"
        answer = self._adb.run(
            *("-s", self.serial, "shell"),
            f"({command}) 2>&1; s=$?; echo; echo {marker} $s",
            seconds=seconds,
        )
        output, found, status = answer.output.rpartition(f"\n{marker} ")
        if found and status.strip().isdigit():
            return Answer(int(status), output)
        if answer.status is None and self.state() == READY:
            return Answer(None, answer.output)
        raise self._lost(answer)

    def push(self, source: Path, target: str, *, seconds: float) -> None:
        """Copy a file to the device.

        Raises:
            BenchmarkError: no space, no time, or the device went away.
        """
        answer = self._adb.run(
            *("-s", self.serial, "push", str(source), target), seconds=seconds
        )
        if answer.status == 0:
            return
        if "No space left" in answer.output + answer.errors:
            raise BenchmarkError(
                Failure.NO_SPACE,
                f"{self.serial}: no space left for {source.name}; free some on the "
                "device",
            )
        if self.state() != READY:
            raise self._lost(answer)
        if answer.status is None:
            raise BenchmarkError(
                Failure.TIMEOUT,
                f"{self.serial}: pushing {source.name} took more than {seconds:g} s",
            )
        raise BenchmarkError(
            Failure.ADB_FAILED,
            f"{self.serial}: cannot push {source.name}: {answer.last_line}",
        )

    def pull(self, source: str, target: Path, *, seconds: float) -> None:
        """Copy a file that we made on the device to this machine.

        Raises:
            BenchmarkError: it cannot be read, or the device went away.
        """
        answer = self._adb.run(
            *("-s", self.serial, "pull", source, str(target)), seconds=seconds
        )
        if answer.status == 0 and target.is_file():
            return
        if self.state() != READY:
            raise self._lost(answer)
        raise BenchmarkError(
            Failure.ADB_FAILED,
            f"{self.serial}: cannot pull {source}: {answer.last_line}",
        )

    def state(self) -> str:
        """Return what ``adb devices`` says of it now, "gone" where it is not listed."""
        return self._adb.devices().get(self.serial, "gone")

    def _lost(self, answer: Answer) -> BenchmarkError:
        return BenchmarkError(
            Failure.DEVICE_LOST,
            f"{self.serial}: the device was lost half way (now {self.state()}; adb "
            f"said: {answer.last_line}); check the cable and run this again",
        )


def choose_serials(adb: Adb, *, serial: str | None, all_devices: bool) -> list[str]:
    """Return the serials to work on, ready or not.

    Args:
        adb: the client.
        serial: the one asked for; by default the environment's ANDROID_SERIAL. One of
            the form ``host:port`` that adb does not know yet is connected to.
        all_devices: take every device that adb lists.

    Raises:
        BenchmarkError: there is no device, not that one, or several and none chosen.
    """
    listed = adb.devices()
    if not all_devices:
        serial = serial or os.environ.get("ANDROID_SERIAL")
    if serial:
        if serial not in listed and ":" in serial:
            adb.connect(serial)
            listed = adb.devices()
        if serial not in listed:
            known = ", ".join(listed) or "none"
            raise BenchmarkError(
                Failure.NO_DEVICE,
                f"no device {serial}; adb knows these: {known}",
            )
        return [serial]
    if not listed:
        raise BenchmarkError(
            Failure.NO_DEVICE,
            "no device is attached; plug one in and turn on USB debugging in its "
            "developer options",
        )
    if len(listed) > 1 and not all_devices:
        names = ", ".join(f"{name} ({state})" for name, state in listed.items())
        raise BenchmarkError(
            Failure.SEVERAL_DEVICES,
            f"several devices: {names}; choose one with --serial or ANDROID_SERIAL, or "
            "give --all_devices",
        )
    return list(listed)


def open_device(adb: Adb, serial: str) -> Device:
    """Return the device, ready.

    Raises:
        BenchmarkError: it is not: unauthorized, offline, or gone.
    """
    device = Device(adb, serial)
    state = device.state()
    if state != READY:
        raise unready(serial, state)
    return device


def unready(serial: str, state: str) -> BenchmarkError:
    """Return what to tell the user of a device in that state of ``adb devices``."""
    if state in ("unauthorized", "authorizing"):
        return BenchmarkError(
            Failure.UNAUTHORIZED,
            f"{serial} does not trust this computer yet ({state}); unlock it and "
            "accept the question about USB debugging",
        )
    if state.startswith("no permissions"):
        return BenchmarkError(
            Failure.UNAUTHORIZED,
            f"{serial}: this user may not open the USB device ({state}); add a udev "
            "rule (Debian: apt-get install android-sdk-platform-tools-common)",
        )
    if state == "gone":
        return BenchmarkError(Failure.NO_DEVICE, f"{serial} is not attached any more")
    return BenchmarkError(
        Failure.OFFLINE,
        f"{serial} does not answer ({state}); plug it in anew, see that Android has "
        "started, or try `adb reconnect`",
    )


def signal_name(status: int) -> str:
    """Return what a shell's exit status says: ``SIGSEGV`` or ``exit status 3``."""
    try:
        return signal.Signals(status - 128).name
    except ValueError:
        return f"exit status {status}"
