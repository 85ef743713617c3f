"""Random views of training images: one warp and one colour change for each.

Flips, rotation, crop and resize are a single affine warp, so that a picture is
interpolated once. Brightness, contrast, saturation and hue are a single affine map of
the colours. All randomness is NumPy's and comes from (seed, view, index of the image):
a view depends neither on threads nor on the batch it is in, and can be had again.
OpenCV renders the views here, on the host; `mela_jax.data.views_on_device` renders the
same ones in JAX.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from mela_jax.errors import UserError

# RGB to YIQ, the colour space of NTSC: luma, and a plane of chroma in which saturation
# is a radius and hue an angle.
_TO_YIQ = np.array(
    [[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]]
)
_FROM_YIQ = np.linalg.inv(_TO_YIQ)

_MID_GREY = 127.5

_ALIGNMENT = 64


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


@dataclass(frozen=True)
class Views:
    """Which views of its images a training sees.

    With V views of an image in a batch, the image shows views 0 to V - 1 the first
    time, V to 2 V - 1 the second, and so on. View k is turned by k mod V quarter turns
    before its own augmentation, so that view 0 of every V is the upright one.

    Attributes:
      settings: how far a view may differ from its picture.
      per_image: V, views of one image in a batch.
      recurring: number of views of an image, which are shown again when all have been;
        0 for fresh ones always.
      on_device: render them in the training step, not on the host.

    Raises:
      UserError: when `recurring` is not a multiple of `per_image`.
    """

    settings: AugmentSettings
    per_image: int = 1
    recurring: int = 0
    on_device: bool = False

    def __post_init__(self) -> None:
        if self.recurring % self.per_image:
            raise UserError(
                f"{self.recurring} recurring views of an image do not divide into"
                f" batches with {self.per_image} views of an image each; give a"
                " multiple"
            )

    @property
    def are_alike(self) -> bool:
        """Whether all views of an image are one and the same."""
        return self.per_image == 1 and not self.settings.is_random


def draw_views(
    *,
    seed: int,
    view: ArrayLike,
    indices: ArrayLike,
    settings: AugmentSettings,
    size_in: int,
    size_out: int,
    per_image: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw how views are to be rendered.

    Args:
      seed: from 0 to 2**32 - 1.
      view: int[B] or one int, the number of each view.
      indices: int[B], which image of the data set each is of.
      settings: how far views may differ.
      size_in: side of the images in pixels.
      size_out: side of the views in pixels.
      per_image: V; view k is turned by k mod V quarter turns, besides what is drawn.

    Returns:
      Transforms, float32[B, 2, 3], as `view_transform`; and colour maps,
      float32[B, 3, 4], as `colour_map`.
    """
    # A stream of its own for each view, and a fixed number of draws, so that one
    # setting does not shift another's.
    view, indices = np.broadcast_arrays(view, indices)
    keys = np.stack([np.full(len(indices), seed), view, indices], axis=1)
    u = np.empty((len(indices), 10))
    # The entropy as an array: of a list, NumPy would first make one, number by number.
    for row, key in zip(u, keys.astype(np.uint32), strict=True):
        stream = np.random.PCG64(np.random.SeedSequence(key))
        np.random.Generator(stream).random(out=row)
    u = u.T
    side = np.sqrt(settings.crop_min_area + (1 - settings.crop_min_area) * u[3])
    transforms = view_transform(
        flip_x=settings.flip & (u[0] < 0.5),
        flip_y=settings.flip & (u[1] < 0.5),
        turns=(u[2] if settings.rotate else 0.0) + view % per_image / 4,
        side=side,
        shift_x=(u[4] - 0.5) * (1 - side),
        shift_y=(u[5] - 0.5) * (1 - side),
        size_in=size_in,
        size_out=size_out,
    )
    change = 2 * u[6:] - 1
    colours = colour_map(
        brightness=1 + settings.brightness * change[0],
        contrast=1 + settings.contrast * change[1],
        saturation=1 + settings.saturation * change[2],
        turns=settings.hue * change[3],
    )
    return transforms, colours


