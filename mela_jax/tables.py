"""The one reader and writer of tables: CSV and its kin, whatever program wrote them."""

import codecs
import csv
import io
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mela_jax.atomic import write_text
from mela_jax.errors import UserError
from mela_jax.vocabulary import (
    COLUMNS,
    PictureNames,
    find_diagnosis,
    first_of,
    known_text,
    parse_label,
    picture_name,
    plain_name,
    same_picture,
)

SEPARATORS = ",;\t"


@dataclass(frozen=True)
class Table:
    """The text of a table, cell by cell.

    Attributes:
        path: the file.
        columns: names of the columns, as the file spells them.
        rows: for each row, name of a column -> its cell, without spaces around it.
        lines: for each row, the line of the file on which it ends, from 1.
    """

    path: Path
    columns: tuple[str, ...]
    rows: list[dict[str, str]]
    lines: list[int]

    def find(self, meaning: str) -> list[str]:
        """Return the columns that have a meaning, the best spelling first.

        A meaning is a key of `vocabulary.COLUMNS`, or the name of a column.
        """
        names = [plain_name(n) for n in COLUMNS.get(meaning, (meaning,))]
        found = [c for c in self.columns if plain_name(c) in names]
        return sorted(found, key=lambda column: names.index(plain_name(column)))

    def has(self, meaning: str) -> bool:
        """Return whether there is a column of this meaning."""
        return bool(self.find(meaning))

    def require(self, meaning: str) -> list[str]:
        """Return the columns that have a meaning, of which there must be one.

        Raises:
            UserError: there is none.
        """
        if columns := self.find(meaning):
            return columns
        raise UserError(
            f"{self.path}: no column {' or '.join(COLUMNS.get(meaning, [meaning]))} (it"
            f" has {', '.join(self.columns)})"
        )

    def texts(self, meaning: str) -> list[str]:
        """Return the cell of every row under a meaning, "" where it is not known.

        Where several columns have the meaning, the best known one is taken.

        Raises:
            UserError: there is no such column, or two of them contradict each other.
        """
        columns = self.require(meaning)
        agree = _AGREE.get(meaning, _same_text)
        texts = []
        for number, row in enumerate(self.rows):
            known = [c for c in columns if known_text(row[c])]
            for column in known[1:]:
                if not agree(row[known[0]], row[column]):
                    raise UserError(
                        f"{self.place(number)}: {known[0]} is {row[known[0]]!r} and"
                        f" {column} is {row[column]!r}; correct one of them, or remove"
                        " the column that means something else"
                    )
            texts.append(known_text(row[known[0]]) if known else "")
        return texts

    def place(self, row: int) -> str:
        """Return where a row is, for a message: the file and the line."""
        return f"{self.path}, line {self.lines[row]}"

    def select(
        self, required: Sequence[str], optional: Sequence[str] = ()
    ) -> Iterator[tuple[str, dict[str, str]]]:
        """Yield for each row its place, and its cells under some meanings.

        The cells are those of `texts`, and empty for an optional column that is absent.

        Raises:
            UserError: as `texts`.
        """
        names = [*required, *(name for name in optional if self.has(name))]
        columns = [self.texts(name) for name in names]
        absent = dict.fromkeys(optional, "")
        for number, cells in enumerate(zip(*columns, strict=True)):
            yield self.place(number), absent | dict(zip(names, cells, strict=True))


