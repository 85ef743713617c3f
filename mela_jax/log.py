"""What a program says on stderr while it runs."""

import logging as python_logging
import sys

from absl import logging


def set_up_logging() -> None:
    """Say the time and the message, from INFO on; of other packages, warnings alone."""
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    handler = logging.get_absl_handler()
    # Not where stderr led to when absl was imported: see `mela_jax.quiet`.
    handler.python_handler.setStream(sys.stderr)
    handler.setFormatter(_Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    handler.addFilter(
        lambda line: (
            line.levelno >= python_logging.WARNING or "mela_jax" in line.pathname
        )
    )


class _Formatter(python_logging.Formatter):
    """Names the level of what is more than a note."""

    def formatMessage(self, record: python_logging.LogRecord) -> str:
        line = super().formatMessage(record)
        if record.levelno < python_logging.WARNING:
            return line
        return line.replace(record.message, f"{record.levelname}: {record.message}", 1)
