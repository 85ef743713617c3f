"""Scores in the CSV formats of the ISIC challenges, and of every diagnosis.

- 2018 and 2019: ``image,MEL,NV,BCC,...``, a confidence in [0, 1] for each diagnosis;
- 2020: ``image_name,target``, P(melanoma);
- 2017: ``image_id,melanoma,seborrheic_keratosis``;
- 2016: two columns without a header, image and P(malignant).

Ground truth has the same form with 0 and 1, in 2016 with benign and malignant.

Of the form of 2018 is every table of three or more classes, one of them melanoma
(``MEL`` or ``melanoma``), that has no column ``score`` or ``target``. Its true classes
may also stand by their names in a column ``dx``, ``label`` or ``diagnosis``, in the
ground truth or beside the scores. Case does not matter in names of classes.
"""

import os
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mela_jax.data.records import read_details, read_groups, read_labels, read_names
from mela_jax.errors import UserError
from mela_jax.evaluation.classes import MELANOMA, ClassScores, find_melanoma
from mela_jax.evaluation.scores import (
    Predictions,
    match_rows,
    naming,
    read_predictions,
    read_probabilities,
)
from mela_jax.tables import Table, read_table
from mela_jax.vocabulary import DETAILS, GROUPINGS, plain_name

# P(melanoma).
SCORES = ("score", "target", *MELANOMA)
# Columns that are no class: what is known of an image, and ISIC's weights, which are
# not used (every image counts once).
_OTHER = ("image_id", *GROUPINGS, *DETAILS, "score_weight", "validation_weight")
_LABELS = ("label", "benignmalignant")
# What makes a table one of another form.
_NOT_CLASSES = {"score", "target"}
FEWEST = 3


def read_scores(
    path: str | os.PathLike[str],
    truth: str | os.PathLike[str] | None = None,
    *,
    melanoma_only: bool = False,
) -> Predictions:
    """Read scores of this project's form, of ISIC's, or of every diagnosis.

    The ground truth is of the same images; None where `path` has it. `melanoma_only`
    leaves out the scores of other diagnoses than melanoma.

    Raises:
        UserError: a file is absent or of no known form, a value is out of range, or
            images have scores and no truth, or the reverse.
    """
    table = _read(path)
    answers = table if truth is None else _read(truth)
    if not _classes(table):
        if truth is not None:
            return _of_melanoma(table, answers)
        own = read_predictions(path)
        return replace(own, classes=None) if melanoma_only else own
    if _truth_column(answers):
        return _of_classes(table, answers, melanoma_only=melanoma_only)
    if truth is None:
        raise UserError(
            f"{path}: scores of {', '.join(_classes(table))}, and no column dx or label"
            " that names each image's class; add one, or give the ground truth"
        )
    if melanoma_only or not _classes(answers):
        return _of_melanoma(table, answers)
    return _of_classes(table, answers, melanoma_only=False)


def _read(path: str | os.PathLike[str]) -> Table:
    """Read a table; the columns of one without a header get the names of 2020."""
    table = read_table(path)
    if len(table.columns) != 2 or not table.columns[0].startswith("ISIC_"):
        return table
    names = ("image_name", "target")
    cells = [table.columns, *(row.values() for row in table.rows)]
    rows = [dict(zip(names, row, strict=True)) for row in cells]
    return Table(table.path, names, rows, [1, *table.lines])


def _classes(table: Table) -> tuple[str, ...]:
    """Return the columns that are classes; none where the table has another form."""
    others = {column for meaning in _OTHER for column in table.find(meaning)}
    names = {
        column: plain_name(column)
        for column in table.columns
        if column not in others and plain_name(column) not in _LABELS
    }
    found = set(names.values())
    fits = len(names) >= FEWEST and found & set(MELANOMA) and not found & _NOT_CLASSES
    return tuple(names) if fits else ()


def _truth_column(table: Table) -> str | None:
    """Return the column that names the true class, if there is one."""
    plain = {plain_name(column): column for column in table.columns}
    if _NOT_CLASSES & plain.keys():
        return None
    return next(iter(table.find("dx")), plain.get("label"))


