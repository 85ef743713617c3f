"""The data sets as TFDS builders, each fed by its reader.

There is one split, which TFDS wants to be called "train": it holds all images, and
`mela_jax.data.splits` makes lesion-grouped splits of them.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from mela_jax.data import ham10000, phantom, published, user_csv
from mela_jax.data.image_io import read_image
from mela_jax.data.records import Record

_TEXTS = ("image_id", "lesion_id", "dx_type", "sex", "localization", "source")


class _RecordsBuilder(
    tfds.core.GeneratorBasedBuilder,
    skip_registration=True,  # type: ignore[call-arg]
):
    """All that a `Record` knows; `age` is NaN where unknown."""

    VERSION = tfds.core.Version("1.2.0")
    RELEASE_NOTES = {"1.2.0": "The same features in every data set."}
    DESCRIPTION = ""
    CITATION: str | None = None
    HOMEPAGE: str | None = None
    DIAGNOSES: Sequence[str] = ()

    def _info(self) -> Any:
        names = list(self.DIAGNOSES)
        return self.dataset_info_from_configs(
            description=self.DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    **{name: tfds.features.Text() for name in _TEXTS},
                    "dx": tfds.features.ClassLabel(names=names)
                    if names
                    else tfds.features.Text(),
                    "age": tfds.features.Scalar(np.float32),
                    "label": tfds.features.ClassLabel(names=["other", "melanoma"]),
                }
            ),
            supervised_keys=("image", "label"),
            homepage=self.HOMEPAGE,
            citation=self.CITATION,
        )

    def _records(self, dl_manager: Any) -> list[Record]:
        raise NotImplementedError

    def _picture(self, path: str) -> str | np.ndarray:
        """Return what is stored: here, the file as it is, byte for byte."""
        return path

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
        return {"train": self._generate_examples(self._records(dl_manager))}

    def _generate_examples(
        self, records: Sequence[Record]
    ) -> Iterator[tuple[str, dict[str, object]]]:
        for r in records:
            yield (
                r.image_id,
                {
                    **{name: getattr(r, name) for name in (*_TEXTS, "dx", "label")},
                    "image": self._picture(r.path),
                    "age": float(r.age or "nan"),
                },
            )


class Ham10000(_RecordsBuilder):
    """HAM10000, from a manual folder or the ISIC download.

    `builder.download_and_prepare()` reads `download_config.manual_dir` (by default
    `<data_dir>/downloads/manual`) in any layout of `read_published`; where that is
    empty or absent it downloads the ISIC 2018 Task 3 files.
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = published.LAYOUTS["ham10000"].help()
    DESCRIPTION = "10,015 dermoscopy images of 7,470 pigmented skin lesions."
    DIAGNOSES = published.HAM10000
    HOMEPAGE = "https://doi.org/10.7910/DVN/DBW86T"
    CITATION = (
        "@article{tschandl2018ham10000, author={Tschandl, Philipp and "
        "Rosendahl, Cliff and Kittler, Harald}, title={The {HAM10000} dataset}, "
        "journal={Scientific Data}, volume={5}, pages={180161}, year={2018}, "
        "doi={10.1038/sdata.2018.161}}"
    )

    def _records(self, dl_manager: Any) -> list[Record]:
        try:
            folder = Path(dl_manager.manual_dir)
        except AssertionError:  # Absent or empty: nothing was put there by hand.
            folder = Path(dl_manager.download_dir) / "ham10000"
            ham10000.download_ham10000(folder)
        return published.read_published(folder)


class UserCsv(_RecordsBuilder):
    """The user's CSV, `labels.csv` in the manual folder; images become upright RGB."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"Place labels.csv and its images here; {user_csv.HELP}."
    )
    DESCRIPTION = "The user's own images of skin lesions."

    def _records(self, dl_manager: Any) -> list[Record]:
        return user_csv.read_user_csv(Path(dl_manager.manual_dir))

    def _picture(self, path: str) -> str | np.ndarray:
        return read_image(path)


@dataclass(kw_only=True)
class PhantomConfig(tfds.core.BuilderConfig):
    """Which made-up lesions are drawn."""

    num_lesions: int = 600
    seed: int = 0
    size: int = 96


class Phantom(_RecordsBuilder):
    """Made-up lesions; another `PhantomConfig` may be passed as `config`."""

    BUILDER_CONFIGS = [
        PhantomConfig(name="default", description="600 made-up lesions at 96 pixels.")
    ]
    DESCRIPTION = "MADE-UP dermoscopy lesions. " + " ".join(phantom.README.split())

    def _records(self, dl_manager: Any) -> list[Record]:
        c = self.builder_config
        folder = os.path.join(
            dl_manager.download_dir, f"phantom_{c.num_lesions}_{c.seed}_{c.size}"
        )
        phantom.write_phantom(
            folder, num_lesions=c.num_lesions, seed=c.seed, size=c.size
        )
        return phantom.read_phantom(folder)
