"""Find images that are in two places at once, across splits and data sets.

Usage::

    python -m mela_jax.data.leakage FOLDER [FOLDER ...] [--splits=splits.csv ...]

A test set that shares a lesion with training flatters the model. Three kinds of leak
are looked for: one ``lesion_id`` in two places, identical files, and near-duplicates by
perceptual hash. A place is a folder, or with ``--splits`` a split: the same split of
two folders is one place, since a model may learn from both. Exit status: 0 nothing
found, 1 leaks found, 2 the audit could not be made.
"""

import hashlib
import json
import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps
from tqdm import tqdm

from mela_jax.atomic import write_text
from mela_jax.command import REFUSED, Parser, guarded, number, prepare_process
from mela_jax.data import image_io
from mela_jax.errors import UserError
from mela_jax.tables import read_table
from mela_jax.vocabulary import GROUPINGS, PictureNames

CLEAN, LEAKS, CANNOT_RUN = 0, 1, REFUSED

# 16 x 16 = 256 bits: 64, the default of the library, call many moles the same.
HASH_SIZE = 16
# Of 256 bits; see docs/evaluation.md for how it was chosen.
MAX_DISTANCE = 24
# Lines shown of each kind of leak; --output has them all.
SHOWN = 10
# Pairs compared at once: 4 words of 64 bits each.
_CHUNK = 1 << 22

# Kind of a leak -> its name in the summary.
KINDS = {
    "lesion": "shared_lesions",
    "file": "identical_files",
    "near": "near_duplicates",
}

# Of tables, those too that cannot be read, and of HAM10000's as Dataverse gives it.
_TABLE = re.compile(
    r"\.(csv|tsv|tab|xlsx?|ods|parquet)$|^HAM10000_metadata(\.txt)?$", re.IGNORECASE
)


# Kind of a grouping, "lesion" or "patient", and its name.
Groups = frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Picture:
    """An image file and where it belongs.

    Attributes:
        path: the file.
        place: folder or split.
        groups: name -> its lesions and patients, those that a table beside the images
            knows.
    """

    path: Path
    place: str
    groups: Groups


@dataclass(frozen=True)
class Leak:
    """Something that two places share.

    Attributes:
        kind: one of `KINDS`.
        what: lesion_id; "" for files.
        places: the two or more places.
        images: some of the files, at least one from each place.
        distance: bits in which two hashes differ; 0 for other kinds.
    """

    kind: str
    what: str
    places: tuple[str, ...]
    images: tuple[str, ...]
    distance: int = 0


def list_pictures(
    folders: Sequence[str | os.PathLike[str]], splits: "Splits | None" = None
) -> list[Picture]:
    """List the images below folders, masks left out, with lesion and place.

    Args:
        folders: each with images at any depth and, where known, tables beside them
            that name images and their lesions or patients.
        splits: of images and lesions; None: each folder is a place.

    Raises:
        UserError: a folder is missing or holds no image, one is given twice, tables
            disagree or cannot be used, or an image is in no split.
    """
    pictures: list[Picture] = []
    seen: dict[str, str] = {}
    for folder in folders:
        root = Path(folder).expanduser()
        if not root.is_dir():
            raise UserError(f"{folder}: there is no such folder")
        real = os.path.realpath(root)
        if real in seen:
            raise UserError(
                f"{folder} is the same folder as {seen[real]}; give it once"
            )
        seen[real] = str(folder)
        found = image_io.list_pictures(
            root, skip_folders=image_io.MASK_FOLDERS, skip_files=image_io.MASK_FILES
        ).pictures
        if not found:
            raise UserError(f"{folder}: there are no images in it")
        for path, groups in zip(found, _read_groups(root, found), strict=True):
            place = splits.place(path, groups) if splits else str(folder)
            pictures.append(Picture(Path(path), place, groups))
    return pictures


def shared_lesions(pictures: Sequence[Picture]) -> list[Leak]:
    """Return the lesions, or patients, of which two places have images."""
    members: dict[tuple[str, str], list[Picture]] = defaultdict(list)
    for picture in pictures:
        for group in picture.groups:
            members[group].append(picture)
    return [
        leak
        for kind, name in sorted(members)
        for leak in _leaks("lesion", _group_name(kind, name), members[kind, name])
    ]


def _group_name(kind: str, name: str) -> str:
    return name if kind == "lesion" else f"of {kind} {name}"


def identical_files(pictures: Sequence[Picture]) -> list[Leak]:
    """Return the files that are in two places, byte for byte (SHA-256).

    Raises:
        UserError: a file cannot be read.
    """
    groups: dict[str, list[Picture]] = defaultdict(list)
    by_size: dict[int, list[Picture]] = defaultdict(list)
    try:
        for picture in pictures:
            by_size[picture.path.stat().st_size].append(picture)
        for same_size in by_size.values():
            if len({p.place for p in same_size}) > 1:
                for picture in same_size:
                    digest = hashlib.sha256(picture.path.read_bytes()).hexdigest()
                    groups[digest].append(picture)
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from error
    return [leak for group in groups.values() for leak in _leaks("file", "", group)]


