"""Score images from the command line with a trained model.

Usage::

    python -m mela_jax.predict --model=runs/kd --images=DIR_OR_FILES... \
        --output=scores.csv
    python -m mela_jax.predict --model=runs/kd/export/student_int8.tflite ...

The CSV has the columns ``image,score,threshold,decision``: the image's path as found,
P(melanoma) from 0 to 1, the threshold it was held against, and ``flagged`` where
score >= threshold, else ``not_flagged``. A model of several diagnoses adds a column
``p_<class>`` for each of them, with P(class). Images that cannot be read are named on
standard error and have no row; all others are scored.
"""

import argparse
import csv
import glob
import io
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from mela_jax.atomic import write_atomically
from mela_jax.data.image_io import CROPS, EXTENSIONS, BadImageError, load_square
from mela_jax.errors import UserError
from mela_jax.evaluation.classes import PREFIX
from mela_jax.quiet import hide_chatter

COLUMNS = ("image", "score", "threshold", "decision")
DEFAULT_WHICH = "student"
FLAGGED = "flagged"
NOT_FLAGGED = "not_flagged"

ALL_SCORED = 0
SOME_UNREADABLE = 1
CANNOT_RUN = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells have it

NOT_A_DIAGNOSIS = (
    "A score is not a diagnosis: show a mole that changes or worries you to a doctor, "
    "whatever its score."
)
_WANTED = (
    "give the --workdir of a finished mela_jax.main run, or a .tflite file of "
    "export.to_tflite"
)
EPILOG = f"""\
exit status:
  {ALL_SCORED}  every image was scored
  {SOME_UNREADABLE}  some images could not be read: each is named, and the others
     are scored; where none could be read, no CSV is written
  {CANNOT_RUN}  nothing was scored: wrong arguments, an unfinished model, no images,
     or an output that cannot be written

{NOT_A_DIAGNOSIS}
"""


