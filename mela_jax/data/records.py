"""What is known of one image, and the tables that say it."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from mela_jax.errors import UserError
from mela_jax.tables import Table
from mela_jax.vocabulary import (
    DETAILS,
    GROUPINGS,
    LABEL_HELP,
    PictureNames,
    check_age,
    find_diagnosis,
    parse_label,
)

# The widest grouping names what is joined: one patient has several lesions.
_WIDEST = ("patient_id", "group", "lesion_id")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """One image of one lesion.

    Attributes:
      image_id: name of the image, unique within its data set.
      lesion_id: name of the lesion (or patient) that the image shows. Images that share
        it never land in different splits.
      label: 1 for melanoma, 0 for anything else.
      path: the image file.
      dx: diagnosis, as the data set names it, in lower case; empty where unknown.
      dx_type: how the diagnosis was made; empty where unknown.
      age: age of the patient in years, as text; empty where unknown.
      sex: sex of the patient; empty where unknown.
      localization: place on the body; empty where unknown.
      source: clinic, camera or collection that the image comes from, as the data set
        names it; empty where unknown.
    """

    image_id: str
    lesion_id: str
    label: int
    path: str
    dx: str = ""
    dx_type: str = ""
    age: str = ""
    sex: str = ""
    localization: str = ""
    source: str = ""


def read_names(table: Table, meaning: str = "image_id") -> list[str]:
    """Return the name of each row's image.

    Raises:
      UserError: there is no such column, a name is empty, or two rows name one image.
    """
    names = table.texts(meaning)
    if "" in names:
        raise UserError(f"{table.place(names.index(''))}: the image has no name")
    if repeated := PictureNames(names).find_repeated():
        first, second = repeated
        raise UserError(
            f"{table.place(second)}: image {names[second]!r} was already in line"
            f" {table.lines[first]} as {names[first]!r}; keep one of the two"
        )
    return names


def read_groups(table: Table, names: Sequence[str]) -> list[str]:
    """Return for each image of a table what it must not be parted from: `join_groups`.

    Args:
      table: its rows are the images.
      names: of the images, as `read_names` gives them.

    Raises:
      UserError: there are such columns, and nothing in them.
    """
    columns = {name: table.texts(name) for name in GROUPINGS if table.has(name)}
    alone = [not any(cells) for cells in zip(*columns.values(), strict=True)]
    if columns and all(alone):
        raise UserError(
            f"{table.path}: {' and '.join(columns)} are empty in every row, so images"
            " of one lesion would count as independent; fill them in, or remove the"
            " columns to take each image as a lesion of its own"
        )
    if any(alone):
        _logger.warning(
            "%s: %d of %d images have no %s; each of them is taken as a lesion of its"
            " own",
            table.path,
            sum(alone),
            len(names),
            " or ".join(columns),
        )
    return join_groups(names, columns)


def join_groups(
    names: Sequence[str], columns: Mapping[str, Sequence[str]]
) -> list[str]:
    """Return for each of N images the name of the group that it belongs to.

    Images belong together that share a lesion, a patient or a group: where there are
    several columns, also through a third image. One of which none is known stands
    alone, under its own name.

    Args:
      names: N names of images.
      columns: keys of `GROUPINGS` -> N cells, "" where not known.
    """
    cells = [
        (row, (column, cell))
        for column in sorted(columns, key=_WIDEST.index)
        for row, cell in enumerate(columns[column])
        if cell
    ]
    number = {key: k for k, key in enumerate(dict.fromkeys(key for _, key in cells))}
    rows = [row for row, _ in cells]
    keys = [len(names) + number[key] for _, key in cells]
    size = len(names) + len(number)
    links = coo_array((np.ones(len(cells)), (rows, keys)), shape=(size, size))
    component = connected_components(links, directed=False)[1].tolist()
    name_of: dict[int, str] = {}
    for (_, cell), k in number.items():
        name_of.setdefault(component[len(names) + k], cell)
    groups = [name_of.get(k, name) for k, name in zip(component, names, strict=False)]
    if len(set(groups)) < len(set(component[: len(names)])):
        # One text names a lesion here and a patient there.
        groups = [f"{name} ({k})" for name, k in zip(groups, component, strict=False)]
    return groups


def read_labels(table: Table, *, compare_dx: bool = True) -> list[int]:
    """Return 1 for melanoma and 0 for anything else, for each row.

    From a column of labels, of diagnoses, or one column for each diagnosis with a 1 in
    the right one. `compare_dx` compares label and diagnosis where there are both.

    Raises:
      UserError: a cell says neither, or label and diagnosis contradict each other.
    """
    if not table.has("label") and not table.has("dx"):
        if not (columns := diagnosis_columns(table)):
            raise UserError(
                f"{table.path}: no column label, dx or one for each diagnosis (it has"
                f" {', '.join(table.columns)}); {LABEL_HELP}"
            )
        return [int(code == "mel") for code in read_marks(table, columns)]
    meaning = "label" if table.has("label") else "dx"
    column, cells = table.find(meaning)[0], table.texts(meaning)
    labels = []
    for row, cell in enumerate(cells):
        label = parse_label(cell)
        if label is None:
            raise UserError(f"{table.place(row)}: {column} is {cell!r}; {LABEL_HELP}")
        labels.append(label)
    for row, dx in enumerate(
        table.texts("dx") if compare_dx and table.has("dx") else ()
    ):
        code = find_diagnosis(dx)
        if code and labels[row] != (code == "mel"):
            raise UserError(
                f"{table.place(row)}: label {cells[row]!r} and diagnosis {dx!r}"
                " contradict each other; label 1 is melanoma and nothing else"
            )
    return labels


def diagnosis_columns(table: Table) -> dict[str, str]:
    """Return column -> code of its diagnosis, where a table has one for each of them.

    Columns of a challenge: three or more, with melanoma; "unk" is another diagnosis.
    """
    codes = {c: find_diagnosis(c) or "" for c in table.columns}
    codes = {c: code for c, code in codes.items() if code or c.casefold() == "unk"}
    return codes if len(codes) > 2 and "mel" in codes.values() else {}


def read_marks(table: Table, columns: dict[str, str]) -> list[str]:
    """Return for each row the code of the diagnosis whose column has the only 1.

    Raises:
      UserError: a row has not one 1 and zeros besides.
    """
    codes = []
    for number, row in enumerate(table.rows):
        marks = {column: parse_label(row[column] or "0") for column in columns}
        if sorted(marks.values(), key=str) != [0] * (len(marks) - 1) + [1]:
            raise UserError(
                f"{table.place(number)}: exactly one of {', '.join(columns)} must be 1"
                " and the others 0"
            )
        codes.append(columns[next(c for c, mark in marks.items() if mark)])
    return codes


def read_details(table: Table) -> dict[str, list[str]]:
    """Return those columns of `DETAILS` that a table has, "" where a cell is unknown.

    Raises:
      UserError: an age is not a number of years.
    """
    details = {name: table.texts(name) for name in DETAILS if table.has(name)}
    for row, age in enumerate(details.get("age", ())):
        check_age(age, table.place(row))
    return details


def read_records(table: Table, *, name: str = "image_id") -> list[Record]:
    """Return what a table says of its images, in its order, without their files.

    Args:
      table: one row for each image.
      name: meaning of the column that names them, "image_id" or "path".

    Raises:
      UserError: as the readers of the columns above.
    """
    names = read_names(table, name)
    groups, labels = read_groups(table, names), read_labels(table)
    details = read_details(table)
    if "dx" not in details and (columns := diagnosis_columns(table)):
        details["dx"] = read_marks(table, columns)
    details["dx"] = [dx.lower() for dx in details.get("dx", [""] * len(names))]
    return [
        Record(image, group, label, "", **dict(zip(details, cells, strict=True)))
        for image, group, label, *cells in zip(
            names, groups, labels, *details.values(), strict=True
        )
    ]
