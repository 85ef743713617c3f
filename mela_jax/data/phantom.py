"""Made-up dermoscopy lesions, for a machine without data. No figure from them is real.

Asymmetry, border irregularity and number of colours decide the label (Nachbar et al.:
The ABCD rule of dermatoscopy. J Am Acad Dermatol 30 (1994)), with some noise that no
picture shows. A lesion depends on the seed and its own number alone.
"""

import io
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mela_jax.atomic import write_atomically, write_text
from mela_jax.data.records import Record
from mela_jax.data.user_csv import read_user_csv
from mela_jax.errors import UserError
from mela_jax.tables import write_table

# Changes whenever the pictures do, so that a folder from before is not taken for these.
VERSION = 1

README = """\
These pictures are MADE UP by a program (mela_jax/data/phantom.py).
They show no patient and no lesion. No figure computed from them says anything about
skin cancer. They are there to try the software on a machine without data.
"""

# Of every four lesions in a row one is positive.
_BLOCK = 4
# Mean of the three properties above which a lesion is likelier positive than not: about
# three quarters of lesions with independent properties lie below.
_BOUNDARY = 0.55
_LABEL_NOISE = 0.06
_TWO_IMAGES = 0.25  # share of lesions with a second image
# Diagnosis of what is no melanoma, where asymmetry, border or colours is the largest.
_OTHER_DX = ("bkl", "df", "nv")

# RGB in [0, 1].
_SKIN_LIGHT = np.array([0.93, 0.78, 0.71])
_SKIN_DARK = np.array([0.70, 0.51, 0.40])
_BROWN_LIGHT = np.array([0.64, 0.43, 0.29])
_BROWN_DARK = np.array([0.38, 0.22, 0.14])
_EXTRA_COLOURS = np.array(
    [
        [0.13, 0.09, 0.09],  # black
        [0.38, 0.42, 0.52],  # blue-grey
        [0.72, 0.27, 0.25],  # red
        [0.90, 0.84, 0.83],  # white, regression
        [0.24, 0.13, 0.08],  # very dark brown
    ]
)


@dataclass(frozen=True)
class Lesion:
    """What is decided of a made-up lesion before it is drawn.

    `label` is 1 for melanoma. `asymmetry`, `border` (irregularity of the outline) and
    `colours` (how much other than brown there is) are in [0, 1].
    """

    label: int
    asymmetry: float
    border: float
    colours: float
    num_images: int

    @property
    def dx(self) -> str:
        """The diagnosis: "mel", "bkl", "df" or "nv"."""
        if self.label:
            return "mel"
        return _OTHER_DX[int(np.argmax([self.asymmetry, self.border, self.colours]))]


