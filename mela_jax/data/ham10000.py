"""HAM10000: 10,015 dermoscopy images of 7,470 lesions in seven diagnoses.

Tschandl, Rosendahl, Kittler: The HAM10000 dataset. Scientific Data 5, 180161 (2018),
doi:10.1038/sdata.2018.161. Licence CC BY-NC-SA 4.0 (non-commercial, attribution).

Four layouts of the folder are understood:

- Kaggle: `HAM10000_metadata.csv`, `HAM10000_images_part_1/`, `HAM10000_images_part_2/`;
- Dataverse: `HAM10000_metadata` (also `.tab`), with the image archives unpacked in
  folders of any name or all into one;
- ISIC 2018, Task 3: `ISIC2018_Task3_Training_GroundTruth.csv`,
  `ISIC2018_Task3_Training_LesionGroupings.csv`, `ISIC2018_Task3_Training_Input/`;
- flat: one CSV with the columns of the metadata, the images beside it.
"""

import errno
import itertools
import os
import re
import shutil
import stat
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from mela_jax.data.records import Record, known_text
from mela_jax.errors import UserError
from mela_jax.tables import read_table

DIAGNOSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")

ISIC_URL = "https://isic-archive.s3.amazonaws.com/challenges/2018/"
INPUT = "ISIC2018_Task3_Training_Input"
TRUTH = "ISIC2018_Task3_Training_GroundTruth"
GROUPINGS = "ISIC2018_Task3_Training_LesionGroupings"
ARCHIVES = (f"{INPUT}.zip", f"{TRUTH}.zip")
DOWNLOADS = (*ARCHIVES, f"{GROUPINGS}.csv")

# What the ISIC file says, in the words of HAM10000_metadata.
CONFIRMATIONS = {
    "histopathology": "histo",
    "serial imaging showing no change": "follow_up",
    "single image expert consensus": "consensus",
    "confocal microscopy with consensus dermoscopy": "confocal",
}

_IMAGE = re.compile(r"\.(jpe?g|png)$", re.IGNORECASE)
_METADATA = re.compile(r"HAM10000_metadata(\.(csv|tab|tsv|txt))?$", re.IGNORECASE)
# Folders that lie beside the images in the published archives and hold other pictures.
_OTHER_FOLDER = re.compile(
    r"^\.|__MACOSX|segmentation|mask|ISIC2018_Task3_(Test|Validation)", re.IGNORECASE
)
# Masks, and the "._x.jpg" that macOS adds to archives.
_OTHER_FILE = re.compile(r"^\.|_segmentation\.", re.IGNORECASE)
HELP = (
    "a HAM10000 folder holds HAM10000_metadata.csv and the images (Kaggle or "
    f"Dataverse), or {TRUTH}.csv, {GROUPINGS}.csv and {INPUT}/ (ISIC 2018 Task 3)"
)


def read_ham10000(directory: str | os.PathLike[str]) -> list[Record]:
    """List the images of a HAM10000 folder in any of its layouts.

    Args:
      directory: the folder; see the module for what it may hold.

    Returns:
      One record per image, sorted by image_id; `label` is 1 where `dx` is "mel".

    Raises:
      UserError: the folder is missing or empty, a column is missing, an image is named
        twice or without lesion, a `dx` is not one of the seven, or the table and the
        images do not match.
    """
    root = Path(directory).expanduser()
    if not root.is_dir():
        raise UserError(f"no data folder {root}; {HELP}")
    if not any(root.iterdir()):
        raise UserError(f"the data folder {root} is empty; {HELP}")
    table = _find_table(root)
    if table.name.lower().startswith(TRUTH.lower()):
        rows = _read_isic(table, _find_groupings(root))
    else:
        rows = _read_metadata(table)
    images = _find_images(root)
    _check_match(rows, images, table=table, root=root)
    return [
        Record(
            image_id=image_id,
            lesion_id=row["lesion_id"],
            label=int(row["dx"] == "mel"),
            path=str(images[image_id]),
            dx=row["dx"],
            dx_type=row["dx_type"],
            age=row["age"],
            sex=row["sex"],
            localization=row["localization"],
            source=row["source"],
        )
        for image_id, row in sorted(rows.items())
    ]


