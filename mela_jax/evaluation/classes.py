"""Scores of several diagnoses at once, and the tables that hold them.

A table of class scores has an image column (``image``, ``image_id`` or
``image_name``), a score column for each of three or more classes, one of them melanoma
(``MEL`` or ``melanoma``), and no column ``score``: ISIC's form of 2018 and 2019. The
true class stands in a ground truth of the same form with 0 and 1, or by its name in a
column ``dx``, ``label`` or ``diagnosis``, there or beside the scores. Case does not
matter in names of classes.
"""

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mela_jax.errors import UserError

IMAGE = ("image_id", "image", "image_name")
TRUTH = ("dx", "label", "diagnosis")
MELANOMA = ("mel", "melanoma")
# Columns that are no class: what is known of an image, and ISIC's weights, which are
# not used (every image counts once).
_OTHER = (
    *IMAGE,
    *TRUTH,
    "lesion_id",
    "age",
    "sex",
    "localization",
    "dx_type",
    "source",
    "score_weight",
    "validation_weight",
)
# What makes a table one of another form.
_BINARY = ("score", "target")
FEWEST = 3
# This project's own CSV has a column for each class, whose name begins so.
PREFIX = "p_"
# The decision where several classes share the highest score: none, as in ISIC.
TIED = -1
# How far from 1 the scores of an image may add up to before it is said.
_SUM_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class ClassScores:
    """Scores of every class, and which class is true.

    Scores need not add up to 1: confidences of one-against-the-rest models are as good
    for argmax and areas, and the challenges take them.

    Attributes:
        names: K >= 2 names, as in the file, different whatever their case.
        truth: int64 [N], index of the true class.
        score: float64 [N, K] in [0, 1].
        melanoma: index of the class that is melanoma; found by its name where it is
            not given.

    Raises:
        UserError: a score is not a number from 0 to 1, a class occurs twice, or none
            is melanoma.
        ValueError: shapes or indices do not fit.
    """

    names: tuple[str, ...]
    truth: npt.NDArray[np.int64]
    score: npt.NDArray[np.float64]
    melanoma: int = -1

    def __post_init__(self) -> None:
        """Check shapes, range and names."""
        count = len(self.names)
        if self.score.shape != (self.truth.size, count):
            raise ValueError(f"scores {self.score.shape} of {count} classes")
        if not ((self.truth >= 0) & (self.truth < count)).all():
            raise ValueError(f"a true class is none of the {count}")
        if not ((self.score >= 0) & (self.score <= 1)).all():
            raise UserError("a class score is not a number from 0 to 1")
        if self.melanoma == -1:
            object.__setattr__(self, "melanoma", find_melanoma(self.names))
        if self.melanoma not in range(count):
            raise ValueError(f"melanoma is number {self.melanoma} of {count} classes")
        if len({name.lower() for name in self.names}) < count:
            raise UserError(f"a class occurs twice: {', '.join(self.names)}; keep one")

    @property
    def decision(self) -> npt.NDArray[np.int64]:
        """Index of the highest score int64 [N], `TIED` where several are highest."""
        highest = self.score == self.score.max(axis=1, keepdims=True)
        return np.where(
            highest.sum(axis=1) == 1, self.score.argmax(axis=1), TIED
        ).astype(np.int64)

    @property
    def not_summing_to_1(self) -> int:
        """Number of images whose scores do not add up to 1."""
        return int((np.abs(self.score.sum(axis=1) - 1) > _SUM_TOLERANCE).sum())


def find_melanoma(names: Sequence[str]) -> int:
    """Return the index of melanoma among class names.

    Raises:
        UserError: none of them is melanoma, or several are.
    """
    found = [i for i, name in enumerate(names) if name.lower() in MELANOMA]
    if len(found) != 1:
        raise UserError(
            f"{len(found)} of the classes {', '.join(names)} are melanoma; name one "
            "column MEL"
        )
    return found[0]


