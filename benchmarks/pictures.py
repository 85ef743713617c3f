"""Made-up JPEG files.

They have about as many bytes as those of dermoscopy images. HAM10000 as published
has 270 kB a file at 600x450 pixels; copies of it at 200x150 have 5 kB. Of these, 240
and 4.
"""

import csv
import os
from pathlib import Path

import numpy as np
from PIL import Image

# Of different pictures; where more files are wanted, these are repeated.
NUM_DIFFERENT = 200

# Pictures at least as wide are compressed as originals are, smaller ones as copies.
_ORIGINAL_WIDTH = 400


def write_pictures(folder: Path, *, count: int, width: int, height: int) -> list[Path]:
    """Write JPEG files of smooth random colours with some noise; return their paths.

    From number `NUM_DIFFERENT` on, files are hard links to the first ones: each has a
    name of its own, as the data sets want it, and takes no room.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:06d}.jpg" for number in range(count)]
    quality = 100 if width >= _ORIGINAL_WIDTH else 75
    rng = np.random.default_rng(0)
    for path in paths[:NUM_DIFFERENT]:
        coarse = Image.fromarray(rng.integers(60, 220, (9, 12, 3), np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
        noisy = smooth + rng.normal(0, 6, smooth.shape)
        picture = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        picture.save(path, "JPEG", quality=quality)
    for number, path in enumerate(paths[NUM_DIFFERENT:]):
        os.link(paths[number % NUM_DIFFERENT], path)
    return paths


def write_data_set(folder: Path, *, count: int, width: int, height: int) -> None:
    """Write pictures and the `labels.csv` of the data set "csv"; one in four is 1."""
    paths = write_pictures(folder, count=count, width=width, height=height)
    with (folder / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "label"])
        table.writerows((p.name, int(n % 4 == 0)) for n, p in enumerate(paths))
