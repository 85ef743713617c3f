"""Random views of training images: one warp and one colour change for each.

Flips, rotation, crop and resize are a single affine warp, so that a picture is
interpolated once. Brightness, contrast, saturation and hue are a single affine map of
the colours. All randomness is NumPy's and comes from (seed, view, index of the image):
a view depends neither on threads nor on the batch it is in, and can be had again.
OpenCV renders the views here, on the host; `mela_jax.data.augment_on_device` renders
the same ones in JAX.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# RGB to YIQ, the colour space of NTSC: luma, and a plane of chroma in which saturation
# is a radius and hue an angle.
_TO_YIQ = np.array(
    [[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]]
)
_FROM_YIQ = np.linalg.inv(_TO_YIQ)

_MID_GREY = 127.5


@dataclass(frozen=True)
class AugmentSettings:
    """How far a view may differ from its picture.

    Attributes:
      flip: mirror, left to right and top to bottom, each every other time.
      rotate: turn by any angle; what comes in from outside is mirrored.
      crop_min_area: the smallest share of the picture that a view keeps, in (0, 1];
        1 for all of it. The crop is square: nothing is squashed.
      brightness: largest relative change of the light, in [0, 1).
      contrast: largest relative change of the distance from mid-grey, in [0, 1).
      saturation: largest relative change of the chroma, in [0, 1].
      hue: largest turn of the hue, in turns of the colour circle, in [0, 0.5].
    """

    flip: bool
    rotate: bool
    crop_min_area: float
    brightness: float
    contrast: float
    saturation: float
    hue: float

    @property
    def is_random(self) -> bool:
        """Whether two views of a picture can differ."""
        colours = (self.brightness, self.contrast, self.saturation, self.hue)
        return self.flip or self.rotate or self.crop_min_area < 1 or any(colours)


def draw_views(
    *,
    seed: int,
    epoch: int,
    indices: Sequence[int] | np.ndarray,
    settings: AugmentSettings,
    size_in: int,
    size_out: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a view for each image of a batch.

    Args:
      seed: not negative.
      epoch: number of the view; where every epoch has its own, the epoch's.
      indices: int[B], which image of the data set each is.
      settings: how far views may differ.
      size_in: side of the images in pixels.
      size_out: side of the views in pixels.

    Returns:
      Transforms, float32[B, 2, 3], as `view_transform`; and colour maps,
      float32[B, 3, 4], as `colour_map`.
    """
    transforms = np.empty((len(indices), 2, 3), np.float32)
    colours = np.empty((len(indices), 3, 4), np.float32)
    for i, index in enumerate(indices):
        rng = np.random.default_rng(np.random.SeedSequence([seed, epoch, int(index)]))
        # A fixed number of draws, so that one setting does not shift another's.
        u = rng.random(10)
        side = math.sqrt(settings.crop_min_area + (1 - settings.crop_min_area) * u[3])
        transforms[i] = view_transform(
            flip_x=settings.flip and u[0] < 0.5,
            flip_y=settings.flip and u[1] < 0.5,
            turns=u[2] if settings.rotate else 0.0,
            side=side,
            shift_x=(u[4] - 0.5) * (1 - side),
            shift_y=(u[5] - 0.5) * (1 - side),
            size_in=size_in,
            size_out=size_out,
        )
        change = 2 * u[6:] - 1
        colours[i] = colour_map(
            brightness=1 + settings.brightness * change[0],
            contrast=1 + settings.contrast * change[1],
            saturation=1 + settings.saturation * change[2],
            turns=settings.hue * change[3],
        )
    return transforms, colours


def view_transform(
    *,
    flip_x: bool,
    flip_y: bool,
    turns: float,
    side: float,
    shift_x: float,
    shift_y: float,
    size_in: int,
    size_out: int,
) -> np.ndarray:
    """Describe a view as a map from its pixels to the picture's.

    Args:
      flip_x: mirror left to right.
      flip_y: mirror top to bottom.
      turns: rotation of the content, counter-clockwise, in full turns.
      side: side of the crop, as a share of the picture's.
      shift_x: centre of the crop from the picture's centre, to the right, as a share of
        the picture's side.
      shift_y: the same, downwards.
      size_in: side of the picture in pixels.
      size_out: side of the view in pixels.

    Returns:
      float32[2, 3]: the view's pixel (x, y, 1), multiplied by it, is the picture's
      (x, y).
    """
    scale = side * size_in / size_out
    cos, sin = math.cos(2 * math.pi * turns), math.sin(2 * math.pi * turns)
    mirror_x, mirror_y = (-1.0 if flip_x else 1.0), (-1.0 if flip_y else 1.0)
    xx, xy = scale * cos * mirror_x, -scale * sin * mirror_y
    yx, yy = scale * sin * mirror_x, scale * cos * mirror_y
    # Pixel centres lie at half coordinates; the centre of the view maps to the crop's.
    out_centre, in_centre = (size_out - 1) / 2, (size_in - 1) / 2
    x0 = in_centre + shift_x * size_in - (xx + xy) * out_centre
    y0 = in_centre + shift_y * size_in - (yx + yy) * out_centre
    return np.array([[xx, xy, x0], [yx, yy, y0]], np.float32)


def colour_map(
    *, brightness: float, contrast: float, saturation: float, turns: float
) -> np.ndarray:
    """Describe a change of colours as an affine map of RGB in [0, 255].

    Saturation and hue scale and turn the chroma in YIQ, then brightness scales
    everything, then contrast scales the distance from mid-grey (127.5).

    Args:
      brightness: factor; 1 for no change.
      contrast: factor; 1 for no change.
      saturation: factor; 1 for no change, 0 for grey.
      turns: turn of the hue, in full turns; 0 for no change.

    Returns:
      float32[3, 4]: RGB becomes `m[:, :3] @ rgb + m[:, 3]`.
    """
    cos, sin = math.cos(2 * math.pi * turns), math.sin(2 * math.pi * turns)
    change = np.zeros((3, 3))
    change[1:, 1:] = saturation * np.array([[cos, -sin], [sin, cos]]) - np.eye(2)
    # As identity plus change: with no change, the identity to the last bit.
    linear = np.eye(3) + _FROM_YIQ @ change @ _TO_YIQ
    offset = np.full((3, 1), (1 - contrast) * _MID_GREY)
    return np.hstack([contrast * brightness * linear, offset]).astype(np.float32)


def augment_batch(
    images: np.ndarray, transforms: np.ndarray, colours: np.ndarray, *, size: int
) -> np.ndarray:
    """Render the views of a batch with OpenCV, on the host.

    Args:
      images: uint8[B, S, S, 3], RGB.
      transforms: float32[B, 2, 3], from `draw_views`.
      colours: float32[B, 3, 4], from `draw_views`.
      size: side of the views in pixels, the `size_out` of `draw_views`.

    Returns:
      float32[B, size, size, 3], RGB in [0, 255].
    """
    # Here, because where the device renders, the rest of this module is enough.
    import cv2

    # Batches are rendered side by side, a thread each: see `fetch_ahead`.
    cv2.setNumThreads(1)
    views = np.empty((len(images), size, size, 3), np.float32)
    for image, transform, colour, view in zip(
        images, transforms, colours, views, strict=True
    ):
        warped = cv2.warpAffine(
            # OpenCV rounds a warp of uint8 to whole levels.
            image.astype(np.float32),
            transform,
            (size, size),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            # The border's pixel comes twice: c b a | a b c.
            borderMode=cv2.BORDER_REFLECT,
        )
        np.clip(cv2.transform(warped, colour), 0.0, 255.0, out=view)
    return views
