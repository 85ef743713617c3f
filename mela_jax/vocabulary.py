"""What the columns and cells of a table mean, however a data set spells them.

The spellings are those of HAM10000, the ISIC archive and its challenges, PAD-UFES-20,
and of the spreadsheets in which people keep their own images.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from mela_jax.errors import UserError

_IMAGE_IDS = ("image_id", "image", "image_name", "isic_id", "img_id")
_IMAGE_FILES = ("path", "file", "filename", "image_path", "image_file")

# Meaning of a column -> the names that data sets give it, the best one first. Capitals,
# spaces, hyphens and underscores make no difference.
COLUMNS: dict[str, tuple[str, ...]] = {
    "image_id": (*_IMAGE_IDS, *_IMAGE_FILES),
    "path": (*_IMAGE_FILES, *_IMAGE_IDS),
    "lesion_id": ("lesion_id", "lesion"),
    "patient_id": ("patient_id", "patient"),
    "group": ("group", "group_id"),
    "dx": ("dx", "diagnosis", "diagnosis_3", "diagnostic"),
    "label": ("label", "target", "benign_malignant", "melanoma"),
    "age": ("age", "age_approx"),
    "sex": ("sex", "gender"),
    "localization": (
        "localization",
        "anatom_site_general",
        "anatom_site_general_challenge",
        "anatom_site",
        "region",
    ),
    "dx_type": ("dx_type", "diagnosis_confirm_type"),
    "source": ("source", "dataset"),
}

# What may be known of an image besides its label; a report looks at each apart.
DETAILS = ("age", "sex", "localization", "dx", "dx_type", "source")

# Columns whose equal cells say that images belong together.
GROUPINGS = ("lesion_id", "patient_id", "group")

_UNKNOWN = {"", "?", "-", "--", ".", "nan", "na", "n/a", "#n/a", "<na>", "nat"}
_UNKNOWN |= {"none", "null", "nil", "unk", "unknown", "missing", "unspecified"}
_UNKNOWN |= {"not known", "not available", "not specified", "not applicable"}

# Code in HAM10000 -> other words for it. SCC is none of HAM10000's diagnoses.
_DIAGNOSES = {
    "mel": "melanoma; malignant melanoma; melanoma, nos; melanoma in situ; melanoma"
    " invasive; melanoma metastasis; metastatic melanoma; nodular melanoma; superficial"
    " spreading melanoma; lentigo maligna; lentigo maligna melanoma; amelanotic"
    " melanoma; acral melanoma; acral lentiginous melanoma; desmoplastic"
    " melanoma; melanoma (in situ); melanoma (less than 0.76 mm); melanoma (0.76 to 1.5"
    " mm); melanoma (more than 1.5 mm)",
    "nv": "nev; nevus; naevus; nevi; naevi; nevus, nos; melanocytic nevus; melanocytic"
    " naevus; melanocytic nevi; common nevus; dysplastic nevus; atypical nevus; nevus,"
    " atypical, dysplastic, or clark; nevus, congenital; nevus, acral; blue nevus;"
    " nevus, blue; spitz nevus; nevus, spitz; nevus, combined; nevus, recurrent or"
    " persistent; clark nevus; reed or spitz nevus; congenital nevus; dermal nevus;"
    " combined nevus; recurrent nevus",
    "bcc": "basal cell carcinoma; basal cell carcinoma, nodular; basal cell carcinoma,"
    " superficial",
    "akiec": "ak; ack; actinic keratosis; solar or actinic keratosis; bowen's disease;"
    " intraepithelial carcinoma; squamous cell carcinoma in situ",
    "scc": "squamous cell carcinoma; squamous cell carcinoma, nos; squamous cell"
    " carcinoma, invasive",
    "bkl": "sk; sek; seborrheic keratosis; seborrhoeic keratosis; benign keratosis;"
    " pigmented benign keratosis; lichenoid keratosis; lichen planus like keratosis;"
    " solar lentigo; lentigo nos; lentigo simplex",
    "df": "dermatofibroma",
    "vasc": "vascular lesion; hemangioma; haemangioma; angiokeratoma; pyogenic"
    " granuloma; angioma",
}
_CODES = {
    word: code
    for code, words in _DIAGNOSES.items()
    for word in (code, *words.split("; "))
}

_LABELS = {
    1: ("true", "yes", "positive", "malignant"),
    0: ("false", "no", "negative", "benign", "other", "nonmelanoma", "non-melanoma")
    + ("non melanoma", "not melanoma", "no melanoma"),
}
_LABEL_OF = {word: label for label, words in _LABELS.items() for word in words}
LABEL_HELP = (
    "write 1 or melanoma for melanoma, and 0 or other for everything else (also true"
    " and false, malignant and benign, or a diagnosis such as mel and nv)"
)


def known_text(text: str) -> str:
    """Return the text of a cell, stripped, or "" where it says "not known".

    >>> known_text(" back "), known_text("NaN"), known_text("n/a")
    ('back', '', '')
    """
    text = text.strip()
    return "" if text.casefold() in _UNKNOWN else text


def plain_name(name: str) -> str:
    """Return a column's name without what makes no difference in it.

    >>> plain_name("Lesion ID")
    'lesionid'
    """
    return re.sub(r"[\s_-]", "", name).casefold()


def find_diagnosis(text: str) -> str | None:
    """Return the code of a diagnosis, None for one that is not in the vocabulary.

    >>> find_diagnosis("Melanoma, NOS"), find_diagnosis("SEK"), find_diagnosis("cyst")
    ('mel', 'bkl', None)
    """
    return _CODES.get(" ".join(text.casefold().split()))


def parse_label(text: str) -> int | None:
    """Return 1 for melanoma, 0 for anything else, None for what says neither.

    >>> [parse_label(text) for text in ("1.0", "Melanoma", "benign", "nv", "2", "")]
    [1, 1, 0, 0, None, None]
    """
    word = " ".join(text.casefold().split())
    if word in _LABEL_OF:
        return _LABEL_OF[word]
    if code := find_diagnosis(word):
        return int(code == "mel")
    try:
        number = float(word)
    except ValueError:
        return None
    return int(number) if number in (0, 1) else None


def check_age(text: str, where: str) -> None:
    """Refuse an age that is neither empty nor a number of years.

    Raises:
      UserError: it is something else, such as -1 or 999 for "not known"; the message
        begins with `where` it stands.
    """
    try:
        good = not text or 0 <= float(text) <= 130
    except ValueError:
        good = False
    if not good:
        raise UserError(
            f"{where}: age {text!r} is not a number of years from 0 to 130; leave it"
            " empty where it is unknown"
        )


class PictureName(NamedTuple):
    """The name of a picture: folders and name without extension, and the extension."""

    parts: tuple[str, ...]
    extension: str


# Of pictures, and of other files that people name by them.
_EXTENSION = re.compile(
    r"\.(jpe?g|jpe|jfif|png|bmp|tiff?|webp|gif|hei[cf]|avif|dcm)$", re.IGNORECASE
)


def picture_name(text: str) -> PictureName:
    """Read the name of a picture: a path, a file's name, or one without extension.

    ISIC's `_downsampled` copies have the name of their original.

    >>> picture_name("photos/ISIC_0000001_downsampled.JPG")
    PictureName(parts=('photos', 'ISIC_0000001'), extension='.jpg')
    """
    path = PurePosixPath(text.strip().replace("\\", "/"))
    parts = [part for part in path.parts if part not in ("/", "..")]
    if not parts:
        return PictureName((), "")
    found = _EXTENSION.search(parts[-1])
    extension = found[0].lower() if found else ""
    parts[-1] = parts[-1].removesuffix(found[0] if found else "")
    parts[-1] = parts[-1].removesuffix("_downsampled") or parts[-1]
    return PictureName(tuple(parts), extension)


def same_picture(a: PictureName, b: PictureName) -> bool:
    """Return whether two names can mean one picture: one path ends with the other."""
    n = min(len(a.parts), len(b.parts))
    return n > 0 and a.parts[-n:] == b.parts[-n:]


class PictureNames:
    """Names of pictures, each found again under any spelling.

    Args:
      names: as they are written; each is of a picture of its own.
    """

    def __init__(self, names: Sequence[str]):
        self.names = names
        self._parsed = [picture_name(name) for name in names]
        self._numbers: dict[str, list[int]] = defaultdict(list)
        for number, parsed in enumerate(self._parsed):
            self._numbers[parsed.parts[-1] if parsed.parts else ""].append(number)

    def find(self, name: str) -> int | None:
        """Return the number of the name that means the same picture; None: no name.

        An equal name is preferred to another spelling, and one with the same extension
        to one with another.

        Raises:
          UserError: it could be either of two pictures.
        """
        wanted = picture_name(name)
        last = wanted.parts[-1] if wanted.parts else ""
        found = [
            k
            for k in self._numbers.get(last, ())
            if same_picture(self._parsed[k], wanted)
        ]
        nearest: tuple[Callable[[int], bool], ...] = (
            lambda k: self.names[k] == name,
            lambda k: self._parsed[k].parts == wanted.parts,
            lambda k: self._parsed[k].extension == wanted.extension,
        )
        for is_near in nearest:
            found = list(filter(is_near, found)) or found
        if len(found) > 1:
            first, second = (self.names[k] for k in found[:2])
            raise UserError(
                f"{name!r} could be {first!r} or {second!r}; write it with its folder"
                " and extension"
            )
        return found[0] if found else None

    def find_repeated(self) -> tuple[int, int] | None:
        """Return the numbers of two names that mean one picture, if there are such.

        Two files of different formats are two pictures.
        """
        for numbers in self._numbers.values():
            for i, k in enumerate(numbers):
                for other in numbers[:i]:
                    a, b = self._parsed[other], self._parsed[k]
                    known = {x.extension for x in (a, b)} - {""}
                    if a.parts == b.parts and len(known) < 2:
                        return other, k
        return None


def first_of(names: Iterable[str], count: int = 5) -> str:
    """Return some names for a message: "a, b, c ..."."""
    names = list(names)
    return ", ".join(names[:count]) + (" ..." if len(names) > count else "")
