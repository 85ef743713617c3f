"""Find image files, and read them into the square of pixels that the models see.

Training, evaluation, `predict`, the audit and the reports all come through here, so
that a file means the same pixels everywhere. NumPy and Pillow only; the extra `heic`
adds the decoder of iPhones' photographs.
"""

import contextlib
import os
import re
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from mela_jax.errors import UserError

# Files of unknown origin are tried by these decoders and by no other.
FORMATS: tuple[str, ...] = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF")
with contextlib.suppress(ImportError):
    import pillow_heif

    pillow_heif.register_heif_opener()
    FORMATS += ("HEIF",)

EXTENSIONS: tuple[str, ...] = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp")
EXTENSIONS += (".tif", ".tiff", ".webp", ".gif")
# Pictures too, of which reading says what to do with them.
OTHER_EXTENSIONS = (".heic", ".heif", ".avif", ".jp2", ".dcm", ".dng", ".cr2", ".nef")

# Masks of lesions beside the images, and what macOS adds to archives.
MASK_FOLDERS = re.compile(r"__MACOSX|segmentation|mask", re.IGNORECASE)
MASK_FILES = re.compile(r"_(segmentation|mask)\.", re.IGNORECASE)

# A file of a few kilobytes may declare more pixels than memory holds. The limit is
# Pillow's own for a warning: above any camera's dermoscopy picture.
MAX_PIXELS = 89_478_485

CROPS = ("center", "pad")


class BadImageError(UserError):
    """A file that cannot be read as one picture. The message names the file."""


class Listing(NamedTuple):
    """The files below a folder, as paths, sorted: pictures, and whatever else."""

    pictures: list[str]
    others: list[str]


def list_pictures(
    folder: str | os.PathLike[str],
    *,
    skip_folders: re.Pattern[str] | None = None,
    skip_files: re.Pattern[str] | None = None,
) -> Listing:
    """List the pictures in a folder and in those below it, by their extension.

    Links are followed, each folder once. A link that leads nowhere and a picture in a
    format that cannot be read are listed: reading them says so. Hidden files and
    folders are passed over, and those whose names match the patterns.

    Raises:
      UserError: there is no such folder, or one that cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise UserError(
            f"cannot list {error.filename}: {error.strerror}; make it readable or"
            " leave it out"
        ) from error

    def shown(name: str, skip: re.Pattern[str] | None) -> bool:
        return not name.startswith(".") and not (skip and skip.search(name))

    found = Listing([], [])
    visited = set()
    for where, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = [name for name in folders if shown(name, skip_folders)]
        # A link to a folder above would otherwise be walked without end.
        if (real := os.path.realpath(where)) in visited:
            folders.clear()
            continue
        visited.add(real)
        for name in files:
            if shown(name, skip_files):
                is_picture = name.lower().endswith((*EXTENSIONS, *OTHER_EXTENSIONS))
                found[not is_picture].append(os.path.join(where, name))
    return Listing(sorted(found.pictures), sorted(found.others))


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an image file as upright RGB.

    The EXIF orientation is applied. Transparent pixels are laid over white. Grey,
    palette, CMYK and 16-bit pictures become 8-bit RGB; of 16 bits the upper eight are
    kept, as Pillow does for 16-bit colour.

    Args:
      path: a JPEG, PNG, BMP, TIFF, WebP or GIF file with one picture. (Of the several
        pictures in a phone's MPO file the first, the photograph, is taken.)

    Returns:
      uint8[H, W, 3], RGB in [0, 255].

    Raises:
      BadImageError: the file is absent, empty, truncated, animated, no image, or larger
        than `MAX_PIXELS`.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise BadImageError(
                    f"{path}: {width}x{height} pixels are more than the "
                    f"{MAX_PIXELS:,} that are read; make it smaller"
                )
            if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
                raise BadImageError(
                    f"{path}: an animation or a stack of pictures; save one as JPEG "
                    "or PNG"
                )
            image.load()
            return _to_rgb(_upright(image), path)
    except BadImageError:
        raise
    except Image.DecompressionBombError:
        raise BadImageError(
            f"{path}: more than the {MAX_PIXELS:,} pixels that are read; make it"
            " smaller"
        ) from None
    except FileNotFoundError:
        reason = "no such file"
        if os.path.islink(path):
            reason = (
                f"a link to {os.readlink(path)}, which is not there; fetch the file"
                " (git-annex: git annex get), or remove the link"
            )
        raise BadImageError(f"{path}: {reason}") from None
    except Image.UnidentifiedImageError:
        reason = "not an image that can be read; save it as JPEG or PNG"
        if _is_heif(path):
            reason = (
                "a HEIC or AVIF photograph; save it as JPEG, or install the decoder:"
                " pip install pillow-heif"
            )
        raise BadImageError(f"{path}: {reason}") from None
    except MemoryError:
        raise BadImageError(f"{path}: too large for the memory of this machine") from (
            None
        )
    # A damaged file can raise nearly anything from within a decoder: OSError,
    # SyntaxError, ValueError, struct.error, IndexError, zlib.error ...
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadImageError(
            f"{path}: damaged or unreadable ({reason}); replace the file"
        ) from error


def to_square(image: np.ndarray, *, size: int, crop: str) -> np.ndarray:
    """Cut or pad a picture to a square and resize it, keeping its proportions.

    Resizing is bilinear, over the whole area of the source that a pixel covers, so that
    a large photograph does not alias.

    Args:
      image: uint8[H, W, 3].
      size: side of the result, in pixels.
      crop: "center" keeps the centre square; "pad" keeps everything and adds black.

    Returns:
      uint8[size, size, 3].

    Raises:
      ValueError: `crop` is neither.
    """
    if crop not in CROPS:
        raise ValueError(f"crop is {crop!r}; it may be {' or '.join(CROPS)}")
    height, width = image.shape[:2]
    if crop == "center":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = image[top : top + side, left : left + side]
    else:
        side = max(height, width)
        top, left = (side - height) // 2, (side - width) // 2
        square = np.zeros((side, side, 3), np.uint8)
        square[top : top + height, left : left + width] = image
    if side == size:
        return np.ascontiguousarray(square)
    picture = Image.fromarray(np.ascontiguousarray(square))
    return np.array(picture.resize((size, size), Image.Resampling.BILINEAR))


def load_square(path: str | os.PathLike[str], *, size: int, crop: str) -> np.ndarray:
    """Read an image file and make it a square: `to_square(read_image(path))`.

    Returns:
      uint8[size, size, 3], RGB in [0, 255].

    Raises:
      BadImageError: the file cannot be read.
    """
    return to_square(read_image(path), size=size, crop=crop)


def _is_heif(path: str | os.PathLike[str]) -> bool:
    with open(path, "rb") as file:
        start = file.read(12)
    return start[4:8] == b"ftyp" and start[8:10] in (b"he", b"mi", b"ms", b"av")


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        # Only the EXIF block is damaged: the pixels are good and stay as stored.
        return image


def _to_rgb(image: Image.Image, path: str | os.PathLike[str]) -> np.ndarray:
    if image.mode.startswith("I"):  # 16-bit grey: "I;16", "I;16B", or "I"
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 0xFFFF:
            raise BadImageError(f"{path}: more than 16 bits; save it with 8 or 16")
        return np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode == "F":
        raise BadImageError(f"{path}: floating-point pixels; save it as JPEG or PNG")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return np.array(Image.alpha_composite(white, layer).convert("RGB"))
    return np.array(image.convert("RGB"))