def download_ham10000(directory: str | os.PathLike[str]) -> None:
    """Download and unpack the ISIC 2018 Task 3 training files (2.8 GB, no login).

    What is there already is not fetched again: neither an unpacked folder nor an
    archive that the user has put there.

    Args:
      directory: where to; created where it is missing.

    Raises:
      UserError: there is no network, an archive is damaged or reaches out of the
        folder, or the disk is full.
    """
    root = Path(directory).expanduser()
    try:
        root.mkdir(parents=True, exist_ok=True)
        for name in DOWNLOADS:
            target = root / name
            unpacked = root / target.stem
            if target.exists() or unpacked.exists():
                continue
            _fetch(ISIC_URL + name, target)
        for name in ARCHIVES:
            archive = root / name
            if not (root / archive.stem).exists():
                extract_zip(archive, root)
    except OSError as error:
        raise UserError(
            f"cannot write to {root}: {error.strerror or error}; free some space "
            "(6 GB are needed) or choose another folder"
        ) from error


def extract_zip(archive: str | os.PathLike[str], directory: Path) -> None:
    """Unpack an archive of unknown origin into `directory/<name of the archive>`.

    The members go to a temporary folder first, so that the folder, once there, is
    complete. A top folder that bears the name of the archive is not doubled.

    Args:
      archive: the zip file.
      directory: an existing folder.

    Raises:
      UserError: the archive is damaged, or a member's path leaves the folder or is a
        link. Nothing is left behind.
    """
    path = Path(archive)
    target = directory / path.stem
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=directory) as temporary:
        content = Path(temporary, "content")
        try:
            with zipfile.ZipFile(path) as file:
                for member in file.infolist():
                    _check_member(member, path)
                file.extractall(content)
        except (zipfile.BadZipFile, EOFError, RuntimeError, ValueError) as error:
            raise UserError(
                f"{path} is damaged ({error}); delete it and run the same command again"
            ) from error
        top = content / path.stem
        others = {p.name for p in content.iterdir()} - {path.stem, "__MACOSX"}
        os.rename(top if top.is_dir() and not others else content, target)


