"""The scores of one model on one split: checked once, then trusted everywhere."""

import contextlib
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from mela_jax.data.records import (
    join_groups,
    read_details,
    read_groups,
    read_labels,
    read_names,
)
from mela_jax.errors import UserError
from mela_jax.evaluation.classes import (
    PREFIX,
    ClassScores,
    FloatArray,
    IntArray,
    pool_classes,
    restore_classes,
)
from mela_jax.tables import Table, read_table, write_table
from mela_jax.vocabulary import (
    DETAILS,
    GROUPINGS,
    PictureNames,
    check_age,
    first_of,
    known_text,
)


def check_binary(
    labels: npt.ArrayLike, scores: npt.ArrayLike
) -> tuple[IntArray, FloatArray]:
    """Return labels as int64 [N] and scores as float64 [N], checked.

    Raises:
        UserError: empty, of different lengths, a label other than 0 and 1, or a score
            that is not a finite number in [0, 1].
    """
    label = np.asarray(labels)
    score = np.asarray(scores, dtype=np.float64)
    if label.ndim != 1 or label.shape != score.shape:
        raise UserError(
            f"labels have shape {label.shape} and scores {score.shape}; "
            "give one label and one score per image"
        )
    if label.size == 0:
        raise UserError("there are no scores; give at least one scored image")
    wrong = np.flatnonzero((label != 0) & (label != 1))
    if wrong.size:
        raise UserError(
            f"label {label[wrong[0]]} of image number {wrong[0] + 1} is neither 0 nor "
            "1; use 1 for melanoma and 0 for everything else"
        )
    wrong = np.flatnonzero(~((score >= 0) & (score <= 1)))
    if wrong.size:
        raise UserError(
            f"score {score[wrong[0]]} of image number {wrong[0] + 1} is not a number "
            "from 0 to 1; scores are P(melanoma)"
        )
    return label.astype(np.int64), score


def require_both_classes(labels: IntArray, where: str) -> None:
    """Refuse labels of one class only; the message starts with `where` they belong.

    Raises:
        UserError: there is no melanoma, or nothing but melanoma.
    """
    if not labels.any():
        raise UserError(
            f"{where}: none of the {labels.size} images is a melanoma, so sensitivity "
            "and ROC-AUC are undefined; use a split with melanomas in it"
        )
    if labels.all():
        raise UserError(
            f"{where}: all {labels.size} images are melanomas, so specificity and "
            "ROC-AUC are undefined; use a split with other images in it"
        )


