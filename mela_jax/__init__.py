"""mela_jax: dermoscopy images to a phone-sized melanoma classifier, stated honestly."""

import os
import signal
import sys
from pathlib import Path
from types import TracebackType

__version__ = "0.1.0"

INTERRUPTED = "interrupted; the same command starts again"


def _end_quietly(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        return sys.__excepthook__(kind, error, trace)
    print(INTERRUPTED, file=sys.stderr, flush=True)
    os._exit(128 + signal.SIGINT)


# A command that is still importing what it needs: its own handling is not there yet.
if sys.argv[:1] == ["-m"] or Path(*sys.argv[:1]).name.startswith("mela-"):
    sys.excepthook = _end_quietly