def restore_classes(
    names: Sequence[str],
    dx: Sequence[str],
    label: npt.NDArray[np.int64],
    score: npt.NDArray[np.float64],
    class_score: npt.NDArray[np.float64],
) -> ClassScores:
    """Return what the columns of this project's CSV say of the classes.

    Melanoma may have any name: it is the class whose images are those of label 1, and
    whose column is `score` to the last bit.

    Args:
        names: K names.
        dx: N names of true classes.
        label: int64 [N], 1 for melanoma.
        score: float64 [N], P(melanoma).
        class_score: float64 [N, K] in [0, 1].

    Raises:
        UserError: a true class is none of `names`, or no class can be melanoma.
    """
    index = {name: number for number, name in enumerate(names)}
    unknown = [name for name in dx if name not in index]
    if unknown:
        raise UserError(
            f"dx {unknown[0]!r} is none of the classes {', '.join(names)}; correct it, "
            f"or remove the columns {PREFIX}*"
        )
    truth = np.asarray([index[name] for name in dx], np.int64)
    for k in range(len(names)):
        if np.array_equal(truth == k, label == 1) and np.array_equal(
            class_score[:, k], score
        ):
            return ClassScores(tuple(names), truth, class_score, k)
    raise UserError(
        "melanoma is none of the classes: no dx has all images of label 1 and no "
        f"others, with its column {PREFIX}<dx> equal to score"
    )


def pool_classes(parts: Sequence[ClassScores | None]) -> ClassScores | None:
    """Put class scores of several files together; columns are matched by name.

    Raises:
        UserError: the files differ in their classes or in which of them is melanoma,
            or only some have any.
    """

    def key(part: ClassScores | None) -> tuple[set[str], str] | None:
        if part is None:
            return None
        names = [name.lower() for name in part.names]
        return set(names), names[part.melanoma]

    first = parts[0]
    for part in parts:
        if key(part) != key(first):
            raise UserError(
                "the files to be pooled have not the same classes; give them the same "
                "columns, or add --melanoma-only"
            )
    if first is None:
        return None
    truths, scores = [], []
    for part in parts:
        assert part is not None, "checked above"
        of_name = {name.lower(): i for i, name in enumerate(part.names)}
        order = [of_name[name.lower()] for name in first.names]
        truths.append(np.argsort(order)[part.truth])
        scores.append(part.score[:, order])
    return ClassScores(
        first.names, np.concatenate(truths), np.concatenate(scores), first.melanoma
    )


@dataclass(frozen=True)
class Table:
    """A CSV with a row for each image.

    Attributes:
        path: the file.
        columns: stripped names, in the order of the file.
        rows: image -> column -> text.
        lines: image -> line in the file, the header being line 1.
    """

    path: str
    columns: list[str]
    rows: Mapping[str, Mapping[str, str]]
    lines: Mapping[str, int]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the columns that are classes."""
        return tuple(c for c in self.columns if c.lower() not in _OTHER)

    @property
    def holds_classes(self) -> bool:
        """Whether it has a column for each of several classes."""
        names = [name.lower() for name in self.classes]
        return (
            len(names) >= FEWEST
            and not set(names) & set(_BINARY)
            and bool(set(names) & set(MELANOMA))
        )

    @property
    def truth_column(self) -> str | None:
        """The column that names the true class, if there is one."""
        if set(_BINARY) & set(self.columns):
            return None
        return next((name for name in TRUTH if name in self.columns), None)

    def where(self, image_id: str) -> str:
        """Return the file and row of an image, for messages."""
        return f"{self.path}: row {self.lines[image_id]}"

    def column(self, name: str) -> list[str]:
        """Return the texts of a column."""
        return [row[name] for row in self.rows.values()]


def read_table(path: str | os.PathLike[str]) -> Table | None:
    """Read a CSV that names its images, or return None where no column does.

    Raises:
        UserError: it cannot be read, has a column twice, a row that is too short or
            without a name, or an image twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        lines = list(csv.reader(text.splitlines()))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; check the path") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a CSV ({error})") from error
    columns = [name.strip() for name in lines[0]] if lines else []
    image = next((name for name in IMAGE if name in columns), None)
    if image is None:
        return None
    repeated = {c for c in columns if columns.count(c) > 1}
    if repeated:
        raise UserError(f"{path}: column {min(repeated)} occurs twice; keep one")
    rows: dict[str, dict[str, str]] = {}
    numbers: dict[str, int] = {}
    for number, line in enumerate(lines[1:], start=2):
        if not line:
            continue
        if len(line) != len(columns):
            raise UserError(
                f"{path}: row {number} has {len(line)} cells for {len(columns)} columns"
            )
        row = dict(zip(columns, (cell.strip() for cell in line), strict=True))
        name = row[image]
        if not name:
            raise UserError(f"{path}: row {number} names no image")
        if name in rows:
            raise UserError(
                f"{path}: row {number}: {name} was already in row {numbers[name]}; "
                "keep one of the two"
            )
        rows[name], numbers[name] = row, number
    return Table(str(path), columns, rows, numbers)


