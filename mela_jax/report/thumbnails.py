"""Thumbnails for the contact sheet: small enough to be embedded in the report."""

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from mela_jax.data.image_io import (
    MASK_FILES,
    MASK_FOLDERS,
    BadImageError,
    list_pictures,
    read_image,
)
from mela_jax.errors import UserError
from mela_jax.evaluation.subgroups import UNKNOWN
from mela_jax.report.page import Thumbnail
from mela_jax.report.wording import diagnosis_name
from mela_jax.vocabulary import PictureNames

# Side of a thumbnail in pixels.
SIDE = 160
# False alarms shown; missed melanomas are all shown.
MAX_ALARMS = 24


def find_images(
    folder: str | os.PathLike[str], image_ids: Sequence[str]
) -> dict[str, str]:
    """Return image_id -> path of those images that are below a folder.

    Raises:
        UserError: there is no such folder, no image in it, or two that could be meant.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UserError(f"--images={folder}: there is no such folder")
    found = list_pictures(root, skip_folders=MASK_FOLDERS, skip_files=MASK_FILES)
    if not found.pictures:
        raise UserError(f"--images={folder}: there are no images in it")
    names = PictureNames(found.pictures)
    numbers = {image_id: names.find(image_id) for image_id in image_ids}
    return {
        image_id: found.pictures[k] for image_id, k in numbers.items() if k is not None
    }


def thumbnails(
    rows: Sequence[Mapping[str, Any]], images: Mapping[str, Any]
) -> list[Thumbnail]:
    """Return a thumbnail for each row, in its order.

    Args:
        rows: "missed" or "false_alarms" of the figures.
        images: image_id -> path; what is not there, or not readable, has no picture.
    """
    return [
        Thumbnail(
            row["image_id"],
            _jpeg(images.get(row["image_id"])),
            row["score"],
            ", ".join(_notes(row)),
        )
        for row in rows
    ]


def _notes(row: Mapping[str, Any]) -> list[str]:
    dx = row.get("dx")
    notes = [diagnosis_name(dx)] if dx else []
    if row.get("age"):
        notes.append(f"{float(row['age']):g} y")
    notes += [row[name] for name in ("sex", "localization") if row.get(name)]
    return [note for note in notes if note != UNKNOWN]


def _jpeg(path: Any) -> bytes | None:
    """Return the middle of a picture as a small JPEG, upright."""
    if path is None:
        return None
    try:
        small = ImageOps.fit(Image.fromarray(read_image(path)), (SIDE, SIDE))
    except BadImageError:
        # The report is not to fail for a picture; the sheet says "no image".
        return None
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