class Scorer(Protocol):
    """A model ready to score, with all it needs to know about its images."""

    @property
    def image_size(self) -> int:
        """Side S of the square images it takes, in pixels."""
        ...

    @property
    def crop(self) -> str:
        """How a photograph becomes a square: "center" or "pad"."""
        ...

    @property
    def threshold(self) -> float:
        """Its operating point, chosen on validation data: score >= it is flagged."""
        ...

    def score(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        """Return P(melanoma), float64 [B], for RGB images, uint8 [B, S, S, 3]."""
        ...


@runtime_checkable
class ClassScorer(Protocol):
    """What a `Scorer` has besides where it tells several diagnoses apart."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of its K classes; no diagnoses are written where there is one."""
        ...

    @property
    def melanoma(self) -> int:
        """Index of the class that is melanoma."""
        ...

    def score_classes(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        """Return P(class), float64 [B, K], for RGB images, uint8 [B, S, S, 3]."""
        ...


@dataclass(frozen=True)
class Scores:
    """What became of a list of images.

    Attributes:
        images: path of each scored image, in the order given.
        values: float64 [N], P(melanoma) of each.
        unreadable: for each image that could not be read a line with its path and why.
        classes: name -> P(class), float64 [N], where several diagnoses were scored.
    """

    images: list[str]
    values: npt.NDArray[np.float64]
    unreadable: list[str]
    classes: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)


def make_scorer(
    model: str, *, which: str | None = None, crop: str | None = None
) -> Scorer:
    """Return the scorer for what `model` names.

    Args:
        model: a finished working folder of mela_jax.main, or a .tflite file.
        which: of a folder, the name of one of its models; the student when None.
        crop: of a .tflite file without metadata, "center" or "pad".

    Raises:
        UserError: there is no such folder or file, it is not finished or damaged, it
            holds no such model, or an option does not go with it.
    """
    if not os.path.exists(model):
        raise UserError(f"--model: there is no {model}; {_WANTED}")
    if os.path.isdir(model):
        if crop:
            raise UserError(f"--crop: {model} knows its own crop; leave --crop out")
        # Imported here because it brings JAX along, which a model file for the phone
        # is scored without.
        from mela_jax.inference import load_scorer

        return load_scorer(model, which or DEFAULT_WHICH)
    if Path(model).suffix.lower() != ".tflite":
        raise UserError(
            f"--model: {model} is neither a folder nor a .tflite file; {_WANTED}"
        )
    if which:
        raise UserError(
            f"--which={which} chooses among the models of a workdir, and {model} is "
            "one model; leave --which out"
        )
    from mela_jax import tflite

    return tflite.Scorer(model, crop=crop)


def find_images(sources: Sequence[str]) -> list[str]:
    """Return the images that files, folders and patterns name, each once.

    A folder gives the images below it, sorted by path, by their extension in any case;
    hidden files and folders are passed over. A file named outright is taken whatever
    its extension, even where it does not exist: reading it reports that. A pattern
    with wildcards, which shells leave alone after ``--images=``, is expanded.

    Args:
        sources: paths or patterns, at least one.

    Raises:
        UserError: a folder without images, or one that cannot be listed.
    """
    found: dict[str, str] = {}
    for source in sources:
        for path in _expand(source):
            images = _images_below(path) if os.path.isdir(path) else [path]
            if not images:
                raise UserError(
                    f"--images: no images in {path}; give a folder with "
                    f"{', '.join(EXTENSIONS)} files"
                )
            for image in images:
                found.setdefault(os.path.abspath(image), image)
    return list(found.values())


def _expand(source: str) -> list[str]:
    """Return the paths that a path or a pattern with wildcards names."""
    path = os.path.expanduser(source)
    if os.path.lexists(path):  # a name may hold a bracket without being a pattern
        return [path]
    return sorted(glob.glob(path, recursive=True)) or [path]


def _images_below(folder: str) -> list[str]:
    """Return the images in a folder and in those below it, links included, sorted."""

    def refuse(error: OSError) -> None:
        raise UserError(
            f"--images: cannot list {error.filename}: {error.strerror}; make it "
            "readable or leave it out"
        ) from error

    images = []
    visited = set()
    for where, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        # A link to a folder above would otherwise be walked without end.
        if (real := os.path.realpath(where)) in visited:
            folders.clear()
            continue
        visited.add(real)
        images += [
            os.path.join(where, name)
            for name in files
            if not name.startswith(".") and name.lower().endswith(EXTENSIONS)
        ]
    return sorted(images)


def score_images(scorer: Scorer, images: Sequence[str], *, batch_size: int) -> Scores:
    """Score images in bounded memory and report those that cannot be read.

    Args:
        scorer: the model.
        images: paths of images of any size, RGB, RGBA, grey or palette.
        batch_size: images scored at a time; a last smaller batch is padded to it, so
            that the model sees one shape only and is compiled once.

    Raises:
        UserError: the model gave a score that is not a number from 0 to 1.
    """
    side = scorer.image_size
    class_scorer = scorer if isinstance(scorer, ClassScorer) else None
    if class_scorer and len(class_scorer.classes) == 1:
        class_scorer = None
    batch = np.zeros((batch_size, side, side, 3), np.uint8)
    scored: list[str] = []
    values: list[npt.NDArray[np.float64]] = []
    unreadable: list[str] = []

    def flush() -> None:
        pending = scored[len(values) :]
        result = (
            class_scorer.score_classes(batch)
            if class_scorer
            else scorer.score(batch)[:, None]
        )
        for image, row in zip(pending, result[: len(pending)], strict=True):
            wrong = row[~((row >= 0) & (row <= 1))]
            if wrong.size:
                raise UserError(
                    f"the model gave {_shown(image)} the score {wrong[0]}, which is not"
                    " a number from 0 to 1; its training went wrong, choose another"
                )
            values.append(row)

    for image in tqdm(images, unit="image", disable=None):
        try:
            pixels = load_square(image, size=side, crop=scorer.crop)
        except BadImageError as error:
            unreadable.append(str(error))
            continue
        batch[len(scored) - len(values)] = pixels
        scored.append(image)
        if len(scored) - len(values) == batch_size:
            flush()
    if len(scored) > len(values):
        flush()
    found = np.asarray(values, np.float64)
    if class_scorer is None or not scored:
        return Scores(scored, found.ravel(), unreadable)
    classes = dict(zip(class_scorer.classes, found.T, strict=True))
    return Scores(scored, found[:, class_scorer.melanoma], unreadable, classes)


def write_scores(path: str, scores: Scores, *, threshold: float) -> None:
    """Write the CSV, whole or not at all.

    Numbers are written so that they read back exactly. A file name that is not UTF-8
    is written as the bytes it has.

    Args:
        path: the CSV; replaced where it exists.
        scores: the images and their scores.
        threshold: score >= threshold is flagged.

    Raises:
        UserError: the file cannot be written, or the disk is full.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*COLUMNS, *(PREFIX + name for name in scores.classes)))
    by_class = [column.tolist() for column in scores.classes.values()]
    for image, value, *row in zip(
        scores.images, scores.values.tolist(), *by_class, strict=True
    ):
        decision = FLAGGED if value >= threshold else NOT_FLAGGED
        writer.writerow(
            (image, repr(value), repr(threshold), decision, *map(repr, row))
        )
    write_atomically(
        os.path.realpath(path), text.getvalue().encode("utf-8", "surrogateescape")
    )


def check_output(path: str, *, images: Sequence[str]) -> None:
    """Refuse an output that could not be written, before any time is spent.

    Args:
        path: the CSV to be written.
        images: the images, none of which it may replace.

    Raises:
        UserError: its folder is missing or closed to us, or it is not a plain file, or
            it is one of the images.
    """
    folder = os.path.dirname(os.path.realpath(path))
    if not os.path.isdir(folder):
        raise UserError(
            f"--output: there is no folder {folder}; create it or choose another"
        )
    if os.path.lexists(path) and not os.path.isfile(path):
        raise UserError(f"--output: {path} is not a plain file; name a CSV file")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(
            f"--output: {folder} may not be written to; choose another folder"
        )
    real = os.path.realpath(path)
    if any(os.path.realpath(image) == real for image in images):
        raise UserError(
            f"--output: {path} is one of the images and would be overwritten; "
            "name a CSV file"
        )


def _threshold(text: str) -> float:
    """Parse a threshold from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError
    return value


def _batch_size(text: str) -> int:
    """Parse a number of images, at least 1."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value


# argparse puts a parser's name into its message: "invalid number from 0 to 1 value".
_threshold.__name__ = "number from 0 to 1"
_batch_size.__name__ = "whole number above 0"


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; exits with status 2 where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m mela_jax.predict",
        description="Score images of moles with a trained model: P(melanoma) and the "
        "decision at its operating point, as a CSV image,score,threshold,decision.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--model",
        required=True,
        metavar="WORKDIR_OR_TFLITE",
        help="the --workdir of a finished mela_jax.main run, or a .tflite file of "
        "export.to_tflite, which is scored by its own operating point",
    )
    parser.add_argument(
        "--images",
        required=True,
        nargs="+",
        action="extend",
        metavar="DIR_OR_FILE",
        help="folders (searched with the folders below them for "
        f"{' '.join(EXTENSIONS)}, any case) and image files",
    )
    parser.add_argument(
        "--output", required=True, metavar="CSV", help="the CSV file to write"
    )
    parser.add_argument(
        "--which",
        metavar="NAME",
        help="which of a workdir's models scores: student, teacher, teacher_2, ...; "
        f"baseline is the student without distillation (default: {DEFAULT_WHICH})",
    )
    parser.add_argument(
        "--crop",
        choices=CROPS,
        help="how a photograph becomes a square, for a .tflite file without metadata; "
        "every other model knows it",
    )
    parser.add_argument(
        "--threshold",
        type=_threshold,
        metavar="T",
        help="flag scores >= T (default: the operating point chosen on the model's "
        "validation images)",
    )
    parser.add_argument(
        "--batch_size",
        type=_batch_size,
        default=32,
        metavar="N",
        help="images scored at a time (default: %(default)s)",
    )
    return parser.parse_args(list(_split_images(arguments)))


def _split_images(arguments: Sequence[str]) -> Iterator[str]:
    """Turn ``--images=A B`` into ``--images A B``; argparse would refuse the B."""
    for argument in arguments:
        if argument.startswith("--images="):
            yield from argument.split("=", 1)
        else:
            yield argument


def _shown(text: str) -> str:
    """Return text that any terminal can print on one line, odd file names included."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return text.replace("\n", "\\n").replace("\r", "\\r")


def _complain(message: str) -> None:
    print(f"predict: {_shown(message)}", file=sys.stderr)


def _run(options: argparse.Namespace) -> int:
    """Score and write what the command line asks for; returns the exit status."""
    output = os.path.expanduser(options.output)
    images = find_images(options.images)
    check_output(output, images=images)
    model = os.path.expanduser(options.model)
    scorer = make_scorer(model, which=options.which, crop=options.crop)
    threshold = (
        scorer.threshold if options.threshold is None else float(options.threshold)
    )
    scores = score_images(scorer, images, batch_size=options.batch_size)
    for line in scores.unreadable:
        _complain(f"cannot read {line}")
    if scores.images:
        write_scores(output, scores, threshold=threshold)
        is_file = model.lower().endswith(".tflite")
        which = f"the {options.which or DEFAULT_WHICH}"
        scored_by = _shown(os.path.basename(model)) if is_file else which
        num_flagged = int(np.count_nonzero(scores.values >= threshold))
        print(
            f"{_shown(output)}: {len(scores.images)} images scored by {scored_by}, "
            f"{num_flagged} flagged at threshold {threshold:.4g}"
        )
        print(NOT_A_DIAGNOSIS)
    if not scores.unreadable:
        return ALL_SCORED
    _complain(
        f"{len(scores.unreadable)} of {len(images)} images could not be read; "
        + ("the others are scored" if scores.images else "nothing was written")
    )
    return SOME_UNREADABLE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status, as ``--help`` lists them.

    Args:
        arguments: the words after the program's name; those of the process when None.
    """
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(options)
    except UserError as error:
        _complain(str(error))
        return CANNOT_RUN
    except KeyboardInterrupt:
        _complain("interrupted; nothing was written")
        return INTERRUPTED


def command() -> int:
    """Run the command line of this process and return its exit status."""
    hide_chatter()
    return main()


if __name__ == "__main__":
    sys.exit(command())