def true_classes(table: Table, names: Sequence[str]) -> list[str]:
    """Return the name of the true class of each image of a table, as in `names`.

    Args:
        table: with a column that names the class, or with 0 and 1 for each class.
        names: the classes that were scored.

    Raises:
        UserError: the classes differ from `names`, an image has a class that is none
            of them, or not exactly one; or a label of 0 and 1 contradicts the class.
    """
    known = {name.lower(): name for name in names}
    listed = ", ".join(names)
    column = table.truth_column
    if column is None:
        marked = {name.lower(): name for name in table.classes}
        unmatched = sorted(known.keys() ^ marked.keys())
        if unmatched:
            raise UserError(
                f"{table.path} has the classes {', '.join(table.classes)} and the "
                f"scores {listed}: {', '.join(unmatched)} lack a match; give both "
                "files the same classes, or add --melanoma-only"
            )
        found = []
        for image_id, row in table.rows.items():
            try:
                values = {key: float(row[name]) for key, name in marked.items()}
            except ValueError as error:
                raise UserError(f"{table.where(image_id)}: {error}") from error
            ones = [key for key, value in values.items() if value == 1]
            if len(ones) != 1 or sum(v == 0 for v in values.values()) != len(names) - 1:
                raise UserError(
                    f"{table.where(image_id)}: {image_id} has not a 1 for one class "
                    "and a 0 for every other"
                )
            found.append(known[ones[0]])
        return found
    found = []
    for image_id, row in table.rows.items():
        key = row[column].lower()
        if key not in known:
            raise UserError(
                f"{table.where(image_id)}: {column} {row[column]!r} is none of the "
                f"classes {listed}"
            )
        found.append(known[key])
        label = row.get("label", "").lower() if column != "label" else ""
        if label and label not in (key, str(int(key in MELANOMA))):
            raise UserError(
                f"{table.where(image_id)}: label {row['label']!r} contradicts "
                f"{column} {row[column]!r}"
            )
    return found


def class_scores(table: Table, names: Sequence[str]) -> npt.NDArray[np.float64]:
    """Return the scores float64 [N, len(names)] of some columns of a table.

    Raises:
        UserError: one is not a number from 0 to 1, naming its row and column.
    """
    scores = np.empty((len(table.rows), len(names)))
    for i, (image_id, row) in enumerate(table.rows.items()):
        for j, name in enumerate(names):
            try:
                scores[i, j] = float(row[name])
            except ValueError:
                scores[i, j] = np.nan
            if not 0 <= scores[i, j] <= 1:
                raise UserError(
                    f"{table.where(image_id)}: {name} is {row[name]!r}, not a number "
                    "from 0 to 1; scores are confidences, such as softmax gives, not "
                    "logits"
                )
    return scores
