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
import glob
import itertools
import os
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from mela_jax.command import REFUSED, Parser, guarded, number, positive, prepare_process
from mela_jax.data.image_io import (
    CROPS,
    EXTENSIONS,
    BadImageError,
    list_pictures,
    load_square,
)
from mela_jax.errors import UserError
from mela_jax.evaluation.classes import PREFIX
from mela_jax.inference import DEFAULT_WHICH, Scorer, make_scorer
from mela_jax.tables import write_table
from mela_jax.vocabulary import first_of

COLUMNS = ("image", "score", "threshold", "decision")
FLAGGED = "flagged"
NOT_FLAGGED = "not_flagged"

ALL_SCORED = 0
SOME_UNREADABLE = 1

NOT_A_DIAGNOSIS = (
    "A score is not a diagnosis: show a mole that changes or worries you to a doctor, "
    "whatever its score."
)
EPILOG = f"""\
exit status:
  {ALL_SCORED}  every image was scored
  {SOME_UNREADABLE}  some images could not be read: each is named, and the others
     are scored; where none could be read, no CSV is written
  {REFUSED}  nothing was scored: wrong arguments, an unfinished model, no images,
     or an output that cannot be written

{NOT_A_DIAGNOSIS}
"""


def find_images(sources: Sequence[str]) -> list[str]:
    """Return the images that files, folders and patterns name, each once.

    A folder gives the images below it, as `list_pictures`; what else is in it is
    counted and named on standard error. A file named outright is taken whatever
    its extension, even where it does not exist: reading it reports that. A pattern
    with wildcards, which shells leave alone after ``--images=``, is expanded.

    Raises:
        UserError: a folder without images, or one that cannot be listed.
    """
    found: dict[str, str] = {}
    for path in (path for source in sources for path in _expand(source)):
        images = [path]
        if os.path.isdir(path):
            images, others = list_pictures(path)
            if images and others:
                _complain(
                    f"passed over {len(others)} files that are no pictures in {path}"
                    f" ({first_of(os.path.relpath(other, path) for other in others)})"
                )
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


def score_images(
    scorer: Scorer, images: Sequence[str], *, batch_size: int
) -> tuple[list[str], npt.NDArray[np.float64], list[str]]:
    """Score images in bounded memory and report those that cannot be read.

    A last smaller batch is padded, so that the model sees one shape only and is
    compiled once.

    Returns:
        The paths of the N images that could be read, in the order given; their
        P(class), float64 [N, K]; for each of the others a line with its path and why.

    Raises:
        UserError: the model gave a score that is not a number from 0 to 1.
    """
    unreadable = []

    def read() -> Iterator[tuple[str, np.ndarray]]:
        for image in tqdm(images, unit="image", disable=None):
            try:
                square = load_square(image, size=scorer.image_size, crop=scorer.crop)
            except BadImageError as error:
                unreadable.append(str(error))
            else:
                yield image, square

    readable = read()
    batch = np.zeros((batch_size, *2 * [scorer.image_size], 3), np.uint8)
    scored: list[str] = []
    probabilities = [np.empty((0, len(scorer.classes)))]
    while pending := list(itertools.islice(readable, batch_size)):
        batch[: len(pending)] = [square for _, square in pending]
        found = scorer.score(batch)[: len(pending)]
        for (image, _), row in zip(pending, found, strict=True):
            wrong = row[~((row >= 0) & (row <= 1))]
            if wrong.size:
                raise UserError(
                    f"the model gave {_shown(image)} the score {wrong[0]}, which is not"
                    " a number from 0 to 1; its training went wrong, choose another"
                )
            scored.append(image)
        probabilities.append(found)
    return scored, np.concatenate(probabilities), unreadable


def write_scores(
    path: str, scorer: Scorer, images: Sequence[str], scores: npt.NDArray[np.float64]
) -> None:
    """Write the CSV of N images, whole or not at all; replace an earlier one.

    Numbers are written so that they read back exactly. A file name that is not UTF-8
    is written as the bytes it has.

    Args:
        path: the CSV.
        scorer: the model, whose threshold decides.
        images: their paths.
        scores: their P(class), float64 [N, K].

    Raises:
        UserError: the file cannot be written, or the disk is full.
    """
    classes = scorer.classes if len(scorer.classes) > 1 else ()
    rows = []
    for image, row in zip(images, scores.tolist(), strict=True):
        score = row[scorer.melanoma]
        decision = FLAGGED if score >= scorer.threshold else NOT_FLAGGED
        by_class = row if classes else ()
        rows.append((image, score, scorer.threshold, decision, *by_class))
    columns = (*COLUMNS, *(PREFIX + name for name in classes))
    write_table(os.path.realpath(path), columns, rows)


