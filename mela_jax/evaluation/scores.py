"""The scores of one model on one split: checked once, then trusted everywhere."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mela_jax.atomic import write_atomically
from mela_jax.data.records import known_text
from mela_jax.errors import UserError
from mela_jax.evaluation.classes import (
    PREFIX,
    ClassScores,
    pool_classes,
    restore_classes,
)

COLUMNS = ("image_id", "lesion_id", "label", "score")
REQUIRED = ("image_id", "label", "score")
# What may be known of an image besides; the report looks at each of them apart.
DETAILS = ("age", "sex", "localization", "dx", "dx_type", "source")


def check_binary(
    labels: npt.ArrayLike, scores: npt.ArrayLike
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return labels and scores as arrays after checking that they make sense.

    Args:
        labels: [N], 1 for melanoma, 0 for everything else.
        scores: [N], P(melanoma) in [0, 1].

    Returns:
        labels as int64 [N] and scores as float64 [N].

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


def require_both_classes(labels: npt.NDArray[np.int64], where: str) -> None:
    """Refuse labels that hold only one class.

    Args:
        labels: int [N] of 0 and 1.
        where: what the labels belong to, for the message ("val", "test", ...).

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
        classes: scores of every diagnosis, row by row; None where only melanoma was
            scored.

    Raises:
        UserError: see `check_binary`; also for columns of different lengths, an empty
            name, an image named twice, or an age that is not a number.
        ValueError: the class scores are not those of these labels and scores.
    """

    image_id: list[str]
    lesion_id: list[str]
    label: npt.NDArray[np.int64]
    score: npt.NDArray[np.float64]
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
        seen: set[str] = set()
        for image_id, lesion_id in zip(self.image_id, self.lesion_id, strict=True):
            if not image_id or not lesion_id:
                raise UserError(
                    f"image {image_id!r} of lesion {lesion_id!r}: a name is empty; "
                    "name every image and every lesion"
                )
            if image_id in seen:
                raise UserError(
                    f"image_id {image_id} occurs twice; score every image once"
                )
            seen.add(image_id)
        object.__setattr__(self, "details", self._checked_details())
        if self.classes is not None:
            melanoma = self.classes.melanoma
            if not (
                np.array_equal(self.classes.truth == melanoma, label == 1)
                and np.array_equal(self.classes.score[:, melanoma], score)
            ):
                raise ValueError("class scores disagree with labels and scores")

    @property
    def num_lesions(self) -> int:
        """Number of distinct lesions."""
        return len(set(self.lesion_id))

    @property
    def repeats_lesions(self) -> bool:
        """Whether some lesion has several images."""
        return self.num_lesions < len(self.lesion_id)

    def _checked_details(self) -> dict[str, list[str]]:
        """Return the columns of which something is known, cleaned."""
        details = {}
        for name in DETAILS:
            if name not in self.details:
                continue
            texts = [known_text(str(text)) for text in self.details[name]]
            if len(texts) != self.label.size:
                raise UserError(
                    f"column {name} has {len(texts)} entries for {self.label.size} "
                    "scores; give one per image"
                )
            if name == "age":
                for image_id, text in zip(self.image_id, texts, strict=True):
                    _check_age(text, image_id)
            if any(texts):
                details[name] = texts
        unknown = set(self.details) - set(DETAILS)
        if unknown:
            raise ValueError(f"details {sorted(unknown)}; known are {DETAILS}")
        return details


def _check_age(text: str, image_id: str) -> None:
    try:
        fits = not text or 0 <= float(text) <= 130
    except ValueError:
        fits = False
    if not fits:
        raise UserError(
            f"age {text!r} of {image_id} is not a number of years; leave it empty "
            "where it is unknown"
        )


def write_predictions(path: str | os.PathLike[str], predictions: Predictions) -> None:
    """Write predictions as a CSV that reads back to the same bits.

    Columns are `image_id,lesion_id,label,score`, then those details of which something
    is known, then P(class) of every class as `p_<class>`; `dx` is then the true class.
    Scores are written with `repr`, the shortest text that names one float64. The file
    appears whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    columns: dict[str, Sequence[object]] = {
        "image_id": predictions.image_id,
        "lesion_id": predictions.lesion_id,
        "label": predictions.label.tolist(),
        "score": [repr(score) for score in predictions.score.tolist()],
        **predictions.details,
    }
    classes = predictions.classes
    if classes is not None:
        columns["dx"] = [classes.names[k] for k in classes.truth]
        for name, scores in zip(classes.names, classes.score.T, strict=True):
            columns[PREFIX + name] = [repr(score) for score in scores.tolist()]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    write_atomically(path, text.getvalue().encode("utf-8"))


