"""The images of a run: found, decoded once, labelled and split by lesion."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from mela_jax import parallel, run_record
from mela_jax.config import expand_user
from mela_jax.data.cache import ImageCache, open_cache
from mela_jax.data.load import load_records
from mela_jax.data.records import Record
from mela_jax.data.splits import (
    SPLITS,
    apply_splits,
    make_folds,
    make_splits,
    read_splits,
    splits_of_fold,
    write_splits,
)
from mela_jax.errors import UserError
from mela_jax.labels import LabelSpace, class_labels, make_label_space


@dataclasses.dataclass(frozen=True)
class Images:
    """The images of one working size, and which of them belong to which split.

    Attributes:
      train: uint8[N, T, T, 3], at the size from which random crops are taken.
      evaluation: uint8[N, S, S, 3], at the size the models see.
      labels: int32[N], as `classes` has them.
      rows: rows of each split, {"train", "val", "test"} -> int[...].
      classes: what the models tell apart.
    """

    train: np.ndarray
    evaluation: np.ndarray
    labels: np.ndarray
    rows: dict[str, np.ndarray]
    classes: LabelSpace = LabelSpace()

    @property
    def image_size(self) -> int:
        """Side S of the square that the models see, in pixels."""
        return self.evaluation.shape[1]

    @property
    def melanoma(self) -> np.ndarray:
        """Which images are melanomas, bool[N]."""
        return self.classes.is_melanoma(self.labels)


def find_records(config: ConfigDict) -> list[Record]:
    """Return the images of the data set, not decoded.

    Raises:
      UserError: they are not there, or not as they should be.
    """
    data = config.data
    if not data.dir:
        raise UserError(
            "config.data.dir is empty: give the data folder, --config.data.dir=PATH"
        )
    return load_records(
        name=data.name,
        directory=expand_user(data.dir),
        download=data.download,
        phantom_lesions=data.phantom_lesions,
        seed=data.split_seed,
    )


def load_images(config: ConfigDict, workdir: Path) -> tuple[list[Record], Images]:
    """Find the images, decode them once and split them by lesion."""
    records = find_records(config)
    caches = decode(config, records)
    readable = caches[config.image_size].readable
    usable = [r for r, ok in zip(records, readable, strict=True) if ok]
    run_record.claim(workdir, config, usable)
    splits = split_records(config, usable)
    if parallel.is_main_process():
        write_splits(workdir / "splits.csv", usable, splits)
    images = make_images(config, records, caches, splits)
    for split, members in images.rows.items():
        logging.info(
            "%s: %d images, %d melanomas",
            split,
            len(members),
            images.melanoma[members].sum(),
        )
    return records, images


def decode(config: ConfigDict, records: Sequence[Record]) -> dict[int, ImageCache]:
    """Return the squares of the records by size: for training, and for evaluation."""
    return {
        size: open_cache(
            records,
            size=size,
            crop=config.crop,
            directory=expand_user(config.data.cache_dir),
            on_bad_image=config.data.on_bad_image,
        )
        for size in {config.image_size, config.data.train_size or config.image_size}
    }


def make_images(
    config: ConfigDict,
    records: Sequence[Record],
    caches: Mapping[int, ImageCache],
    splits: Mapping[str, str],
) -> Images:
    """Label the images of `decode`; those not in {image_id: split} are in no split."""
    split_of = np.array([splits.get(r.image_id, "") for r in records])
    known = [r for r in records if r.image_id in splits]
    classes = make_label_space(config.labels, known, melanoma=config.melanoma)
    labels = np.zeros(len(records), np.int32)
    labels[split_of != ""] = class_labels(classes, known)
    return Images(
        train=caches[config.data.train_size or config.image_size].images,
        evaluation=caches[config.image_size].images,
        labels=labels,
        rows={split: np.flatnonzero(split_of == split) for split in SPLITS},
        classes=classes,
    )


def split_records(config: ConfigDict, records: Sequence[Record]) -> dict[str, str]:
    """Return {image_id: split} as the configuration wants it."""
    data = config.data
    if data.splits_file:
        return apply_splits(records, read_splits(expand_user(data.splits_file)))
    if data.fold >= 0:
        folds = make_folds(records, num_folds=data.num_folds, seed=data.split_seed)
        return splits_of_fold(folds, fold=data.fold, num_folds=data.num_folds)
    return make_splits(
        records,
        val_fraction=data.val_fraction,
        test_fraction=data.test_fraction,
        seed=data.split_seed,
    )