@dataclass(frozen=True, eq=False)
class Predictions:
    """One model's scores on one split; holds only checked values.

    Attributes:
        image_id: N distinct names.
        lesion_id: N names; images of one lesion share theirs.
        label: int64 [N], 1 for melanoma.
        score: float64 [N], P(melanoma) in [0, 1].
        details: column of `DETAILS` -> N texts, "" where unknown; age in years. A
            column of which nothing is known is left out.
        classes: scores of every diagnosis; None where only melanoma was scored.

    Raises:
        UserError: see `check_binary`; also for columns of different lengths, an empty
            name, an image named twice, or an age that is not a number.
        ValueError: the class scores are not those of these labels and scores.
    """

    image_id: list[str]
    lesion_id: list[str]
    label: IntArray
    score: FloatArray
    details: Mapping[str, Sequence[str]] = field(default_factory=dict)
    classes: ClassScores | None = None

    def __post_init__(self) -> None:
        """Check every column and settle the dtypes."""
        label, score = check_binary(self.label, self.score)
        object.__setattr__(self, "label", label)
        object.__setattr__(self, "score", score)
        if not len(self.image_id) == len(self.lesion_id) == label.size:
            raise UserError(
                f"{len(self.image_id)} image ids and {len(self.lesion_id)} lesion ids "
                f"for {label.size} scores; give one of each per image"
            )
        for image_id, lesion_id in zip(self.image_id, self.lesion_id, strict=True):
            if not image_id or not lesion_id:
                raise UserError(
                    f"image {image_id!r} of lesion {lesion_id!r}: a name is empty; "
                    "name every image and every lesion"
                )
        image_id, count = Counter(self.image_id).most_common(1)[0]
        if count > 1:
            raise UserError(f"image_id {image_id} occurs twice; score every image once")
        object.__setattr__(self, "details", self._checked_details())
        if self.classes is not None and not self.classes.belong_to(label, score):
            raise ValueError("class scores disagree with labels and scores")

    @property
    def num_lesions(self) -> int:
        """Number of distinct lesions."""
        return len(set(self.lesion_id))

    @property
    def repeats_lesions(self) -> bool:
        """Whether some lesion has several images."""
        return self.num_lesions < len(self.lesion_id)

    def take(self, rows: npt.ArrayLike) -> "Predictions":
        """Return some rows, by their numbers, with the scores of melanoma alone."""
        numbers = np.asarray(rows).tolist()
        return Predictions(
            [self.image_id[k] for k in numbers],
            [self.lesion_id[k] for k in numbers],
            self.label[numbers],
            self.score[numbers],
            {name: [t[k] for k in numbers] for name, t in self.details.items()},
        )

    def _checked_details(self) -> dict[str, list[str]]:
        """Return the columns of which something is known, cleaned, in their order."""
        unknown = set(self.details) - set(DETAILS)
        if unknown:
            raise ValueError(f"details {sorted(unknown)}; known are {DETAILS}")
        details = {
            name: [known_text(str(text)) for text in self.details[name]]
            for name in DETAILS
            if name in self.details
        }
        for name, texts in details.items():
            if len(texts) != self.label.size:
                raise UserError(
                    f"column {name} has {len(texts)} entries for {self.label.size} "
                    "scores; give one per image"
                )
        for row, age in enumerate(details.get("age", ())):
            check_age(age, self.image_id[row])
        return {name: texts for name, texts in details.items() if any(texts)}


def write_predictions(path: str | os.PathLike[str], predictions: Predictions) -> None:
    """Write predictions as a CSV that reads back to the same bits, whole or not at all.

    Columns are `image_id,lesion_id,label,score`, then those details of which something
    is known, then P(class) of every class as `p_<class>`; `dx` is then the true class.
    Floats are written as the shortest text that names them.
    """
    columns: dict[str, Sequence[object]] = {
        "image_id": predictions.image_id,
        "lesion_id": predictions.lesion_id,
        "label": predictions.label.tolist(),
        "score": predictions.score.tolist(),
        **predictions.details,
    }
    classes = predictions.classes
    if classes is not None:
        columns["dx"] = [classes.names[k] for k in classes.truth]
        for name, scores in zip(classes.names, classes.score.T, strict=True):
            columns[PREFIX + name] = scores.tolist()
    write_table(path, columns, zip(*columns.values(), strict=True))


def read_predictions(path: str | os.PathLike[str]) -> Predictions:
    """Read the CSV of one model on one split.

    Columns may come in any order and spelling. Names of the images, labels and `score`
    must be there; without a column of lesions, patients or groups every image is taken
    as a lesion of its own; those of `DETAILS` are kept, others ignored. Two or more
    columns `p_<class>` are P(class), see `classes.restore_classes`; `dx` must then name
    the true class.

    Raises:
        UserError: naming the file and, where there is one, the line: no table, a
            missing column, an empty name, an image named twice, or a value that is
            none.
    """
    table = read_table(path)
    image_id = read_names(table)
    score = read_probabilities(table, table.require("score"))[:, 0]
    of_class = [column for column in table.columns if column.startswith(PREFIX)]
    classes = None
    has_classes = len(of_class) > 1  # A single one is something else.
    # Of several classes melanoma may have any name.
    label = np.asarray(read_labels(table, compare_dx=not has_classes), np.int64)
    if has_classes:
        names = [column.removeprefix(PREFIX) for column in of_class]
        class_score = read_probabilities(table, of_class)
        dx = table.texts("dx")
        with naming(path):
            classes = restore_classes(names, dx, label, score, class_score)
    groups, details = read_groups(table, image_id), read_details(table)
    with naming(path):
        return Predictions(image_id, groups, label, score, details, classes)