def _match(table: Table, answers: Table) -> tuple[list[str], Table]:
    """Return the scored images and the ground truth in their order."""
    scored, labelled = read_names(table), read_names(answers)
    matched = match_rows(answers, scored)
    if len(labelled) > len(scored):
        found = set(matched.lines)
        rest = [
            name
            for name, line in zip(labelled, answers.lines, strict=True)
            if line not in found
        ]
        raise UserError(
            f"{table.path}: {len(rest)} of {len(labelled)} images of {answers.path}"
            f" have no score ({min(rest)} ...); score all images of the ground truth"
        )
    return scored, matched


def _groups(table: Table, answers: Table, names: list[str]) -> list[str]:
    """Return the lesion of each image, from whichever table knows it."""
    grouped = any(answers.has(name) for name in GROUPINGS)
    return read_groups(answers if grouped else table, names)


def _of_melanoma(table: Table, answers: Table) -> Predictions:
    """Return P(melanoma) of one table and the labels of another."""
    image_id, answers = _match(table, answers)
    column = next((c for name in SCORES for c in table.find(name)), None)
    if column is None:
        raise UserError(
            f"{table.path}: has no column {' or '.join(SCORES)}; give "
            "image_id,label,score, or an ISIC file: image,MEL,NV,... or "
            "image_name,target or image_id,melanoma,... or two columns without a header"
        )
    score = read_probabilities(table, [column])[:, 0]
    label = np.asarray(read_labels(answers), np.int64)
    details = {**read_details(table), **read_details(answers)}
    groups = _groups(table, answers, image_id)
    with naming(table.path):
        return Predictions(image_id, groups, label, score, details)


def _of_classes(table: Table, answers: Table, *, melanoma_only: bool) -> Predictions:
    """Return the scores of every class of a table, with the truth of another."""
    image_id, answers = _match(table, answers)
    names = _classes(table)
    melanoma = find_melanoma(names)
    truth = np.asarray(_true_classes(answers, names))
    dx = [names[k].lower() for k in truth]
    kept = (names[melanoma],) if melanoma_only else names
    scores = read_probabilities(table, kept)
    with naming(table.path):
        return Predictions(
            image_id,
            _groups(table, answers, image_id),
            (truth == melanoma).astype(np.int64),
            scores[:, kept.index(names[melanoma])],
            {**read_details(table), **read_details(answers), "dx": dx},
            None if melanoma_only else ClassScores(names, truth, scores),
        )


def _true_classes(table: Table, names: Sequence[str]) -> list[int]:
    """Return the number of the true class in `names` for each row of a table."""
    number_of = {name.lower(): number for number, name in enumerate(names)}
    listed = ", ".join(names)
    column = _truth_column(table)
    if column is None:
        marked = _classes(table)
        unmatched = sorted(number_of.keys() ^ {name.lower() for name in marked})
        if unmatched:
            raise UserError(
                f"{table.path} has the classes {', '.join(marked)} and the scores "
                f"{listed}: {', '.join(unmatched)} lack a match; give both files the "
                "same classes, or add --melanoma-only"
            )
        values = read_probabilities(table, marked)
        right = np.isin(values, (0, 1)).all(axis=1) & (values.sum(axis=1) == 1)
        if not right.all():
            where = table.place(int(right.argmin()))
            raise UserError(
                f"{where}: has not a 1 for one class and a 0 for the others"
            )
        return [number_of[marked[k].lower()] for k in values.argmax(axis=1)]
    for number, row in enumerate(table.rows):
        name, label = row[column].lower(), row.get("label", "").lower()
        if name not in number_of:
            raise UserError(
                f"{table.place(number)}: {column} {row[column]!r} is none of the "
                f"classes {listed}"
            )
        if column != "label" and label not in ("", name, str(int(name in MELANOMA))):
            raise UserError(
                f"{table.place(number)}: label {row['label']!r} contradicts {column} "
                f"{row[column]!r}"
            )
    return [number_of[row[column].lower()] for row in table.rows]
