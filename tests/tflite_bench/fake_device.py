"""A small Android device for the real adb client: its daemon, on a loopback port.

It speaks the transport protocol of adb (messages CNXN, AUTH, OPEN, OKAY, WRTE, CLSE;
services ``shell``, with and without protocol version 2, and ``sync``) and runs what it
is told in a real shell, with ``/data/local/tmp`` standing for a private folder and
with a few of Android's commands put in front of the machine's own. Where a command
starts a pushed ``benchmark_model``, `fake_benchmark.py` runs instead.

As the real daemon may, it lets a command go on when its connection is closed.
"""

import contextlib
import json
import os
import queue
import re
import shlex
import socket
import struct
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path
from typing import IO, Any

FAKE_BENCHMARK = Path(__file__).with_name("fake_benchmark.py")
LOGS = Path(__file__).with_name("logs")

DEVICE_FOLDER = "/data/local/tmp"
HEADER = struct.Struct("<6I")
CNXN, AUTH, OPEN, OKAY, CLSE, WRTE = (
    int.from_bytes(name, "little")
    for name in (b"CNXN", b"AUTH", b"OPEN", b"OKAY", b"CLSE", b"WRTE")
)
VERSION = 0x01000001
MAX_PAYLOAD = 64 * 1024
AUTH_TOKEN, AUTH_PUBLIC_KEY = 1, 3
STDOUT, STDERR, EXIT = 1, 2, 3

PUSHED_PROGRAM = re.compile(rf"{DEVICE_FOLDER}/\w+/benchmark_model(?= --)")

PROPERTIES = """\
[ro.product.manufacturer]: [Acme]
[ro.product.model]: [Phone 3 [dev]]
[ro.soc.model]: [AC8000]
[ro.build.version.release]: [14]
[ro.build.version.sdk]: [34]
[ro.build.fingerprint]: [acme/phone/phone:14/A1/1:user/release-keys]
[ro.product.cpu.abilist]: [arm64-v8a,armeabi-v7a,armeabi]
[ro.product.cpu.abi]: [arm64-v8a]
"""
BATTERY = """\
Current Battery Service state:
  AC powered: false
  USB powered: true
  Wireless powered: false
  status: 2
  level: 81
  scale: 100
  voltage: 4123
  temperature: {tenths}
  technology: Li-ion
"""
THERMAL = """\
IsStatusOverride: false
ThermalEventListeners:
\tcallbacks: 1
Thermal Status: {status}
Cached temperatures:
\tTemperature{{mValue=55.0, mType=3, mName=skin, mStatus=0}}
HAL Ready: true
Current temperatures from HAL:
\tTemperature{{mValue=31.5, mType=3, mName=skin, mStatus=0}}
\tTemperature{{mValue=44.25, mType=0, mName=CPU0, mStatus=0}}
\tTemperature{{mValue=-99.9, mType=6, mName=amplifier, mStatus=0}}
Current cooling devices from HAL:
\tCoolingDevice{{mValue=0, mType=2, mName=fan}}
"""
DF = """\
Filesystem     1K-blocks     Used Available Use% Mounted on
/dev/block/dm-5 112345678 50000000  {free_kb}  45% /data
"""


LITERT_FLAGS = (
    "graph",
    "num_threads",
    "num_runs",
    "warmup_runs",
    "min_secs",
    "warmup_min_secs",
    "use_cpu",
    "use_gpu",
    "use_npu",
)
CLASSIC_FLAGS = (
    *LITERT_FLAGS[:6],
    "use_gpu",
    "use_nnapi",
    "input_layer",
    "input_layer_shape",
    "input_layer_value_files",
    "output_filepath",
)


def read_log(name: str) -> str:
    """Return what a benchmark_model printed: one of the files of ``logs/``."""
    return (LOGS / f"{name}.txt").read_text()


