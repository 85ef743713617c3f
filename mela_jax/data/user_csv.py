"""The user's own images: a table with the columns `path,label` and some more.

    path,label,group,dx,source
    photos/a1.jpg,melanoma,mole 1,mel,clinic A
    photos/a2.jpg,melanoma,mole 1,mel,clinic A
    photos/b.png,other,mole 2,nv,clinic B

`path` is relative to the table's folder, or absolute. `label` is 1 or melanoma, 0 or
other, or in another of the spellings of `mela_jax.vocabulary`; without it, `dx` says it
where all its diagnoses are known ones. Images of one `lesion_id`, `patient_id` or
`group` never land in different splits; without any, an image stands alone. `dx` is the
diagnosis, which a model of several classes learns, `source` the clinic, camera or
collection; `age`, `sex`, `localization` and `dx_type` are kept too. Other columns are
passed over.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mela_jax.data.image_io import EXTENSIONS
from mela_jax.data.records import Record, read_records
from mela_jax.errors import UserError
from mela_jax.tables import read_table
from mela_jax.vocabulary import first_of

HELP = "the columns are path,label and optionally group,dx,source"

_logger = logging.getLogger(__name__)


def read_user_csv(path: str | os.PathLike[str]) -> list[Record]:
    """List the images that a table names.

    Args:
      path: the table, or a folder that holds it under the name `labels.csv`.

    Returns:
      One record per row, sorted by image_id. `image_id` is the path as written,
      `lesion_id` the group, or the image_id where there is none, `dx` the diagnosis in
      lower case: two spellings of it are one class.

    Raises:
      UserError: the table is missing, empty or lacks a column, a label is not
        understood, an image is named twice (under any spelling) or is not there.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        file = file / "labels.csv"
    if not file.is_file():
        raise UserError(f"no CSV {file}; {HELP}")
    table = read_table(file)
    records = read_records(table, name="path")
    records = [
        replace(r, path=str(file.parent / Path(r.image_id).expanduser()))
        for r in records
    ]
    named: dict[str, str] = {}
    for row, record in enumerate(records):
        first = named.setdefault(os.path.realpath(record.path), record.image_id)
        if first != record.image_id:
            # Twice the same picture could stand in training and in the test.
            raise UserError(
                f"{table.place(row)}: {record.image_id!r} is the same file as"
                f" {first!r}; keep one"
            )
    absent = [r.image_id for r in records if not os.path.isfile(r.path)]
    if absent:
        raise UserError(
            f"{file}: {len(absent)} of {len(records)} images are not there"
            f" ({first_of(absent)}); paths are relative to {file.parent}"
        )
    _warn_of_unnamed(file, list(named))
    return sorted(records, key=lambda r: r.image_id)


def _warn_of_unnamed(table: Path, named: Sequence[str]) -> None:
    # No error: a table may well name a part of a folder.
    unnamed = {
        entry.path
        for folder in {os.path.dirname(path) for path in named}
        for entry in os.scandir(folder)
        if entry.name.lower().endswith(EXTENSIONS) and not entry.name.startswith(".")
        if os.path.realpath(entry.path) not in named
    }
    if unnamed:
        _logger.warning(
            "%s does not name %d images beside those it names (%s); they are left out",
            table,
            len(unnamed),
            first_of(sorted(unnamed)),
        )
