"""Scores of several diagnoses at once, and which of them is true."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mela_jax.errors import UserError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

MELANOMA = ("mel", "melanoma")
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
        melanoma: its index; found by its name where it is not given.

    Raises:
        UserError: a score is not a number from 0 to 1, a class occurs twice, or none
            is melanoma.
        ValueError: shapes or indices do not fit.
    """

    names: tuple[str, ...]
    truth: IntArray
    score: FloatArray
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
    def decision(self) -> IntArray:
        """Index of the highest score int64 [N], `TIED` where several are highest."""
        highest = self.score == self.score.max(axis=1, keepdims=True)
        return np.where(
            highest.sum(axis=1) == 1, self.score.argmax(axis=1), TIED
        ).astype(np.int64)

    def belong_to(self, label: IntArray, score: FloatArray) -> bool:
        """Whether they say of melanoma what labels and scores [N] say."""
        return np.array_equal(self.truth == self.melanoma, label == 1) and (
            np.array_equal(self.score[:, self.melanoma], score)
        )

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
    label: IntArray,
    score: FloatArray,
    class_score: FloatArray,
) -> ClassScores:
    """Return what the columns of this project's CSV say of the K classes of N images.

    Melanoma may have any name: it is the class whose images are those of label 1, and
    whose column of `class_score` [N, K] is `score` [N] to the last bit.

    Raises:
        UserError: a true class is none of `names`, or no class can be melanoma.
    """
    unknown = [name for name in dx if name not in names]
    if unknown:
        raise UserError(
            f"dx {unknown[0]!r} is none of the classes {', '.join(names)}; correct it, "
            f"or remove the columns {PREFIX}*"
        )
    truth = np.asarray([names.index(name) for name in dx], np.int64)
    for k in range(len(names)):
        found = ClassScores(tuple(names), truth, class_score, k)
        if found.belong_to(label, score):
            return found
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
    known = [part for part in parts if part is not None]
    if not known:
        return None
    names = [[name.lower() for name in part.names] for part in known]
    kinds = {
        (frozenset(each), each[part.melanoma])
        for each, part in zip(names, known, strict=True)
    }
    if len(known) < len(parts) or len(kinds) > 1:
        raise UserError(
            "the files to be pooled have not the same classes; give them the same "
            "columns, or add --melanoma-only"
        )
    orders = [[each.index(name) for name in names[0]] for each in names]
    pairs = list(zip(known, orders, strict=True))
    return ClassScores(
        known[0].names,
        np.concatenate([np.argsort(order)[part.truth] for part, order in pairs]),
        np.concatenate([part.score[:, order] for part, order in pairs]),
        known[0].melanoma,
    )
