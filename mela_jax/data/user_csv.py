"""The user's own images: a CSV with the columns `path,label` and some that may follow.

    path,label,group,dx,source
    photos/a1.jpg,melanoma,mole 1,mel,clinic A
    photos/a2.jpg,melanoma,mole 1,mel,clinic A
    photos/b.png,other,mole 2,nv,clinic B

`path` is relative to the CSV's folder, or absolute. `label` is 1 or melanoma, 0 or
other. Images of one `group` (a lesion, or better a patient) never land in different
splits; without a group an image stands alone. `dx` is the diagnosis, which a model of
several classes learns, and `source` the clinic, camera or collection. Other columns are
passed over.
"""

import logging
import os
from pathlib import Path

from mela_jax.data.image_io import EXTENSIONS
from mela_jax.data.records import Record, known_text
from mela_jax.errors import UserError
from mela_jax.tables import read_table

LABELS = {"1": 1, "melanoma": 1, "0": 0, "other": 0}

HELP = "the columns are path,label and optionally group,dx,source"

_logger = logging.getLogger(__name__)


def read_user_csv(path: str | os.PathLike[str]) -> list[Record]:
    """List the images that a CSV names.

    Args:
      path: the CSV, or a folder that holds it under the name `labels.csv`.

    Returns:
      One record per row, sorted by image_id. `image_id` is the path as written,
      `lesion_id` the group, or the image_id where there is none, `dx` the diagnosis in
      lower case: two spellings of it are one class.

    Raises:
      UserError: the CSV is missing, empty or lacks a column, a label is not understood,
        an image is named twice (under any spelling) or is not there.
    """
    table = Path(path).expanduser()
    if table.is_dir():
        table = table / "labels.csv"
    if not table.is_file():
        raise UserError(f"no CSV {table}; {HELP}")
    records: list[Record] = []
    named: dict[str, str] = {}
    for where, row in read_table(table).select(
        ("path", "label"), ("group", "dx", "source")
    ):
        image_id = row["path"]
        label = row["label"].lower()
        if not image_id:
            raise UserError(f"{where}: the path is empty")
        if label not in LABELS:
            raise UserError(
                f"{where}: label is {row['label']!r}; it must be one of "
                f"{', '.join(LABELS)}"
            )
        file = table.parent / Path(image_id).expanduser()
        real = os.path.realpath(file)
        if real in named:
            # Twice the same picture could stand in training and in the test.
            raise UserError(
                f"{where}: {image_id!r} is the same file as {named[real]!r}; keep one"
            )
        named[real] = image_id
        records.append(
            Record(
                image_id=image_id,
                lesion_id=row["group"] or image_id,
                label=LABELS[label],
                path=str(file),
                dx=known_text(row["dx"]).lower(),
                source=known_text(row["source"]),
            )
        )
    absent = [r.image_id for r in records if not os.path.isfile(r.path)]
    if absent:
        raise UserError(
            f"{table}: {len(absent)} of {len(records)} images are not there "
            f"({', '.join(absent[:5])}); paths are relative to {table.parent}"
        )
    _warn_of_unnamed(table, set(named))
    return sorted(records, key=lambda r: r.image_id)


def _warn_of_unnamed(table: Path, named: set[str]) -> None:
    # No error: a CSV may well name a part of a folder.
    folders = sorted({os.path.dirname(path) for path in named})
    unnamed = [
        entry.path
        for folder in folders
        for entry in os.scandir(folder)
        if entry.name.lower().endswith(EXTENSIONS)
        and not entry.name.startswith(".")
        and os.path.realpath(entry.path) not in named
    ]
    if unnamed:
        _logger.warning(
            "%s does not name %d images beside those it names (%s); they are left out",
            table,
            len(unnamed),
            ", ".join(sorted(unnamed)[:5]),
        )
