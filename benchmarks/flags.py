"""What the scripts of this folder share: flags, and how a script starts and fails."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence

# Before TensorFlow is imported: its notices say nothing here.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from mela_jax.errors import UserError
from mela_jax.memory import use_huge_pages

CORES = len(os.sched_getaffinity(0))
# What both `mela_jax.models.zoo` and `benchmarks.keras_networks` can build.
NETWORKS = (
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "efficientnet_lite0",
    "resnet50",
)


def positive(text: str) -> int:
    """Read a whole number of 1 or more."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def positives(text: str) -> list[int]:
    """Read whole numbers of 1 or more between commas."""
    return [positive(part) for part in text.split(",")]


def names_of(choices: Sequence[str]) -> Callable[[str], list[str]]:
    """Return a function that reads names between commas, each one of `choices`."""

    def read(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in choices:
                raise argparse.ArgumentTypeError(
                    f"{name!r} is none of {', '.join(choices)}"
                )
        return names

    return read


def make_parser(doc: str) -> argparse.ArgumentParser:
    """Return a parser that describes itself by a module's docstring."""
    return argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the flag --model, one of the registry of networks."""

    def read(name: str) -> str:
        # Imports JAX, which a script may only do once it has its memory pages.
        from mela_jax.models.zoo import MODELS

        return names_of(tuple(MODELS))(name)[0]

    parser.add_argument("--model", type=read, default="mobilenet_v3_small")


def add_training_step(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a training step: --model, --size and --batch_size."""
    add_model(parser)
    parser.add_argument("--size", type=positive, default=224, help="pixels")
    parser.add_argument("--batch_size", type=positive, default=32)


def run(main: Callable[[], None]) -> None:
    """Run a script with large memory pages; a user's mistake ends in one line."""
    use_huge_pages()
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