class FakeDevice:
    """One device. Attributes are the script: change them before it is used.

    Attributes:
        root: the folder that stands for ``/data/local/tmp``.
        features: what its banner offers; without ``shell_v2`` it is an old device.
        answers: "device"; "unauthorized" knows no key and, as a phone does, waits for
            its owner once it has the public one; "silent" accepts the connection and
            says nothing.
        lose_on: the device goes away when a command has this text in it.
        lose_on_push: it goes away in the middle of a push whose target has this in it.
        corrupt: a push whose target has this in it is stored with one byte changed.
        full_on: a push whose target has this in it fails for lack of space.
        commands: every shell command that it was given.
        processes: the shells that ran them.
    """

    def __init__(self, root: Path, *, features: str = "shell_v2,cmd"):
        self.root = root
        self.features = features
        self.answers = "device"
        self.lose_on: str | None = None
        self.lose_on_push: str | None = None
        self.corrupt: str | None = None
        self.full_on: str | None = None
        self.commands: list[str] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        self._connections: list[socket.socket] = []
        self.bin = root.parent / f"{root.name}_bin"
        self.bin.mkdir(parents=True)
        root.mkdir()
        self.say("getprop", PROPERTIES)
        self.set_warmth()
        self.set_free_kb(1_000_000)
        self.script(
            "benchmark_model",
            f"export FAKE_SITE_PACKAGES={sysconfig.get_path('purelib')}\n"
            f'exec {sys.executable} -S -E {FAKE_BENCHMARK} "$@"\n',
        )
        self.scenario_file = self.bin / "scenario.json"
        self.set_benchmark()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.serial = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def say(self, command: str, text: str) -> None:
        """Make `command` print `text`, whatever its arguments."""
        self.script(command, f"cat <<'END'\n{text}END\n")

    def script(self, command: str, body: str) -> None:
        """Make `command` a shell script."""
        file = self.bin / command
        file.write_text(f"#!/bin/sh\n{body}")
        file.chmod(0o755)

    def set_warmth(self, *, celsius: float = 30.5, status: int = 0) -> None:
        """Set the battery's temperature and Android's thermal status."""
        battery = BATTERY.format(tenths=round(celsius * 10))
        thermal = THERMAL.format(status=status)
        self.script(
            "dumpsys",
            f"case $1 in battery) cat <<'END'\n{battery}END\n;;\n"
            f"thermalservice) cat <<'END'\n{thermal}END\n;; esac\n",
        )

    def set_free_kb(self, free_kb: int) -> None:
        """Set the free space that ``df`` reports."""
        self.say("df", DF.format(free_kb=free_kb))

    def set_benchmark(self, **changes: Any) -> None:
        """Set how benchmark_model behaves; see `fake_benchmark`."""
        scenario = {
            "log": read_log("classic"),
            "flags": CLASSIC_FLAGS,
            "faults": {},
            "ignored": "",
            "shift": 0,
        }
        assert set(changes) <= set(scenario)
        self.scenario_file.write_text(json.dumps(scenario | changes))

    @property
    def left_behind(self) -> list[str]:
        """What lies in ``/data/local/tmp``."""
        return sorted(os.listdir(self.root))

    def lose(self) -> None:
        """Go away, as if the cable were pulled."""
        # shutdown() first: close() alone leaves a blocked accept() or recv() waiting.
        for open_socket in (self._listener, *self._connections):
            with contextlib.suppress(OSError):
                open_socket.shutdown(socket.SHUT_RDWR)
            open_socket.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            # Else each small message waits for the acknowledgement of the one before.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connections.append(connection)
            threading.Thread(
                target=_Transport(self, connection).serve, daemon=True
            ).start()

    def start(self, command: str, *, errors: int) -> subprocess.Popen[bytes]:
        """Start a shell command of the device; `errors` is where its stderr goes."""
        self.commands.append(command)
        # A pushed program cannot run here: it is for another processor.
        here = PUSHED_PROGRAM.sub(
            shlex.quote(str(self.bin / "benchmark_model")), command
        )
        here = here.replace(DEVICE_FOLDER, str(self.root))
        path = f"{self.bin}{os.pathsep}{os.environ['PATH']}"
        process = subprocess.Popen(
            ["/bin/sh", "-c", here],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, "PATH": path, "FAKE_SCENARIO": str(self.scenario_file)},
            start_new_session=True,
        )
        self.processes.append(process)
        return process