def read_predictions(path: str | os.PathLike[str]) -> Predictions:
    """Read the CSV of one model on one split.

    Columns may come in any order. `image_id`, `label` and `score` must be there;
    without `lesion_id` every image is taken as a lesion of its own; those of `DETAILS`
    are kept, others ignored. Two or more columns `p_<class>` are P(class), see
    `classes.restore_classes`; `dx` must then name the true class.

    Raises:
        UserError: naming the file and, where there is one, the row (its line in the
            file, the header being line 1): no such file, not a CSV, a missing column,
            no rows, an empty name, a label other than 0 and 1, a score that is not a
            finite number in [0, 1], an image named twice, or a `dx` that is no class.
    """
    image_ids: list[str] = []
    lesion_ids: list[str] = []
    labels: list[int] = []
    scores: list[float] = []
    details: dict[str, list[str]] = {}
    class_scores: list[list[float]] = []
    first_line: dict[str, int] = {}
    try:
        with open(Path(path), encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = columns
            missing = [c for c in REQUIRED if c not in columns]
            if missing:
                raise UserError(
                    f"{path}: no column {', '.join(missing)}; the header must name "
                    f"{','.join(REQUIRED)}"
                )
            grouped = "lesion_id" in columns
            details = {name: [] for name in DETAILS if name in columns}
            names = [c.removeprefix(PREFIX) for c in columns if c.startswith(PREFIX)]
            if len(names) < 2:
                names = []  # A single one is something else.
            elif "dx" not in columns:
                raise UserError(
                    f"{path}: columns {PREFIX}{names[0]}, ... and no column dx; add "
                    "it, the true class of each image"
                )
            for row in reader:
                where = f"{path}: row {reader.line_num}"
                # A short row leaves None in the columns that it lacks.
                image_id, label, score = (
                    (row[column] or "").strip() for column in REQUIRED
                )
                lesion_id = (row["lesion_id"] or "").strip() if grouped else image_id
                if not image_id or not lesion_id:
                    raise UserError(
                        f"{where}: image_id or lesion_id is empty; name both"
                    )
                if image_id in first_line:
                    raise UserError(
                        f"{where}: image_id {image_id} was already in row "
                        f"{first_line[image_id]}; keep one of the two"
                    )
                if label not in ("0", "1"):
                    raise UserError(
                        f"{where}: label {label!r} is neither 0 nor 1; use 1 for "
                        "melanoma and 0 for everything else"
                    )
                first_line[image_id] = reader.line_num
                image_ids.append(image_id)
                lesion_ids.append(lesion_id)
                labels.append(int(label))
                scores.append(_probability(score, "score", where))
                class_scores.append(
                    [
                        _probability(row[PREFIX + name] or "", PREFIX + name, where)
                        for name in names
                    ]
                )
                for name, texts in details.items():
                    texts.append(row[name] or "")
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: no such predictions file; check the path, or run the evaluation"
        ) from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{path}: cannot be read as a CSV of predictions ({error}); "
            f"give a UTF-8 text file with the columns {','.join(REQUIRED)}"
        ) from error
    if not image_ids:
        raise UserError(f"{path}: no rows below the header; score at least one image")
    label, score = np.asarray(labels), np.asarray(scores, np.float64)
    try:
        classes = None
        if names:
            dx = [known_text(text) for text in details["dx"]]
            classes = restore_classes(names, dx, label, score, np.array(class_scores))
        return Predictions(image_ids, lesion_ids, label, score, details, classes)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def pool(parts: Sequence[Predictions]) -> Predictions:
    """Put the scores of several files together, such as the folds of a k-fold run.

    Pooled out-of-fold scores come from as many models as there are folds, so a
    threshold chosen on them is that of their common scale.

    Args:
        parts: at least one; no image may be in two of them.

    Raises:
        UserError: an image is in two of them.
    """
    if len(parts) == 1:
        return parts[0]
    names = [name for name in DETAILS if any(name in part.details for part in parts)]
    return Predictions(
        [image_id for part in parts for image_id in part.image_id],
        [lesion_id for part in parts for lesion_id in part.lesion_id],
        np.concatenate([part.label for part in parts]),
        np.concatenate([part.score for part in parts]),
        {
            name: [
                text
                for part in parts
                for text in part.details.get(name, [""] * part.label.size)
            ]
            for name in names
        },
        pool_classes([part.classes for part in parts]),
    )


def _probability(text: str, column: str, where: str) -> float:
    """Parse one score, naming its row when it is not in [0, 1]."""
    try:
        score = float(text)
    except ValueError:
        score = float("nan")
    # False for NaN and for both infinities, too.
    if not 0.0 <= score <= 1.0:
        raise UserError(
            f"{where}: {column} {text!r} is not a number from 0 to 1; scores are "
            "probabilities"
        )
    return score
