"""Published data sets as people have them on disk: tables beside folders of pictures.

HAM10000 (Tschandl, Rosendahl, Kittler: Scientific Data 5, 180161, 2018,
doi:10.1038/sdata.2018.161; CC BY-NC-SA 4.0), 10,015 images of 7,470 lesions:

- Kaggle: `HAM10000_metadata.csv`, `HAM10000_images_part_1/`, `HAM10000_images_part_2/`;
- Dataverse: `HAM10000_metadata` (also `.tab`), with the image archives unpacked in
  folders of any name or all into one;
- ISIC 2018, Task 3: `ISIC2018_Task3_Training_GroundTruth.csv`,
  `ISIC2018_Task3_Training_LesionGroupings.csv`, `ISIC2018_Task3_Training_Input/`;
- flat: one table with the columns of the metadata, the images beside it.

ISIC archive (isic-archive.com; each image has its own licence, in its table): a
collection as `isic-cli` downloads it, `metadata.csv` beside the images.

ISIC 2019 (Combalia et al.: arXiv:1908.02288; with HAM10000 and MSK; CC BY-NC 4.0),
25,331 images: `ISIC_2019_Training_GroundTruth.csv`, `ISIC_2019_Training_Metadata.csv`,
`ISIC_2019_Training_Input/`.

SIIM-ISIC 2020 (Rotemberg et al.: Scientific Data 8, 34, 2021,
doi:10.1038/s41597-021-00815-z; CC BY-NC 4.0), 33,126 images of 2,056 patients:
`train.csv` of Kaggle or `ISIC_2020_Training_GroundTruth_v2.csv`, and the JPEGs, resized
or not. Without a column of lesions its images are kept together by patient.

PAD-UFES-20 (Pacheco et al.: Data in Brief 32, 106221, 2020,
doi:10.1016/j.dib.2020.106221; CC BY 4.0), 2,298 clinical photographs of smartphones, no
dermoscopy: `metadata.csv`, `imgs_part_1/` to `imgs_part_3/`.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mela_jax.data.image_io import MASK_FILES, MASK_FOLDERS, list_pictures
from mela_jax.data.records import Record, diagnosis_columns, read_records
from mela_jax.errors import UserError
from mela_jax.tables import Table, join_tables, read_table
from mela_jax.vocabulary import (
    PictureNames,
    find_diagnosis,
    first_of,
    picture_name,
)

HAM10000 = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
_TABLES = ("", ".csv", ".tab", ".tsv", ".txt")

# How ISIC's tables say what HAM10000's say in a word.
_CONFIRMATIONS = {
    "histopathology": "histo",
    "serial imaging showing no change": "follow_up",
    "single image expert consensus": "consensus",
    "confocal microscopy with consensus dermoscopy": "confocal",
}


@dataclass(frozen=True)
class Layout:
    """How a data set lies on the disk.

    Attributes:
      name: of the data set, for messages.
      tables: alternatives, each the names without extension of the tables that are
        joined by image, the one that lists the images first.
      source: of every image whose table names none; empty where nobody knows.
      diagnoses: codes that may occur; empty: any.
      other_folders: beside those of the training images, with pictures of other sets.
      flat: take any other table that names images, lesions and diagnoses.
      lesions_known: the lesion of every image is.
    """

    name: str
    tables: tuple[tuple[str, ...], ...]
    source: str = ""
    diagnoses: tuple[str, ...] = ()
    other_folders: str = r"^test$"
    flat: bool = False
    lesions_known: bool = False

    def help(self) -> str:
        """Return what a folder of this data set holds."""
        ways = [" and ".join(f"{name}.csv" for name in names) for names in self.tables]
        return f"a folder of {self.name} holds {' or '.join(ways)}, and the images"


LAYOUTS = {
    "ham10000": Layout(
        "HAM10000",
        (
            ("HAM10000_metadata",),
            (
                "ISIC2018_Task3_Training_GroundTruth",
                "ISIC2018_Task3_Training_LesionGroupings",
            ),
        ),
        diagnoses=HAM10000,
        other_folders="ISIC2018_Task3_(Test|Validation)",
        flat=True,
        lesions_known=True,
    ),
    "isic_archive": Layout("the ISIC archive", (("metadata",),), source="isic"),
    "isic_2019": Layout(
        "ISIC 2019",
        (("ISIC_2019_Training_GroundTruth", "ISIC_2019_Training_Metadata"),),
        source="isic_2019",
        other_folders="^ISIC_2019_Test",
    ),
    "isic_2020": Layout(
        "SIIM-ISIC 2020",
        (
            ("train",),
            ("ISIC_2020_Training_GroundTruth_v2",),
            ("ISIC_2020_Training_GroundTruth",),
        ),
        source="isic_2020",
        other_folders="^test$|^ISIC_2020_Test",
    ),
    "pad_ufes_20": Layout("PAD-UFES-20", (("metadata",),), source="pad_ufes_20"),
}


def read_published(
    directory: str | os.PathLike[str], layout: Layout = LAYOUTS["ham10000"]
) -> list[Record]:
    """List the images of a published data set.

    Args:
      directory: the folder; see the module for what it may hold.
      layout: of the data set.

    Returns:
      One record for each image, sorted by image_id, the file's name without extension;
      `dx` is HAM10000's word for the diagnosis where it has one.

    Raises:
      UserError: the folder is missing or empty, the tables are not as they must be,
        there is no column of lesions or patients, or table and images do not match.
    """
    root = Path(directory).expanduser()
    if not root.is_dir():
        raise UserError(f"no data folder {root}; {layout.help()}")
    if not any(root.iterdir()):
        raise UserError(f"the data folder {root} is empty; {layout.help()}")
    tables = _find_tables(root, layout)
    table = tables[0]
    for other in tables[1:]:
        table = join_tables(table, other)
    if not any(table.has(name) for name in ("lesion_id", "patient_id", "group")):
        raise UserError(
            f"{table.path}: no column lesion_id or patient_id; without one, images of a"
            " lesion would land in different splits"
        )
    if layout.lesions_known and "" in (cells := table.texts("lesion_id")):
        raise UserError(
            f"{table.place(cells.index(''))}: the image has no lesion_id, and every"
            f" image of {layout.name} has one"
        )
    for row, dx in enumerate(table.texts("dx") if table.has("dx") else ()):
        if layout.diagnoses and find_diagnosis(dx) not in layout.diagnoses:
            raise UserError(
                f"{table.place(row)}: dx is {dx!r}; it must be one of"
                f" {', '.join(layout.diagnoses)}"
            )
    records = [_tidy(record, layout) for record in read_records(table)]
    images = _find_images(root, layout)
    files = _match(records, images, table=table, root=root)
    return sorted(
        (
            replace(record, path=path, image_id=picture_name(path).parts[-1])
            for record, path in zip(records, files, strict=True)
        ),
        key=lambda record: record.image_id,
    )


def _tidy(record: Record, layout: Layout) -> Record:
    return replace(
        record,
        dx=find_diagnosis(record.dx) or record.dx,
        dx_type=_CONFIRMATIONS.get(record.dx_type, record.dx_type),
        source=record.source or layout.source,
    )


def _find_tables(root: Path, layout: Layout) -> list[Table]:
    """Return the tables of the first alternative that is there, read."""
    files = [path for path in sorted(root.iterdir()) if path.is_file()]
    for names in layout.tables:
        found = [_find_table(root, files, name) for name in names]
        if found[0] is None:
            continue
        for name, path in zip(names, found, strict=True):
            if path is None:
                raise UserError(
                    f"no {name}.csv in {root}, which belongs to {found[0].name};"
                    f" {layout.help()}"
                )
        return [read_table(path) for path in found if path is not None]
    tables = [path for path in files if path.suffix.lower() in _TABLES[1:]]
    fitting = [path for path in tables if layout.flat and _names_images(path)]
    if len(fitting) > 1:
        raise UserError(
            f"{root} holds several tables ({first_of(p.name for p in fitting)}); keep"
            f" one, or name it {layout.tables[0][0]}.csv"
        )
    # Reading a single unfit one will say what it lacks.
    if chosen := fitting or (tables if layout.flat and len(tables) == 1 else []):
        return [read_table(chosen[0])]
    raise UserError(f"no table of images in {root}; {layout.help()}")


def _find_table(root: Path, files: Sequence[Path], name: str) -> Path | None:
    """Return the table of a name, in the folder or in one that is named after it."""
    wanted = {(name + ending).lower() for ending in _TABLES}
    # Where a folder has the file twice (.csv and .tab), either says the same.
    found = [path for path in files if path.name.lower() in wanted]
    unpacked = sorted(root.glob(f"*/{name}.csv"))
    return next(iter([*found, *unpacked]), None)


def _names_images(path: Path) -> bool:
    try:
        table = read_table(path)
    except UserError:
        return False
    has_truth = table.has("dx") or bool(diagnosis_columns(table))
    return table.has("image_id") and table.has("lesion_id") and has_truth


def _find_images(root: Path, layout: Layout) -> list[str]:
    """Return the picture files, over all folders but those of masks and other sets."""
    others = re.compile(f"{MASK_FOLDERS.pattern}|{layout.other_folders}", re.IGNORECASE)
    listing = list_pictures(root, skip_folders=others, skip_files=MASK_FILES)
    first: dict[str, str] = {}
    for path in listing.pictures:
        name = picture_name(path).parts[-1]
        before = first.setdefault(name, path)
        # Kaggle's archive holds both part folders twice, in capitals and not.
        if before != path and _size(before) != _size(path):
            raise UserError(
                f"two different images are called {name!r}: {before} and {path}; keep"
                " one copy of the data set in a folder"
            )
    return list(first.values())


def _size(path: str) -> int:
    return os.stat(path).st_size if os.path.exists(path) else -1


def _match(
    records: Sequence[Record], images: Sequence[str], *, table: Table, root: Path
) -> list[str]:
    """Return the file of each record, all of them there and no others."""
    names = PictureNames(images)
    numbers = [names.find(record.image_id) for record in records]
    files = [images[k] for k in numbers if k is not None]
    absent = [r.image_id for r, k in zip(records, numbers, strict=True) if k is None]
    unnamed = sorted(set(images) - set(files))
    dangling = [path for path in files if not os.path.exists(path)]
    complaints = []
    if absent:
        complaints.append(
            f"{len(absent)} of {len(records)} images that {table.path.name} names are"
            f" not there ({first_of(absent)})"
        )
    if unnamed:
        complaints.append(
            f"{len(unnamed)} of {len(images)} images are not named by"
            f" {table.path.name} ({first_of(Path(p).name for p in unnamed)})"
        )
    if dangling:
        complaints.append(
            f"{len(dangling)} images are links to files that are not there"
            f" ({first_of(dangling)})"
        )
    if complaints:
        raise UserError(
            f"{root}: {'; '.join(complaints)}; add the missing files or lines, or move "
            "the images that do not belong here"
        )
    return files
