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

from mela_jax.errors import UserError
from mela_jax.evaluation.classes import MELANOMA, ClassScores, find_melanoma
from mela_jax.evaluation.scores import (
    DETAILS,
    Predictions,
    naming,
    read_details,
    read_labels,
    read_names,
    read_predictions,
    read_probabilities,
    rows_of,
    take_rows,
)
from mela_jax.tables import Table, read_table

IMAGE = ("image_id", "image", "image_name")
# P(melanoma), or 0 and 1.
MELANOMA_COLUMNS = ("target", *MELANOMA)
TRUTH = ("dx", "label", "diagnosis")
# Columns that are no class: what is known of an image, and ISIC's weights, which are
# not used (every image counts once).
_OTHER = {*IMAGE, *TRUTH, *DETAILS, "lesion_id", "score_weight", "validation_weight"}
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
    others = {table.find(name) for name in _OTHER}
    classes = tuple(name for name in table.columns if name not in others)
    names = {name.lower() for name in classes}
    fits = len(classes) >= FEWEST and names & set(MELANOMA) and not names & _NOT_CLASSES
    return classes if fits else ()


def _first(table: Table, names: Sequence[str]) -> str | None:
    """Return the column with the first of these names that there is."""
    return next(filter(None, map(table.find, names)), None)


def _truth_column(table: Table) -> str | None:
    """Return the column that names the true class, if there is one."""
    if _NOT_CLASSES & set(table.columns):
        return None
    return _first(table, TRUTH)


def _require(table: Table, names: Sequence[str]) -> str:
    """Return the column with the first of these names, of which there must be one."""
    found = _first(table, names)
    if found is None:
        raise UserError(
            f"{table.path}: has no column {' or '.join(names)}; give "
            "image_id,label,score, or an ISIC file: image,MEL,NV,... or "
            "image_name,target or image_id,melanoma,... or two columns without a header"
        )
    return found


def _match(table: Table, answers: Table) -> tuple[list[str], Table]:
    """Return the scored images and the ground truth in their order."""
    scored, _ = read_names(table, _require(table, IMAGE))
    labelled, _ = read_names(answers, _require(answers, IMAGE))
    different = set(scored) ^ set(labelled)
    if different:
        raise UserError(
            f"{table.path} and {answers.path} do not name the same images: "
            f"{len(different & set(scored))} have a score only, "
            f"{len(different & set(labelled))} a label only ({min(different)}); score "
            "all images of the ground truth and no others"
        )
    return scored, take_rows(answers, rows_of(scored, labelled))


def _of_melanoma(table: Table, answers: Table) -> Predictions:
    """Return P(melanoma) of one table and the labels of another."""
    image_id, answers = _match(table, answers)
    score = read_probabilities(table, [_require(table, MELANOMA_COLUMNS)])[:, 0]
    label = read_labels(answers, _require(answers, MELANOMA_COLUMNS))
    return Predictions(image_id, image_id, label, score)


def _of_classes(table: Table, answers: Table, *, melanoma_only: bool) -> Predictions:
    """Return the scores of every class of a table, with the truth of another."""
    image_id, answers = _match(table, answers)
    names = _classes(table)
    melanoma = find_melanoma(names)
    truth = np.asarray(_true_classes(answers, names))
    dx = [names[k].lower() for k in truth]
    grouped = answers if answers.find("lesion_id") else table
    kept = (names[melanoma],) if melanoma_only else names
    scores = read_probabilities(table, kept)
    with naming(table.path):
        return Predictions(
            image_id,
            read_names(grouped, _require(grouped, IMAGE))[1],
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