def perceptual_hash(path: Path) -> npt.NDArray[np.uint64]:
    """Return the pHash of an image's centre square, uint64 [HASH_SIZE**2 / 64].

    pHash (Zauner 2010) keeps the signs of the lowest frequencies: it survives
    rescaling, recompression and small changes of light, not rotation or another crop.
    The centre square makes a photograph and its centre crop the same picture.

    Raises:
        BadImageError: the image cannot be read.
    """
    upright = Image.fromarray(image_io.read_image(path))
    side = min(upright.size)
    square = ImageOps.fit(upright, (side, side))
    bits = imagehash.phash(square, hash_size=HASH_SIZE).hash
    return np.packbits(bits.ravel()).view(np.uint64)


def near_duplicates(
    pictures: Sequence[Picture],
    hashes: npt.NDArray[np.uint64],
    *,
    max_distance: int,
) -> list[Leak]:
    """Return pairs from two places whose hashes differ in few bits, the closest first.

    Args:
        pictures: N images.
        hashes: uint64 [N, W], from `perceptual_hash`.
        max_distance: largest number of differing bits.
    """
    places = np.unique([p.place for p in pictures], return_inverse=True)[1]
    total = len(pictures)
    rows = max(1, _CHUNK // max(1, total))
    leaks = []
    for start in range(0, total, rows):
        block = hashes[start : start + rows]
        distance = np.zeros((len(block), total), np.int16)
        for word in range(hashes.shape[1]):
            differing = block[:, word, None] ^ hashes[None, :, word]
            distance += np.bitwise_count(differing)
        later = np.arange(total)[None] > np.arange(start, start + len(block))[:, None]
        apart = places[start : start + rows, None] != places[None]
        for i, j in zip(
            *np.nonzero((distance <= max_distance) & later & apart), strict=True
        ):
            a, b = pictures[start + i], pictures[j]
            leaks.append(
                Leak(
                    "near",
                    "",
                    (a.place, b.place),
                    (str(a.path), str(b.path)),
                    int(distance[i, j]),
                )
            )
    return sorted(leaks, key=lambda leak: (leak.distance, leak.images))


def audit(
    pictures: Sequence[Picture], *, max_distance: int = MAX_DISTANCE
) -> list[Leak]:
    """Return every leak between places: lesions, then files, then near-duplicates.

    A pair of identical files is not told again as near-duplicates.

    Raises:
        UserError: a file cannot be read.
    """
    files = identical_files(pictures)
    hashes = np.stack(
        [
            perceptual_hash(p.path)
            for p in tqdm(pictures, unit="image", desc="hashing", disable=None)
        ]
    )
    same = {image for leak in files for image in leak.images}
    near = [
        leak
        for leak in near_duplicates(pictures, hashes, max_distance=max_distance)
        if leak.distance or not set(leak.images) <= same
    ]
    return [*shared_lesions(pictures), *files, *near]


def _leaks(kind: str, what: str, group: Sequence[Picture]) -> Iterator[Leak]:
    places = sorted({p.place for p in group})
    if len(places) > 1:
        yield Leak(kind, what, tuple(places), tuple(str(p.path) for p in group))


def _read_groups(root: Path, pictures: Sequence[str]) -> list[Groups]:
    """Return the lesions and patients of each picture, from the tables beside them.

    Beside is in the folder itself, or in one below it on the way to a picture.

    Raises:
        UserError: two tables disagree on a picture, or there are tables and none of
            them can be used.
    """
    found: list[dict[str, str]] = [{} for _ in pictures]
    unused, used = [], False
    folders = {root, *(folder for p in pictures for folder in Path(p).parents)}
    folders = {folder for folder in folders if folder.is_relative_to(root)}
    files = sorted(path for folder in folders for path in folder.iterdir())
    for path in filter(lambda path: _TABLE.search(path.name), files):
        try:
            table = read_table(path)
            groupings = [name for name in GROUPINGS if table.has(name)]
            names = PictureNames(table.texts("path"))
            if not groupings:
                table.require("lesion_id")  # Which says what it has instead.
            columns = {name: table.texts(name) for name in groupings}
            rows = [names.find(picture) for picture in pictures]
            if all(row is None for row in rows):
                raise UserError(f"{path}: names none of the images in {root}")
        except UserError as error:
            unused.append(str(error))
            continue
        used = True
        for picture, groups, row in zip(pictures, found, rows, strict=True):
            if row is None:
                continue
            for name, cells in columns.items():
                cell = cells[row]
                if cell and groups.setdefault(name, cell) != cell:
                    raise UserError(
                        f"{table.place(row)}: {picture} is of {name} {cell}, elsewhere"
                        f" of {groups[name]}"
                    )
    if unused and not used:
        raise UserError(
            f"{unused[0]}; nothing says which images of {root} show one lesion: correct"
            " the table, or move it out of the folder to compare pictures alone"
        )
    for line in unused:
        print(f"not used: {line}", file=sys.stderr)
    # The group of a user's own table is a lesion, or better a patient.
    kinds = dict.fromkeys(GROUPINGS, "lesion") | {"patient_id": "patient"}
    return [
        frozenset((kinds[name], cell) for name, cell in groups.items())
        for groups in found
    ]


class Splits:
    """The split of every image, from one or more tables like a run's splits.csv.

    Args:
        paths: tables with the columns image_id, split and perhaps lesion_id.

    Raises:
        UserError: a table cannot be read, or a name is in two splits.
    """

    def __init__(self, paths: Sequence[str]):
        self._of_lesion: dict[str, str] = {}
        of_image: dict[str, str] = {}
        for path in paths:
            if not Path(path).is_file():
                raise UserError(f"--splits={path}: there is no such file")
            for where, row in read_table(path).select(
                ("image_id", "split"), ("lesion_id", "group", "patient_id")
            ):
                split = row["split"]
                if not row["image_id"] or not split:
                    raise UserError(f"{where}: the image_id or its split is empty")
                lesion = row["lesion_id"] or row["group"] or row["patient_id"]
                for name, known in (
                    (lesion, self._of_lesion),
                    (row["image_id"], of_image),
                ):
                    if name and known.setdefault(name, split) != split:
                        raise UserError(
                            f"{where}: {name} is in the splits {known[name]} and"
                            f" {split}"
                        )
        self._names = PictureNames(list(of_image))
        self._splits = list(of_image.values())

    def place(self, picture: str, groups: Groups) -> str:
        """Return the split of a picture, by its own name or its lesion's.

        Raises:
            UserError: it is in none.
        """
        number = self._names.find(picture)
        if number is not None:
            return self._splits[number]
        for _, name in sorted(groups):
            if name in self._of_lesion:
                return self._of_lesion[name]
        raise UserError(
            f"{picture}: neither its image_id nor its lesion_id is in --splits"
        )


def _describe(leak: Leak) -> str:
    where = " | ".join(leak.places)
    files = ", ".join(leak.images[:4])
    if leak.kind == "lesion":
        return f"lesion {leak.what} in {where}: {files}"
    if leak.kind == "file":
        return f"identical in {where}: {files}"
    return f"{leak.distance} of {HASH_SIZE**2} bits apart, in {where}: {files}"


def _summary(pictures: Sequence[Picture], leaks: Sequence[Leak]) -> dict[str, Any]:
    return {
        "images": dict(Counter(p.place for p in pictures)),
        "without_lesion_id": sum(not p.groups for p in pictures),
        **{
            name: sum(leak.kind == kind for leak in leaks)
            for kind, name in KINDS.items()
        },
    }


@guarded
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the audit and return its exit status: 0 clean, 1 leaks, 2 refused.

    Args:
        arguments: the words after the program's name; those of the process when None.
    """
    parser = Parser(
        prog="python -m mela_jax.data.leakage",
        description=__doc__,
    )
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="image folders")
    parser.add_argument(
        "--splits",
        action="append",
        default=[],
        metavar="CSV",
        help="image_id,lesion_id,split, such as a run's splits.csv; may be repeated",
    )
    parser.add_argument(
        "--max-distance",
        type=number(
            int,
            f"whole number up to {HASH_SIZE**2}",
            lambda bits: 0 <= bits <= HASH_SIZE**2,
        ),
        default=MAX_DISTANCE,
        metavar="BITS",
        help=f"of {HASH_SIZE**2}; hashes this near are duplicates (default: "
        "%(default)s)",
    )
    parser.add_argument("--output", metavar="JSON", help="write every leak there")
    options = parser.parse_args(arguments)
    splits = Splits(options.splits) if options.splits else None
    if len(options.folders) < 2 and not splits:
        raise UserError("one folder is one place: give two, or --splits")
    pictures = list_pictures(options.folders, splits)
    leaks = audit(pictures, max_distance=options.max_distance)
    summary = _summary(pictures, leaks)
    if options.output:
        content = {"summary": summary, "leaks": [vars(leak) for leak in leaks]}
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        write_text(options.output, text)
    for place, count in summary["images"].items():
        print(f"{count} images in {place}")
    if summary["without_lesion_id"]:
        print(f"{summary['without_lesion_id']} images have no lesion_id")
    for kind, name in KINDS.items():
        print(f"{name.replace('_', ' ')}: {summary[name]}")
        for leak in [leak for leak in leaks if leak.kind == kind][:SHOWN]:
            print(f"  {_describe(leak)}")
    return LEAKS if leaks else CLEAN


if __name__ == "__main__":
    prepare_process()
    sys.exit(main())
