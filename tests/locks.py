"""When a process waits for a lock, which the kernel knows."""

import subprocess
import time
from pathlib import Path

TIMEOUT = 300.0


def wait_until_blocked(process: subprocess.Popen) -> None:
    """Return as soon as a process waits for a lock that another one holds (Linux)."""
    deadline = time.monotonic() + TIMEOUT
    waiting = [b"->", b"FLOCK"], str(process.pid).encode()
    while True:
        locks = [line.split() for line in Path("/proc/locks").read_bytes().splitlines()]
        if any(words[1:3] == waiting[0] and waiting[1] in words for words in locks):
            return
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