class _Transport:
    """One connection of an adb server to a device."""

    def __init__(self, device: FakeDevice, connection: socket.socket):
        self._device = device
        self._socket = connection
        self._lock = threading.Lock()
        self._streams: dict[int, _Stream] = {}

    def serve(self) -> None:
        """Answer messages until the connection ends."""
        try:
            while True:
                self._answer(*self._receive())
        except (OSError, EOFError):
            self._socket.close()
            for stream in self._streams.values():
                stream.end()

    def send(self, command: int, first: int, second: int, data: bytes = b"") -> None:
        """Send one message."""
        checksum = sum(data) & 0xFFFFFFFF
        header = HEADER.pack(
            command, first, second, len(data), checksum, command ^ 0xFFFFFFFF
        )
        with self._lock:
            self._socket.sendall(header + data)

    def close(self, stream: "_Stream") -> None:
        """Tell the other side that a stream has ended."""
        self._streams.pop(stream.here, None)
        self.send(CLSE, stream.here, stream.there)

    def _receive(self) -> tuple[int, int, int, bytes]:
        header = HEADER.unpack(self._exactly(HEADER.size))
        command, first, second, length, _, _ = header
        return command, first, second, self._exactly(length)

    def _exactly(self, length: int) -> bytes:
        parts = bytearray()
        while len(parts) < length:
            part = self._socket.recv(length - len(parts))
            if not part:
                raise EOFError
            parts += part
        return bytes(parts)

    def _answer(self, command: int, first: int, second: int, data: bytes) -> None:
        device = self._device
        if command in (CNXN, AUTH) and device.answers == "unauthorized":
            # Another token in answer to the public key would make the server send it
            # again, for ever and as fast as both can, which starves other devices.
            if (command, first) != (AUTH, AUTH_PUBLIC_KEY):
                self.send(AUTH, AUTH_TOKEN, 0, os.urandom(20))
        elif command == CNXN and device.answers == "device":
            banner = f"device::ro.product.name=fake;features={device.features}"
            self.send(CNXN, VERSION, MAX_PAYLOAD, banner.encode())
        elif command == OPEN:
            here = max(self._streams, default=0) + 1
            stream = _Stream(self, here=here, there=first)
            self._streams[here] = stream
            self.send(OKAY, here, first)
            service = data.rstrip(b"\0").decode()
            threading.Thread(
                target=self._serve, args=(service, stream), daemon=True
            ).start()
        elif command in (OKAY, WRTE, CLSE) and second in self._streams:
            stream = self._streams[second]
            if command == OKAY:
                stream.acknowledged.release()
            elif command == WRTE:
                stream.feed(data)
                self.send(OKAY, second, first)
            else:
                self._streams.pop(second).end()

    def _serve(self, service: str, stream: "_Stream") -> None:
        name, _, rest = service.partition(":")
        try:
            if name == "sync":
                _Sync(self._device, stream).serve()
            elif name.startswith("shell"):
                options = name.split(",")[1:]
                self._shell(rest, stream, has_packets="v2" in options)
            self.close(stream)
        except (OSError, EOFError):
            pass  # the other side went away, or this device did

    def _shell(self, command: str, stream: "_Stream", *, has_packets: bool) -> None:
        device = self._device
        if device.lose_on and device.lose_on in command:
            device.commands.append(command)
            device.lose()
            return
        if not has_packets:
            process = device.start(command, errors=subprocess.STDOUT)
            assert process.stdout
            for line in process.stdout:
                # Such old devices put a terminal between.
                stream.write(line.replace(b"\n", b"\r\n"))
            return
        process = device.start(command, errors=subprocess.PIPE)
        assert process.stdout and process.stderr

        def forward(source: IO[bytes], number: int) -> None:
            for line in source:
                stream.write(struct.pack("<BI", number, len(line)) + line)

        errors = threading.Thread(
            target=forward, args=(process.stderr, STDERR), daemon=True
        )
        errors.start()
        forward(process.stdout, STDOUT)
        errors.join()
        stream.write(struct.pack("<BIB", EXIT, 1, process.wait() & 0xFF))