def read_probabilities(table: Table, columns: Sequence[str]) -> FloatArray:
    """Return the numbers float64 [N, C] in some columns of a table of N rows.

    Raises:
        UserError: one is not a number from 0 to 1, naming its line and column.
    """
    found = np.asarray([[_number(row[c]) for c in columns] for row in table.rows])
    # False for NaN and for both infinities, too.
    for number, k in np.argwhere(~((found >= 0) & (found <= 1))):
        text = table.rows[number][columns[k]]
        raise UserError(
            f"{table.place(number)}: {columns[k]} {text!r} is not a number from 0 to "
            "1; scores are probabilities, such as softmax gives, not logits"
        )
    return found


def take_rows(table: Table, rows: Sequence[int]) -> Table:
    """Return a table of some rows of another, in this order."""
    taken = [(table.rows[k], table.lines[k]) for k in rows]
    return replace(table, rows=[r for r, _ in taken], lines=[n for _, n in taken])


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Put the file in front of the message of a UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _number(text: str) -> float:
    """Return the number that a text is; NaN where it is none."""
    try:
        return float(text)
    except ValueError:
        return float("nan")


def match_rows(table: Table, wanted: Sequence[str]) -> Table:
    """Return the rows of a table that are of the wanted images, in their order.

    Raises:
        UserError: an image is named twice, is not in the table, or could be two.
    """
    names = PictureNames(wanted)
    found: dict[int, int] = {}
    with naming(table.path):
        for row, name in enumerate(table.texts("image_id")):
            if (number := names.find(name)) is not None:
                if number in found:
                    raise UserError(
                        f"line {table.lines[row]}: image {name!r} was already in line"
                        f" {table.lines[found[number]]}; keep one of the two"
                    )
                found[number] = row
        if absent := [name for k, name in enumerate(wanted) if k not in found]:
            raise UserError(
                f"{len(absent)} of {len(wanted)} scored images are not in it"
                f" ({first_of(sorted(absent))})"
            )
    return take_rows(table, [found[k] for k in range(len(wanted))])


def join_details(predictions: Predictions, path: str | os.PathLike[str]) -> Predictions:
    """Add what a table knows of the images: their details, and what groups them.

    Rows of other images than the scored ones are passed over.

    Raises:
        UserError: the file cannot be read, names an image twice, or lacks an image.
    """
    table = match_rows(read_table(path), predictions.image_id)
    if any(table.has(name) for name in GROUPINGS):
        columns = {"group": read_groups(table, predictions.image_id)}
        columns["lesion_id"] = predictions.lesion_id
        groups = join_groups(predictions.image_id, columns)
        predictions = replace(predictions, lesion_id=groups)
    details = {**predictions.details, **read_details(table)}
    return replace(predictions, details=details)


def pool(parts: Sequence[Predictions]) -> Predictions:
    """Put the scores of several files together, such as the folds of a k-fold run.

    Pooled out-of-fold scores come from as many models as there are folds, so a
    threshold chosen on them is that of their common scale.

    Raises:
        UserError: an image is in two of them.
    """

    def chain(columns: Iterable[Sequence[str]]) -> list[str]:
        return list(itertools.chain.from_iterable(columns))

    # Columns of which no file knows anything are left out.
    details = {
        name: chain(part.details.get(name, [""] * part.label.size) for part in parts)
        for name in DETAILS
    }
    return Predictions(
        chain(part.image_id for part in parts),
        chain(part.lesion_id for part in parts),
        np.concatenate([part.label for part in parts]),
        np.concatenate([part.score for part in parts]),
        details,
        pool_classes([part.classes for part in parts]),
    )