def write_table(
    path: str | os.PathLike[str],
    columns: Iterable[str],
    rows: Iterable[Iterable[object]],
) -> None:
    """Write a CSV whole or not at all; floats as the shortest text that names them.

    Raises:
        UserError: the disk is full or the folder cannot be written to.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_text(path, text.getvalue())


def join_tables(table: Table, other: Table) -> Table:
    """Add to each row of a table what another one says of the same image.

    Rows of the other table for images that are not in the first are passed over.

    Raises:
        UserError: an image is not in the other table, or could be either of two.
    """
    names = PictureNames(other.texts("image_id"))
    added = [c for c in other.columns if c not in table.columns]
    rows, absent = [], []
    for number, (row, name) in enumerate(
        zip(table.rows, table.texts("image_id"), strict=True)
    ):
        try:
            found = names.find(name)
        except UserError as error:
            raise UserError(f"{table.place(number)}: in {other.path}, {error}") from (
                error
            )
        if found is None:
            absent.append(name)
        else:
            rows.append(row | {column: other.rows[found][column] for column in added})
    if absent:
        raise UserError(
            f"{other.path}: {len(absent)} of {len(table.rows)} images of {table.path}"
            f" are not in it ({first_of(absent)})"
        )
    return replace(table, columns=(*table.columns, *added), rows=rows)


def _same_text(a: str, b: str) -> bool:
    try:
        return float(a) == float(b)
    except ValueError:
        return a.casefold() == b.casefold()


def _same_picture(a: str, b: str) -> bool:
    return same_picture(picture_name(a), picture_name(b))


def _same_diagnosis(a: str, b: str) -> bool:
    one, other = find_diagnosis(a), find_diagnosis(b)
    return one == other if one and other else _same_text(a, b)


# Meaning of two columns -> whether their cells say the same.
_AGREE: dict[str, Callable[[str, str], bool]] = {
    "image_id": _same_picture,
    "path": _same_picture,
    "dx": _same_diagnosis,
    "label": lambda a, b: parse_label(a) == parse_label(b),
}


def read_table(path: str | os.PathLike[str]) -> Table:
    """Read a table with a header, separated by commas, semicolons or tabs.

    UTF-8, with or without a byte order mark, or UTF-16 with one; any line ends; quoted
    cells; blank lines are skipped. The ending of the file's name does not matter.

    Raises:
        UserError: the file cannot be read or is no such table; the message says where.
    """
    path = Path(path)
    lines, cells = _read_cells(path)
    if not cells:
        raise UserError(
            f"{path}: is empty; a table starts with the names of its columns"
        )
    columns, *cells = cells
    for name, count in Counter(columns).items():
        if count > 1 and name:
            raise UserError(f"{path}: has the column {name!r} twice; keep one of them")
    if not cells:
        raise UserError(f"{path}: has a header and no rows")
    rows = []
    for line, row in zip(lines[1:], cells, strict=True):
        if any(row[len(columns) :]):
            raise UserError(
                f"{path}, line {line}: has {len(row)} cells, the header has"
                f" {len(columns)}; put a cell with a separator in it into quotes"
            )
        # Cells that are absent at the end of a line are empty.
        found = itertools.zip_longest(columns, row[: len(columns)], fillvalue="")
        rows.append(dict(found))
    return Table(path, tuple(columns), rows, lines[1:])


def _read_cells(path: Path) -> tuple[list[int], list[list[str]]]:
    """Return the numbers of the lines that are not blank, and their stripped cells."""
    try:
        content = path.read_bytes()
        utf_16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = content.decode("utf-16" if utf_16 else "utf-8-sig")
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); check the path"
        ) from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: is not UTF-8 text; save the table as CSV in UTF-8"
        ) from error
    if "\0" in text:
        raise UserError(f"{path}: holds NUL bytes, so it is no text; save it as CSV")
    header = next((line for line in text.splitlines() if line.strip()), "")
    counts = {separator: header.count(separator) for separator in SEPARATORS}
    most = max(counts.values())
    found = [separator for separator, count in counts.items() if count == most]
    if most and len(found) > 1:
        raise UserError(
            f"{path}: the header has as many {' as '.join(map(repr, found))}; separate"
            " the names of the columns by one of them"
        )
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=found[0],
        skipinitialspace=True,
        strict=True,
    )
    lines, cells = [], []
    try:
        for row in reader:
            row = [cell.strip() for cell in row]
            if any(row):
                lines.append(reader.line_num)
                cells.append(row)
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}") from error
    return lines, cells