def check_output(path: str, *, images: Sequence[str]) -> None:
    """Refuse an output that could not be written, before any time is spent.

    Raises:
        UserError: its folder is missing or closed to us, or it is not a plain file, or
            it is one of the images.
    """
    real = os.path.realpath(path)
    folder = os.path.dirname(real)
    if not os.path.isdir(folder):
        wrong = f"there is no folder {folder}; create it or choose another"
    elif os.path.lexists(path) and not os.path.isfile(path):
        wrong = f"{path} is not a plain file; name a CSV file"
    elif not os.access(folder, os.W_OK | os.X_OK):
        wrong = f"{folder} may not be written to; choose another folder"
    elif real in map(os.path.realpath, images):
        wrong = f"{path} is one of the images and would be overwritten; name a CSV file"
    else:
        return
    raise UserError(f"--output: {wrong}")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; exits with status 2 where it is wrong."""
    parser = Parser(
        prog="python -m mela_jax.predict",
        description="Score images of moles with a trained model: P(melanoma) and the "
        "decision at its operating point, as a CSV image,score,threshold,decision.",
        epilog=EPILOG,
    )
    add = parser.add_argument
    add(
        "--model",
        required=True,
        metavar="WORKDIR_OR_TFLITE",
        help="the --workdir of a finished mela_jax.main run, or a .tflite file of "
        "export.to_tflite, which is scored by its own operating point",
    )
    add(
        "--images",
        required=True,
        nargs="+",
        action="extend",
        metavar="DIR_OR_FILE",
        help="folders (searched with the folders below them for "
        f"{' '.join(EXTENSIONS)}, any case) and image files",
    )
    add("--output", required=True, metavar="CSV", help="the CSV file to write")
    add(
        "--which",
        metavar="NAME",
        help="which of a workdir's models scores: student, teacher, teacher_2, ...; "
        f"baseline is the student without distillation (default: {DEFAULT_WHICH})",
    )
    add(
        "--crop",
        choices=CROPS,
        help="how a photograph becomes a square, for a .tflite file without metadata; "
        "every other model knows it",
    )
    add(
        "--threshold",
        type=number(float, "number from 0 to 1", lambda value: 0 <= value <= 1),
        metavar="T",
        help="flag scores >= T (default: the operating point chosen on the model's "
        "validation images)",
    )
    add(
        "--batch_size",
        type=positive,
        default=32,
        metavar="N",
        help="images scored at a time (default: %(default)s)",
    )
    # `--images=A B` as `--images A B`: argparse would refuse the B.
    split = (a.split("=", 1) if a.startswith("--images=") else [a] for a in arguments)
    return parser.parse_args(list(itertools.chain.from_iterable(split)))


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
    scorer = make_scorer(
        os.path.expanduser(options.model),
        which=options.which,
        crop=options.crop,
        threshold=options.threshold,
    )
    scored, scores, unreadable = score_images(
        scorer, images, batch_size=options.batch_size
    )
    for line in unreadable:
        _complain(f"cannot read {line}")
    if scored:
        write_scores(output, scorer, scored, scores)
        num_flagged = np.count_nonzero(scores[:, scorer.melanoma] >= scorer.threshold)
        print(
            f"{_shown(output)}: {len(scored)} images scored by {_shown(scorer.name)}, "
            f"{num_flagged} flagged at threshold {scorer.threshold:.4g}"
        )
        print(NOT_A_DIAGNOSIS)
    if not unreadable:
        return ALL_SCORED
    _complain(
        f"{len(unreadable)} of {len(images)} images could not be read; "
        + ("the others are scored" if scored else "nothing was written")
    )
    return SOME_UNREADABLE


@guarded
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status, as ``--help`` lists them."""
    return _run(_parse(sys.argv[1:] if arguments is None else arguments))


def command() -> int:
    """Run the command line of this process and return its exit status."""
    prepare_process()
    return main()


if __name__ == "__main__":
    sys.exit(command())
