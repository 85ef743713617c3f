"""From the name of a data set to its records: the only list of data sets."""

import functools
import os
from collections.abc import Callable
from pathlib import Path

from mela_jax.data.ham10000 import download_ham10000
from mela_jax.data.phantom import read_phantom, write_phantom
from mela_jax.data.published import LAYOUTS, read_published
from mela_jax.data.records import Record
from mela_jax.data.user_csv import read_user_csv
from mela_jax.errors import UserError

DATASETS: dict[str, Callable[[str | os.PathLike[str]], list[Record]]] = {
    **{
        name: functools.partial(read_published, layout=layout)
        for name, layout in LAYOUTS.items()
    },
    "csv": read_user_csv,
    "phantom": read_phantom,
}


def load_records(
    *,
    name: str,
    directory: str | os.PathLike[str],
    download: bool,
    phantom_lesions: int,
    seed: int,
    phantom_size: int = 96,
) -> list[Record]:
    """List the images of a data set, fetching or drawing them first where asked to.

    Args:
      name: a key of `DATASETS`.
      directory: folder of the data set; for "csv" the CSV or its folder; for "phantom"
        the folder that the made-up images are written to.
      download: for "ham10000", fetch the ISIC 2018 Task 3 files into `directory`.
      phantom_lesions: for "phantom", the number of made-up lesions.
      seed: for "phantom", which lesions are made up.
      phantom_size: for "phantom", the side of the images in pixels.

    Returns:
      One record per image, sorted by image_id.

    Raises:
      UserError: there is no such data set, or its files are not as they must be.
    """
    if name not in DATASETS:
        raise UserError(f"no data set {name!r}; there are {', '.join(DATASETS)}")
    if not os.fspath(directory):
        raise UserError(
            f"the data set {name!r} needs a folder: --config.data.dir=/path/to/it"
        )
    folder = Path(directory).expanduser()
    if download:
        if name != "ham10000":
            raise UserError(f"the data set {name!r} cannot be downloaded")
        download_ham10000(folder)
    if name == "phantom":
        write_phantom(folder, num_lesions=phantom_lesions, seed=seed, size=phantom_size)
    return DATASETS[name](folder)
