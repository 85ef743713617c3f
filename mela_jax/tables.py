"""The one reader of tables: CSV and its kin, whatever program wrote them."""

import codecs
import csv
import io
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mela_jax.errors import UserError

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

    def find(self, *names: str) -> str | None:
        """Return the column that has any of these names, or None.

        Capitals, spaces, hyphens and underscores make no difference.

        Raises:
            UserError: two columns have such names, so that either could be meant.
        """
        wanted = {_plain(name) for name in names}
        found = [column for column in self.columns if _plain(column) in wanted]
        if len(found) > 1:
            raise UserError(
                f"{self.path}: the columns {' and '.join(found)} could both be"
                f" {names[0]}; keep one of them"
            )
        return found[0] if found else None

    def require(self, *names: str) -> str:
        """Return the column that has any of these names.

        Raises:
            UserError: there is none, or more than one.
        """
        found = self.find(*names)
        if found is None:
            raise UserError(
                f"{self.path}: no column {' or '.join(names)} (it has"
                f" {', '.join(self.columns)})"
            )
        return found

    def place(self, row: int) -> str:
        """Return where a row is, for a message: the file and the line."""
        return f"{self.path}, line {self.lines[row]}"

    def select(
        self, required: Sequence[str], optional: Sequence[str] = ()
    ) -> Iterator[tuple[str, dict[str, str]]]:
        """Yield for each row its place, and its cells under the names asked for.

        Columns may be spelt in any way; cells of absent optional ones are empty.

        Raises:
            UserError: as `require`.
        """
        columns = {name: self.require(name) for name in required}
        columns |= {name: found for name in optional if (found := self.find(name))}
        for number, row in enumerate(self.rows):
            cells = dict.fromkeys(optional, "")
            cells |= {name: row[column] for name, column in columns.items()}
            yield self.place(number), cells


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


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).casefold()
