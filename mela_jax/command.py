"""What every command does around its work: streams, errors, exit status."""

import argparse
import contextlib
import functools
import os
import pwd
import signal
import sys
import tempfile
from collections.abc import Callable
from typing import Any, NoReturn

from mela_jax import INTERRUPTED
from mela_jax.errors import Stopped, UserError
from mela_jax.quiet import hide_chatter

REFUSED = 2


def guarded(main: Callable[..., int]) -> Callable[..., int]:
    """Let a command's `main` answer what ends it early with one line and a status.

    2: a mistake of the user's, `error: ...`; 130 and 143: Ctrl-C and SIGTERM; 141: the
    reader of a pipe has gone, as `head` does, without a word.
    """

    @functools.wraps(main)
    def run(*arguments: Any) -> int:
        try:
            try:
                return main(*arguments)
            finally:
                sys.stdout.flush()
        except Stopped as stopped:
            print(stopped, file=sys.stderr)
            return 128 + stopped.signum
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return REFUSED
        except KeyboardInterrupt as interrupt:
            print(INTERRUPTED, file=sys.stderr)
            return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)
        except BrokenPipeError:
            # What is still to be written as the process ends has no reader either.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return 128 + signal.SIGPIPE

    return run


def prepare_process() -> None:
    """Prepare the streams and the environment of a command's process.

    Call it first of all, before threads start and anything looks for its cache.
    """
    hide_chatter()
    for stream in (sys.stdout, sys.stderr):
        # A file's name may hold what this terminal cannot print.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    if not os.environ.get("HOME") and not _has_home():
        folder = os.path.join(tempfile.gettempdir(), f"mela-{os.getuid()}")
        os.makedirs(folder, mode=0o700, exist_ok=True)
        if os.stat(folder).st_uid != os.getuid():  # Somebody else's trap.
            folder = tempfile.mkdtemp(prefix="mela-")
        os.environ["HOME"] = folder
        print(f"no home folder: caches go to {folder}", file=sys.stderr)


def _has_home() -> bool:
    try:
        return bool(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        return False


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line, as those of a command are."""

    def __init__(self, **options: Any):
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **options,
        )

    def error(self, message: str) -> NoReturn:
        """Refuse the command line.

        Raises:
          UserError: always.
        """
        raise UserError(f"{message}; see --help")


def number(kind: type, what: str, is_valid: Callable[[Any], bool]) -> Callable:
    """Return a parser for argparse of a number that must be valid.

    Args:
      kind: int or float.
      what: the number's name in the message, such as "whole number above 0".
      is_valid: whether a number is.
    """

    def parse(text: str) -> Any:
        with contextlib.suppress(ValueError):
            if is_valid(value := kind(text)):
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not a {what}")

    return parse


positive = number(int, "whole number above 0", lambda value: value > 0)
not_negative = number(int, "whole number from 0 up", lambda value: value >= 0)
fraction = number(float, "number between 0 and 1", lambda value: 0 < value < 1)
