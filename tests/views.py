"""Settings of views, and pictures to make them of, shared by several test files."""

import dataclasses

import numpy as np

from mela_jax.data.views import AugmentSettings, Views

# Leaves a picture as it is.
OFF = AugmentSettings(
    flip=False,
    rotate=False,
    crop_min_area=1.0,
    brightness=0.0,
    contrast=0.0,
    saturation=0.0,
    hue=0.0,
)
ON = AugmentSettings(
    flip=True,
    rotate=True,
    crop_min_area=0.5,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1,
)
# Seldom clips a colour.
MILD = dataclasses.replace(ON, brightness=0.2, contrast=0.2, saturation=0.2, hue=0.05)

IMAGES = np.random.default_rng(0).integers(0, 256, (23, 12, 12, 3), dtype=np.uint8)
LABELS = np.arange(23) % 3 == 0
ROWS = np.arange(2, 21)  # 19 rows: 4 batches of 4, and 3 images that wait
OPTIONS = {"views": Views(MILD), "image_size": 8, "batch_size": 4, "seed": 5}