def make_lesion(*, seed: int, index: int) -> Lesion:
    """Decide the properties of lesion `index`, from 0: one in four is positive."""
    block = _stream(seed, 0, index // _BLOCK)
    label = int(block.integers(_BLOCK) == index % _BLOCK)
    rng = _stream(seed, 1, index)
    # Drawn until the label is the wanted one: the properties cause the label, and the
    # prevalence is exact nevertheless.
    while True:
        # What the three have in common: a lesion is seldom irregular in one respect.
        atypia = rng.beta(0.8, 1.5)
        noise = rng.normal(0.0, 0.18, size=3)
        asymmetry, border, colours = np.clip(atypia + noise, 0.0, 1.0)
        mean = (asymmetry + border + colours) / 3
        if int(mean + rng.normal(0.0, _LABEL_NOISE) > _BOUNDARY) == label:
            break
    num_images = 1 + int(rng.random() < _TWO_IMAGES)
    return Lesion(label, float(asymmetry), float(border), float(colours), num_images)


def draw_lesion(*, seed: int, index: int, view: int, size: int) -> np.ndarray:
    """Draw view `view` of lesion `index`, both from 0, as RGB uint8[size, size, 3].

    Views of a lesion differ in rotation, position, scale, light and hairs.
    """
    lesion = make_lesion(seed=seed, index=index)
    rng, view_rng = _stream(seed, 2, index), _stream(seed, 3, index, view)
    axis = (np.arange(size) + 0.5) / size * 2 - 1
    frame_x, frame_y = np.meshgrid(axis, axis)  # picture coordinates, in [-1, 1]
    turn, scale = view_rng.uniform(0, 2 * np.pi), view_rng.uniform(0.92, 1.08)
    dx, dy = view_rng.uniform(-0.12, 0.12, size=2)
    # And those of the lesion.
    x, y = _turned((frame_x - dx) / scale, (frame_y - dy) / scale, turn)
    picture = _skin(rng, x, y)
    distance, angle, outline = _shape(rng, lesion, x, y)
    # A soft margin at one place, an abrupt one at another.
    softness = rng.uniform(0.03, 0.09) * (
        1 - 0.5 * lesion.border * np.cos(angle - rng.uniform(0, 2 * np.pi))
    )
    inside = _step((outline - distance) / softness)
    pigment = _pigment(rng, lesion, x, y, distance / outline)
    strength = rng.uniform(0.72, 0.97)
    picture += (inside * strength)[..., None] * (pigment - picture)

    for _ in range(view_rng.poisson(2.0)):
        _draw_hair(view_rng, picture, frame_x, frame_y)
    _light(view_rng, picture, frame_x, frame_y)
    picture += view_rng.normal(0.0, 0.012, size=picture.shape)
    return (np.clip(picture, 0.0, 1.0) * 255 + 0.5).astype(np.uint8)


def write_phantom(
    directory: str | os.PathLike[str], *, num_lesions: int, seed: int, size: int
) -> None:
    """Write made-up lesions as PNG files with a `labels.csv` (path,label,group,dx).

    What an interrupted call has written is kept, the rest added; the table comes last,
    so a folder with a table is complete and is left as it is. A table from before there
    were diagnoses is written anew, with them; its pictures stay.

    Raises:
      UserError: a number out of range, or the folder holds something else, or the disk
        is full.
    """
    if num_lesions < 1 or seed < 0 or size < 16:
        raise UserError(
            f"cannot draw {num_lesions} made-up lesions at {size} pixels with seed "
            f"{seed}; at least 1, 16 and 0 are needed"
        )
    root = Path(directory).expanduser()
    _claim(root, num_lesions=num_lesions, seed=seed, size=size)
    labels = root / "labels.csv"
    if labels.exists() and b"dx" in labels.read_bytes().partition(b"\n")[0]:
        return
    rows = []
    for index in range(num_lesions):
        lesion = make_lesion(seed=seed, index=index)
        for view in range(lesion.num_images):
            group = f"phantom_{index:05d}"
            path = root / f"{group}_{view}.png"
            rows.append((path.name, lesion.label, group, lesion.dx))
            if not path.exists():
                picture = draw_lesion(seed=seed, index=index, view=view, size=size)
                content = io.BytesIO()
                Image.fromarray(picture).save(content, "PNG", compress_level=3)
                write_atomically(path, content.getvalue())
    write_table(labels, ("path", "label", "group", "dx"), rows)


def read_phantom(directory: str | os.PathLike[str]) -> list[Record]:
    """List the images that `write_phantom` wrote, sorted by image_id.

    Raises:
      UserError: the folder is not a complete one of made-up lesions.
    """
    root = Path(directory).expanduser()
    if not (root / "phantom.json").is_file():
        raise UserError(
            f"{root} holds no made-up lesions; data of your own is read with the data "
            "set 'csv'"
        )
    return read_user_csv(root)


def _claim(root: Path, **wanted: int) -> None:
    """Mark a new folder as one of these lesions, or refuse one that is not."""
    marker = root / "phantom.json"
    content = {"made_up": True, "version": VERSION, **wanted}
    if marker.exists():
        try:
            found = json.loads(marker.read_text())
        except (OSError, ValueError) as error:
            raise UserError(
                f"cannot read {marker}: {error}; delete the folder to have it drawn"
                " anew"
            ) from error
        if found != content:
            raise UserError(
                f"{root} holds other made-up lesions ({json.dumps(found)}, wanted "
                f"{json.dumps(content)}); delete it or name another folder"
            )
        return
    if root.exists() and not root.is_dir():
        raise UserError(f"{root} is a file; name a folder for the made-up lesions")
    # What a call that was killed at its very start left is no other file.
    if root.is_dir() and any(
        p.name != "README.txt" and not p.name.startswith((".README", ".phantom"))
        for p in root.iterdir()
    ):
        raise UserError(
            f"{root} holds other files; name an empty folder for the made-up lesions"
        )
    write_text(root / "README.txt", README)
    write_text(marker, json.dumps(content, indent=2) + "\n")


def _stream(seed: int, *key: int) -> np.random.Generator:
    """Return the random numbers of one purpose (0 to 3) of one lesion."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _turned(x: np.ndarray, y: np.ndarray, turn: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the coordinates in axes turned by an angle in radians."""
    cos, sin = np.cos(turn), np.sin(turn)
    return cos * x + sin * y, cos * y - sin * x


def _step(x: np.ndarray) -> np.ndarray:
    """Rise smoothly from 0 to 1 around 0."""
    return 0.5 + 0.5 * np.tanh(x)


def _field(
    rng: np.random.Generator, x: np.ndarray, y: np.ndarray, *, frequency: float
) -> np.ndarray:
    """Return a random smooth field, mean 0 and deviation 1, that turns with (x, y)."""
    total = np.zeros_like(x)
    num_waves = 5
    for _ in range(num_waves):
        direction, phase = rng.uniform(0, 2 * np.pi, size=2)
        k = frequency * rng.uniform(0.5, 1.5)
        total += np.cos(k * (np.cos(direction) * x + np.sin(direction) * y) + phase)
    return total * np.sqrt(2 / num_waves)


def _skin(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    tone = _SKIN_LIGHT + rng.beta(1.2, 2.5) * (_SKIN_DARK - _SKIN_LIGHT)
    redness = _field(rng, x, y, frequency=3.0)[..., None] * [0.008, -0.012, -0.012]
    grain = _field(rng, x, y, frequency=40.0)[..., None] * 0.008
    return tone + redness + grain


def _shape(
    rng: np.random.Generator, lesion: Lesion, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return distance from the centre, angle, and the outline's radius there."""
    distance, angle = np.hypot(x, y), np.arctan2(y, x)
    elongation = rng.uniform(0.0, 0.16)
    outline = 1 + elongation * np.cos(2 * angle)
    # Odd lobes have no axis of symmetry in common with the ellipse.
    for lobes, amount in ((1, 0.20), (2, 0.12), (3, 0.18)):
        phase = rng.uniform(0, 2 * np.pi)
        outline += lesion.asymmetry * amount * np.cos(lobes * angle + phase)
    for notches in range(5, 14):
        amount = rng.normal(0.0, 0.30) / notches**0.5
        phase = rng.uniform(0, 2 * np.pi)
        outline += (
            (0.02 + 0.20 * lesion.border) * amount * np.cos(notches * angle + phase)
        )
    return distance, angle, rng.uniform(0.38, 0.60) * np.maximum(outline, 0.25)


def _pigment(
    rng: np.random.Generator,
    lesion: Lesion,
    x: np.ndarray,
    y: np.ndarray,
    depth: np.ndarray,
) -> np.ndarray:
    """Colour the lesion; `depth` is 0 at its centre and 1 at its outline."""
    darkness = rng.uniform(0.15, 0.75)
    # The centre is darker than the rim, or the reverse; off centre when asymmetric.
    dx, dy = rng.normal(0.0, 0.30, size=2) * lesion.asymmetry
    core = np.hypot(x - dx, y - dy) / 0.5
    ramp = rng.uniform(-0.15, 0.35) * (1 - core)
    mottle = _field(rng, x, y, frequency=9.0) * rng.uniform(0.03, 0.09)
    u, v = np.cos(60 * x + 3 * y), np.cos(60 * y - 3 * x)
    network = np.maximum(u, v) * rng.uniform(0.0, 0.08) * np.clip(depth, 0, 1)
    mix = np.clip(darkness + ramp + mottle + network, 0, 1)[..., None]
    colour = _BROWN_LIGHT + mix * (_BROWN_DARK - _BROWN_LIGHT)
    # With `colours` in [0, 1], up to four other colours, each a blotch of its own.
    order = rng.permutation(len(_EXTRA_COLOURS))
    for i in range(4):
        direction, offset = rng.uniform(0, 2 * np.pi), rng.uniform(0.08, 0.38)
        width = rng.uniform(0.12, 0.22)
        ripple = 1 + 0.3 * _field(rng, x, y, frequency=8.0)
        presence = np.clip(4.4 * lesion.colours - 0.5 - i, 0, 1)
        far = np.hypot(x - offset * np.cos(direction), y - offset * np.sin(direction))
        patch = _step(3 * (1 - far / (width * np.maximum(ripple, 0.3))))
        patch *= 0.85 * presence
        colour += patch[..., None] * (_EXTRA_COLOURS[order[i]] - colour)
    return colour


def _draw_hair(
    rng: np.random.Generator, picture: np.ndarray, x: np.ndarray, y: np.ndarray
) -> None:
    """Draw a dark arc across the picture, in place."""
    u, v = _turned(x, y, rng.uniform(0, np.pi))
    offset, slope, bend = rng.uniform(-0.9, 0.9), *rng.normal(0.0, 0.2, size=2)
    start = rng.uniform(-1.6, 0.4)
    end = start + rng.uniform(0.6, 2.4)
    off = np.abs(v - offset - slope * u - bend * u * u)
    off /= np.sqrt(1 + (slope + 2 * bend * u) ** 2)
    width = rng.uniform(0.008, 0.016)
    cover = np.clip(1.5 - off / width, 0, 1) * ((u > start) & (u < end))
    shade = rng.uniform(0.08, 0.30) * np.array([1.0, 0.85, 0.75])
    picture += (0.8 * cover)[..., None] * (shade - picture)


def _light(
    rng: np.random.Generator, picture: np.ndarray, x: np.ndarray, y: np.ndarray
) -> None:
    """Light the picture unevenly and darken its corners, in place."""
    gain = rng.uniform(0.88, 1.08) * rng.normal(1.0, 0.02, size=3)
    tilt = rng.normal(0.0, 0.04, size=2)
    radius = np.hypot(x, y)
    vignette = 1 - rng.uniform(0.05, 0.22) * radius**3 / 2
    if rng.random() < 0.2:  # The round rim of the dermatoscope shows.
        vignette *= 0.05 + 0.95 * _step((rng.uniform(1.12, 1.3) - radius) / 0.03)
    light = (1 + tilt[0] * x + tilt[1] * y) * vignette
    picture *= light[..., None] * gain
