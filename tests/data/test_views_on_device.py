"""The device's views are the host's."""

import dataclasses

import jax
import numpy as np
import pytest

from mela_jax.data import views
from mela_jax.data.views import AugmentSettings, draw_views
from mela_jax.data.views_on_device import augment_batch
from tests.views import OFF, ON

# Crops small enough that 40 pixels, too, are now and then enlarged to 24.
CLOSE = dataclasses.replace(ON, crop_min_area=0.3)
# Of 256 grey levels. Both renderers compute in float32; what is left is rounding, of
# coordinates most of all.
TOLERANCE = 0.05

render = jax.jit(augment_batch, static_argnames="size")


def both(settings: AugmentSettings, *, size_in: int, size_out: int):
    """Render the same views of noise by OpenCV and by JAX."""
    # Noise: a pixel that is read from the wrong place is wrong by tens of levels.
    shape = (16, size_in, size_in, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    transforms, colours = draw_views(
        seed=3,
        view=1,
        indices=np.arange(16),
        settings=settings,
        size_in=size_in,
        size_out=size_out,
    )
    host = views.augment_batch(images, transforms, colours, size=size_out)
    ours = render(images, transforms, colours, size=size_out)
    return images, host, ours


@pytest.mark.parametrize("sizes", [(24, 24), (40, 24), (15, 24)])
def test_views_are_those_of_the_host(sizes: tuple[int, int]):
    """Cropped, turned past the border, enlarged and reduced, in all colours."""
    size_in, size_out = sizes
    _, host, ours = both(CLOSE, size_in=size_in, size_out=size_out)
    assert ours.shape == (16, size_out, size_out, 3)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, host, atol=TOLERANCE)


def test_colours_are_clipped_as_on_the_host():
    strong = dataclasses.replace(CLOSE, brightness=0.9, contrast=0.9)
    _, host, ours = both(strong, size_in=24, size_out=24)
    assert host.min() == ours.min() == 0 and host.max() == ours.max() == 255
    np.testing.assert_allclose(ours, host, atol=TOLERANCE)


def test_off_is_the_identity():
    images, _, ours = both(OFF, size_in=24, size_out=24)
    np.testing.assert_array_equal(ours, images)


def test_a_corner_in_a_turned_view_is_mirrored_with_the_border_twice():
    """A view that looks past the border, worked out by hand."""
    row = np.arange(6, dtype=np.uint8) * 10
    image = np.swapaxes(np.broadcast_to(row[:, None, None], (6, 6, 3)), 0, 1)
    # Four pixels to the left: columns -4 to 1.
    transform = np.array([[1, 0, -4], [0, 1, 0]], np.float32)
    colour = np.eye(3, 4, dtype=np.float32)
    view = render(image[None], transform[None], colour[None], size=6)
    np.testing.assert_allclose(view[0, 2, :, 1], [30, 20, 10, 0, 0, 10])


def test_each_picture_has_several_views_one_after_the_other():
    images = np.random.default_rng(1).integers(0, 256, (2, 24, 24, 3), np.uint8)
    index, view = np.repeat(np.arange(2), 3), np.tile(np.arange(3), 2)
    transforms, colours = draw_views(
        seed=3,
        view=view,
        indices=index,
        settings=CLOSE,
        size_in=24,
        size_out=24,
        per_image=3,
    )
    several = render(images, transforms, colours, size=24)
    np.testing.assert_array_equal(
        several, render(images[index], transforms, colours, size=24)
    )
    host = views.augment_batch(images, transforms, colours, size=24)
    np.testing.assert_allclose(several, host, atol=TOLERANCE)