def _find_table(root: Path) -> Path:
    files = sorted(p for p in root.iterdir() if p.is_file())
    metadata = [p for p in files if _METADATA.match(p.name)]
    if metadata:
        # Where a folder has the file twice (.csv and .tab), either says the same.
        return metadata[0]
    for truth in (root / f"{TRUTH}.csv", root / TRUTH / f"{TRUTH}.csv"):
        if truth.is_file():
            return truth
    tables = [p for p in files if p.suffix.lower() in (".csv", ".tab", ".tsv")]
    fitting = [p for p in tables if _is_metadata(p)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = ", ".join(p.name for p in fitting)
        raise UserError(
            f"{root} holds several tables ({names}); keep one, or name it "
            "HAM10000_metadata.csv"
        )
    if len(tables) == 1:
        # Reading it will name the missing columns.
        return tables[0]
    raise UserError(f"no table of images in {root}; {HELP}")


def _find_groupings(root: Path) -> Path:
    for folder in (root, root / TRUTH, root / GROUPINGS):
        path = folder / f"{GROUPINGS}.csv"
        if path.is_file():
            return path
    raise UserError(
        f"no {GROUPINGS}.csv in {root}: without it images of one lesion would land in "
        f"different splits; get it from {ISIC_URL}{GROUPINGS}.csv"
    )


def _is_metadata(path: Path) -> bool:
    try:
        return {"image_id", "lesion_id", "dx"} <= set(read_table(path).columns)
    except UserError:
        return False


def _read_metadata(path: Path) -> dict[str, dict[str, str]]:
    rows: dict[str, dict[str, str]] = {}
    details = ("dx_type", "age", "sex", "localization")
    table = read_table(path)
    for where, row in table.select(
        ("image_id", "lesion_id", "dx"), (*details, "dataset")
    ):
        dx = row["dx"].lower()
        if dx not in DIAGNOSES:
            raise UserError(
                f"{where}: dx is {row['dx']!r}; it must be one of "
                f"{', '.join(DIAGNOSES)}"
            )
        detail = {name: known_text(row[name]) for name in details}
        if not _is_number_or_empty(detail["age"]):
            raise UserError(f"{where}: age is {detail['age']!r}; it must be a number")
        # The clinic and camera, in releases that name them.
        detail["source"] = known_text(row["dataset"])
        entry = {"lesion_id": row["lesion_id"], "dx": dx} | detail
        _add(rows, row["image_id"], entry, where=where)
    return rows


def _read_isic(truth: Path, groupings: Path) -> dict[str, dict[str, str]]:
    lesions: dict[str, tuple[str, str]] = {}
    for _, row in read_table(groupings).select(
        ("image", "lesion_id"), ("diagnosis_confirm_type",)
    ):
        kind = row["diagnosis_confirm_type"]
        lesions[row["image"]] = (row["lesion_id"], CONFIRMATIONS.get(kind, kind))
    rows: dict[str, dict[str, str]] = {}
    for where, row in read_table(truth).select(("image", *DIAGNOSES)):
        marks = {dx: row[dx] for dx in DIAGNOSES}
        if not all(_is_number_or_empty(mark) for mark in marks.values()):
            raise UserError(f"{where}: the diagnoses must be marked with 0 and 1")
        marked = [dx for dx, mark in marks.items() if float(mark or "0") == 1]
        if len(marked) != 1:
            raise UserError(
                f"{where}: exactly one of {', '.join(DIAGNOSES)} must be 1, not "
                f"{len(marked)} of them"
            )
        if row["image"] not in lesions:
            raise UserError(
                f"{where}: image {row['image']!r} has no lesion in {groupings}"
            )
        lesion, dx_type = lesions[row["image"]]
        detail = dict.fromkeys(("age", "sex", "localization", "source"), "")
        entry = {"lesion_id": lesion, "dx": marked[0], "dx_type": dx_type} | detail
        _add(rows, row["image"], entry, where=where)
    return rows


def _add(
    rows: dict[str, dict[str, str]],
    image_id: str,
    entry: dict[str, str],
    *,
    where: str,
) -> None:
    if not image_id or not entry["lesion_id"]:
        raise UserError(f"{where}: image_id and lesion_id must not be empty")
    if image_id in rows:
        raise UserError(f"{where}: image {image_id!r} appears twice; keep one line")
    rows[image_id] = entry


def _is_number_or_empty(text: str) -> bool:
    try:
        float(text or "0")
    except ValueError:
        return False
    return True


def _find_images(root: Path) -> dict[str, Path]:
    """Map image id to file, over all folders but those of masks and other sets."""
    found: dict[str, Path] = {}
    visited: set[str] = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:  # A link back to a folder above.
            subfolders.clear()
            continue
        visited.add(real)
        subfolders[:] = sorted(s for s in subfolders if not _OTHER_FOLDER.search(s))
        for name in sorted(files):
            if not _IMAGE.search(name) or _OTHER_FILE.search(name):
                continue
            path = Path(folder, name)
            first = found.setdefault(path.stem, path)
            # Kaggle's archive holds both part folders twice, in capitals and not.
            if first.stat().st_size != path.stat().st_size:
                raise UserError(
                    f"two different images are called {path.stem!r}: {first} and "
                    f"{path}; keep one copy of the data set in a folder"
                )
    return found


def _check_match(
    rows: Mapping[str, object], images: Mapping[str, Path], *, table: Path, root: Path
) -> None:
    complaints = []
    absent = sorted(set(rows) - set(images))
    if absent:
        complaints.append(
            f"{len(absent)} of {len(rows)} images that {table.name} names are not "
            f"there ({', '.join(absent[:5])})"
        )
    unnamed = sorted(set(images) - set(rows))
    if unnamed:
        complaints.append(
            f"{len(unnamed)} of {len(images)} images are not named by {table.name} "
            f"({', '.join(images[i].name for i in itertools.islice(unnamed, 5))})"
        )
    if complaints:
        raise UserError(
            f"{root}: {'; '.join(complaints)}; add the missing files or lines, or move "
            "the images that do not belong here"
        )


def _fetch(url: str, target: Path) -> None:
    """Download to a hidden file, then give it its name, so that it is whole."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with (
            urllib.request.urlopen(url, timeout=60) as response,
            partial.open("wb") as file,
        ):
            shutil.copyfileobj(response, file, 1 << 20)
            length = response.headers["Content-Length"]
            if length is not None and file.tell() != int(length):
                raise UserError(
                    f"the download of {url} broke off at {file.tell()} of {length} "
                    "bytes; run the same command again"
                )
        os.replace(partial, target)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise UserError(
            f"cannot download {url} ({_reason(error)}); on a machine with a network "
            f"get {', '.join(DOWNLOADS)} from {ISIC_URL} and place them in "
            f"{target.parent}, or name a folder that has HAM10000"
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"cannot download {url}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    return str(error.reason) if isinstance(error, urllib.error.URLError) else str(error)


def _check_member(member: zipfile.ZipInfo, archive: Path) -> None:
    # zipfile would silently rename such a member. That it is there at all means that
    # the archive is not the published one.
    path = PurePosixPath(member.filename.replace("\\", "/"))
    drive = re.match(r"[A-Za-z]:", member.filename)
    if path.is_absolute() or drive or ".." in path.parts:
        raise UserError(
            f"{archive}: the member {member.filename!r} would be written outside the "
            "folder; do not trust this archive, delete it and download it again"
        )
    if stat.S_ISLNK(member.external_attr >> 16):
        raise UserError(
            f"{archive}: the member {member.filename!r} is a link; do not trust this "
            "archive, delete it and download it again"
        )