def view_transform(
    *,
    flip_x: ArrayLike,
    flip_y: ArrayLike,
    turns: ArrayLike,
    side: ArrayLike,
    shift_x: ArrayLike,
    shift_y: ArrayLike,
    size_in: int,
    size_out: int,
) -> np.ndarray:
    """Describe views as maps from their pixels to the pictures'.

    Each argument but the sizes is one for all views or [B], one for each.

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
      float32[B, 2, 3], or [2, 3] where nothing is [B]: the view's pixel (x, y, 1),
      multiplied by it, is the picture's (x, y).
    """
    scale = np.asarray(side) * size_in / size_out
    cos, sin = _cos_sin(turns)
    mirror_x, mirror_y = (np.where(flip, -1.0, 1.0) for flip in (flip_x, flip_y))
    xx, xy = scale * cos * mirror_x, -scale * sin * mirror_y
    yx, yy = scale * sin * mirror_x, scale * cos * mirror_y
    # Pixel centres lie at half coordinates; the centre of the view maps to the crop's.
    out_centre, in_centre = (size_out - 1) / 2, (size_in - 1) / 2
    x0 = in_centre + np.asarray(shift_x) * size_in - (xx + xy) * out_centre
    y0 = in_centre + np.asarray(shift_y) * size_in - (yx + yy) * out_centre
    parts = np.broadcast_arrays(xx, xy, x0, yx, yy, y0)
    return np.stack(parts, axis=-1).reshape(*parts[0].shape, 2, 3).astype(np.float32)


def colour_map(
    *,
    brightness: ArrayLike,
    contrast: ArrayLike,
    saturation: ArrayLike,
    turns: ArrayLike,
) -> np.ndarray:
    """Describe changes of colours as affine maps of RGB in [0, 255].

    Saturation and hue scale and turn the chroma in YIQ, then brightness scales
    everything, then contrast scales the distance from mid-grey (127.5). Each argument
    is one for all views or [B], one for each.

    Args:
      brightness: factor; 1 for no change.
      contrast: factor; 1 for no change.
      saturation: factor; 1 for no change, 0 for grey.
      turns: turn of the hue, in full turns; 0 for no change.

    Returns:
      float32[B, 3, 4], or [3, 4] where nothing is [B]: RGB becomes
      `m[:, :3] @ rgb + m[:, 3]`.
    """
    gain = np.asarray(contrast) * brightness
    cos, sin = _cos_sin(turns)
    change = np.zeros((*np.broadcast(saturation, cos).shape, 3, 3))
    change[..., 1, 1] = change[..., 2, 2] = cos * saturation - 1
    change[..., 2, 1] = sin * saturation
    change[..., 1, 2] = -change[..., 2, 1]
    # As identity plus change: with no change, the identity to the last bit.
    linear = gain[..., None, None] * (np.eye(3) + _FROM_YIQ @ change @ _TO_YIQ)
    offset = (1 - np.asarray(contrast))[..., None, None] * _MID_GREY
    offset = np.broadcast_to(offset, (*linear.shape[:-1], 1))
    return np.concatenate([linear, offset], axis=-1).astype(np.float32)


def _cos_sin(turns: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return cosine and sine of an angle in full turns.

    The C library's, which are the same for one angle and for many; NumPy's differ in
    the last bit with the processor.
    """
    angles = 2 * math.pi * np.asarray(turns, np.float64)
    cos, sin = (
        np.array([f(a) for a in angles.ravel().tolist()]).reshape(angles.shape)
        for f in (math.cos, math.sin)
    )
    return cos, sin


def augment_batch(
    images: Iterable[np.ndarray],
    transforms: np.ndarray,
    colours: np.ndarray,
    *,
    size: int,
) -> np.ndarray:
    """Render the views of a batch with OpenCV, on the host.

    Args:
      images: uint8[B / V, S, S, 3] or as many uint8[S, S, 3], RGB; each has V views,
        one after the other.
      transforms: float32[B, 2, 3], from `draw_views`.
      colours: float32[B, 3, 4], from `draw_views`.
      size: side of the views in pixels, the `size_out` of `draw_views`.

    Returns:
      float32[B, size, size, 3], RGB in [0, 255], aligned as by `aligned_empty`.
    """
    # Here, because where the device renders, the rest of this module is enough.
    import cv2

    # Batches are rendered side by side, a thread each.
    cv2.setNumThreads(1)
    images = list(images)
    views = aligned_empty((len(transforms), size, size, 3), np.float32)
    per_image = len(transforms) // len(images)
    for number, image in enumerate(images):
        # OpenCV rounds a warp of uint8 to whole levels.
        picture = image.astype(np.float32)
        for row in range(number * per_image, (number + 1) * per_image):
            warped = cv2.warpAffine(
                picture,
                transforms[row],
                (size, size),
                flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                # The border's pixel comes twice: c b a | a b c.
                borderMode=cv2.BORDER_REFLECT,
            )
            np.clip(cv2.transform(warped, colours[row]), 0.0, 255.0, out=views[row])
    return views


def aligned_empty(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """Return an array with content of no meaning, at a multiple of 64 bytes.

    tf.data, and JAX on a CPU, use memory so aligned as it is, and copy any other.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)
