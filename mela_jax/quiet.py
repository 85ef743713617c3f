"""What a user sees on stderr: our own lines, and no chatter of native libraries."""

import logging as python_logging
import os
import re
import signal
import sys

from absl import logging

# LiteRT, TensorFlow and XLA tell of what they load and which accelerators they lack, as
# they start and as the process ends. Errors are always shown.
_CHATTER = re.compile(
    rb"(INFO|VERBOSE): "
    rb"|WARNING: (\[\w+\.cc:\d+\]|All log messages before absl::InitializeLog)"
    rb"|[IW]\d{4} .*\.cc:\d+\]"
    # Of a machine without a GPU.
    rb"|E\d{4} .*\b(cud\w+|computation_placer)\.cc:\d+\]"
    rb"|\xe2\x94\x94 "  # continues a line of LiteRT's
)


def hide_chatter() -> None:
    """Drop the chatter from what the process writes to stderr past Python.

    It is written by C++ to the file descriptor, the last of it after Python has ended,
    so that only another process can drop it: a child that reads the descriptor's other
    end until nobody writes any more. What Python itself writes goes the direct way.
    Call it first of all: a process with threads should not fork.
    """
    shown = os.dup(2)
    native, into = os.pipe()
    if os.fork() == 0:
        _filter(native, shown, others=(0, 1, 2, into))
    os.close(native)
    os.dup2(into, 2)
    os.close(into)
    sys.stderr = os.fdopen(
        shown, "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace"
    )


def _filter(native: int, shown: int, *, others: tuple[int, ...]) -> None:
    """Copy every line that is not chatter, then end the process."""
    try:
        for fd in others:
            os.close(fd)
        # Its parent decides what Ctrl-C means.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        with os.fdopen(native, "rb") as lines, os.fdopen(shown, "wb", 0) as out:
            for line in lines:
                if not _CHATTER.match(line):
                    out.write(line)
    finally:
        os._exit(0)


def set_up_logging() -> None:
    """Log time and message from INFO on; of other packages, only warnings."""
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    handler = logging.get_absl_handler()
    # Not where stderr led to when absl was imported: `hide_chatter` has moved it.
    handler.python_handler.setStream(sys.stderr)
    handler.setFormatter(_Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    handler.addFilter(
        lambda line: (
            line.levelno >= python_logging.WARNING or "mela_jax" in line.pathname
        )
    )


class _Formatter(python_logging.Formatter):
    """Add the level's name to warnings and errors."""

    def formatMessage(self, record: python_logging.LogRecord) -> str:
        line = super().formatMessage(record)
        if record.levelno < python_logging.WARNING:
            return line
        return line.replace(record.message, f"{record.levelname}: {record.message}", 1)