class _Stream:
    """One open service: bytes in, bytes out, each write acknowledged."""

    def __init__(self, transport: _Transport, *, here: int, there: int):
        self._transport = transport
        self.here = here
        self.there = there
        self.acknowledged = threading.Semaphore(1)
        self._arrived: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._buffer = b""
        self._is_over = False

    def feed(self, data: bytes) -> None:
        """Take what the other side wrote."""
        self._arrived.put(data)

    def end(self) -> None:
        """The other side closed it: wake whoever waits for bytes or leave to write."""
        self._is_over = True
        self._arrived.put(b"")
        self.acknowledged.release()

    def read(self, length: int) -> bytes:
        """Return exactly so many bytes."""
        while len(self._buffer) < length:
            part = self._arrived.get()
            if not part:
                raise EOFError
            self._buffer += part
        taken, self._buffer = self._buffer[:length], self._buffer[length:]
        return taken

    def write(self, data: bytes) -> None:
        """Send bytes, each part after the one before was acknowledged."""
        for at in range(0, len(data), MAX_PAYLOAD):
            self.acknowledged.acquire()
            if self._is_over:
                raise EOFError
            part = data[at : at + MAX_PAYLOAD]
            self._transport.send(WRTE, self.here, self.there, part)


class _Sync:
    """The service that copies files."""

    def __init__(self, device: FakeDevice, stream: _Stream):
        self._device = device
        self._stream = stream

    def serve(self) -> None:
        """Answer requests until QUIT."""
        while True:
            request = self._stream.read(4)
            (length,) = struct.unpack("<I", self._stream.read(4))
            if request == b"QUIT":
                return
            path = self._stream.read(length).decode()
            {b"STAT": self._stat, b"SEND": self._receive, b"RECV": self._send}[request](
                path
            )

    def _here(self, path: str) -> Path:
        return Path(path.replace(DEVICE_FOLDER, str(self._device.root)))

    def _stat(self, path: str) -> None:
        try:
            found = os.stat(self._here(path))
            answer = (found.st_mode, found.st_size, int(found.st_mtime))
        except OSError:
            answer = (0, 0, 0)
        self._stream.write(b"STAT" + struct.pack("<III", *answer))

    def _receive(self, path_and_mode: str) -> None:
        path = path_and_mode.rpartition(",")[0]
        device, content = self._device, bytearray()
        while True:
            kind, length = struct.unpack("<4sI", self._stream.read(8))
            if kind == b"DONE":  # its length is the time of modification
                break
            content += self._stream.read(length)
            if device.lose_on_push and device.lose_on_push in path:
                device.lose()
                raise EOFError
        if device.full_on and device.full_on in path:
            reason = b"couldn't write: No space left on device"
            self._stream.write(b"FAIL" + struct.pack("<I", len(reason)) + reason)
            return
        if device.corrupt and device.corrupt in path:
            content[len(content) // 2] ^= 1
        self._here(path).write_bytes(content)
        self._stream.write(b"OKAY" + struct.pack("<I", 0))

    def _send(self, path: str) -> None:
        content = self._here(path).read_bytes()
        for at in range(0, len(content), MAX_PAYLOAD):
            part = content[at : at + MAX_PAYLOAD]
            self._stream.write(b"DATA" + struct.pack("<I", len(part)) + part)
        self._stream.write(b"DONE" + struct.pack("<I", 0))
