"""What a program says on stderr while it runs."""

from absl import logging


def set_up_logging() -> None:
    """Log from INFO on, except Orbax, which names every file it touches."""
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().addFilter(lambda line: "orbax" not in line.pathname)
