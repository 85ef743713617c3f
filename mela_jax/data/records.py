"""What is known of one image, whichever data set it comes from."""

from dataclasses import dataclass

# How tables spell "not known".
_UNKNOWN = ("", "nan", "na", "none", "null", "unknown")


def known_text(text: str) -> str:
    """Return the text of a cell, stripped, or "" where it says "not known".

    >>> known_text(" back "), known_text("NaN"), known_text("unknown")
    ('back', '', '')
    """
    text = text.strip()
    return "" if text.lower() in _UNKNOWN else text


@dataclass(frozen=True)
class Record:
    """One image of one lesion.

    Attributes:
      image_id: name of the image, unique within its data set.
      lesion_id: name of the lesion (or patient) that the image shows. Images that share
        it never land in different splits.
      label: 1 for melanoma, 0 for anything else.
      path: the image file.
      dx: diagnosis, as the data set names it, in lower case; empty where unknown.
      dx_type: how the diagnosis was made; empty where unknown.
      age: age of the patient in years, as text; empty where unknown.
      sex: sex of the patient; empty where unknown.
      localization: place on the body; empty where unknown.
      source: clinic, camera or collection that the image comes from, as the data set
        names it; empty where unknown.
    """

    image_id: str
    lesion_id: str
    label: int
    path: str
    dx: str = ""
    dx_type: str = ""
    age: str = ""
    sex: str = ""
    localization: str = ""
    source: str = ""
