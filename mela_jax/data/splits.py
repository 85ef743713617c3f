"""Train, validation and test sets that share no lesion and have the same prevalence.

Within each class, lesions are put in the order of `sha256(f"{seed}:{lesion_id}")` and
cut where the cumulative count of images reaches each fraction. Neither NumPy's random
streams nor the order of the records has a say, so a seed means one split everywhere.
"""

import collections
import hashlib
import itertools
import math
import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from mela_jax.data.records import Record
from mela_jax.errors import UserError
from mela_jax.tables import read_table, write_table

SPLITS = ("train", "val", "test")
COLUMNS = ("image_id", "lesion_id", "label", "split")


def make_splits(
    records: Sequence[Record], *, val_fraction: float, test_fraction: float, seed: int
) -> dict[str, str]:
    """Assign every image to "train", "val" or "test".

    A lesion counts as positive when any of its images does. Each split gets at least
    one lesion of each class.

    Returns:
      Image id -> split.

    Raises:
      UserError: the fractions leave nothing for training, or a split would lack
        positives or negatives.
    """
    if not (
        val_fraction > 0 and test_fraction > 0 and val_fraction + test_fraction < 1
    ):
        raise UserError(
            f"val_fraction {val_fraction} and test_fraction {test_fraction} must be "
            "above 0 and leave something for training"
        )
    fractions = (test_fraction, val_fraction, 1 - val_fraction - test_fraction)
    parts = _assign(records, fractions=fractions, seed=seed, what="splits")
    names = ("test", "val", "train")
    return {r.image_id: names[parts[r.lesion_id]] for r in records}


def make_folds(
    records: Sequence[Record], *, num_folds: int, seed: int
) -> dict[str, int]:
    """Assign every image to one of `num_folds` folds of equal size and prevalence.

    Returns:
      Image id -> fold in [0, num_folds).

    Raises:
      UserError: fewer than 3 folds, or fewer lesions of a class than folds.
    """
    if num_folds < 3:
        raise UserError(f"num_folds is {num_folds}; it must be 3 or more")
    parts = _assign(
        records, fractions=[1 / num_folds] * num_folds, seed=seed, what="folds"
    )
    return {r.image_id: parts[r.lesion_id] for r in records}


def splits_of_fold(
    folds: Mapping[str, int], *, fold: int, num_folds: int
) -> dict[str, str]:
    """Make splits of `make_folds`: one is the test set, the next validation.

    Returns:
      Image id -> split.

    Raises:
      UserError: there is no such fold.
    """
    if not 0 <= fold < num_folds:
        raise UserError(f"fold is {fold}; it must be in 0..{num_folds - 1}")
    roles = {fold: "test", (fold + 1) % num_folds: "val"}
    return {image_id: roles.get(part, "train") for image_id, part in folds.items()}


def write_splits(
    path: str | os.PathLike[str],
    records: Iterable[Record],
    splits: Mapping[str, str],
) -> None:
    """Write `splits.csv`: image_id, lesion_id, label, split, sorted by image_id.

    The file appears whole or not at all.

    Raises:
      UserError: the disk is full or the folder cannot be written to.
    """
    rows = (
        (r.image_id, r.lesion_id, r.label, splits[r.image_id])
        for r in sorted(records, key=lambda r: r.image_id)
    )
    write_table(path, COLUMNS, rows)


def read_splits(path: str | os.PathLike[str]) -> dict[str, tuple[str, str]]:
    """Read a `splits.csv`.

    Returns:
      Image id -> (lesion id, split).

    Raises:
      UserError: the file is absent or malformed, or has a lesion in two splits.
    """
    splits: dict[str, tuple[str, str]] = {}
    for where, row in read_table(path).select(COLUMNS):
        image_id, split = row["image_id"], row["split"]
        if split not in SPLITS:
            raise UserError(f"{where}: split {split!r} is none of {', '.join(SPLITS)}")
        if image_id in splits:
            raise UserError(f"{where}: {image_id!r} appears twice")
        splits[image_id] = (row["lesion_id"], split)
    _split_of_lesion(splits)
    return splits


def apply_splits(
    records: Sequence[Record], table: Mapping[str, tuple[str, str]]
) -> dict[str, str]:
    """Carry a split over to another copy of the data, by lesion.

    Returns:
      Image id -> split, for the images in `records`; `table` is of `read_splits`.

    Raises:
      UserError: a lesion is not in the table, or is there in two splits, or a split of
        the copy lacks positives or negatives.
    """
    split_of = _split_of_lesion(table)
    absent = sorted({r.lesion_id for r in records} - set(split_of))
    if absent:
        raise UserError(
            f"{len(absent)} lesions are not in the split that was to be carried over, "
            f"among them {', '.join(absent[:5])}; take the splits.csv of a run on the "
            "whole data set"
        )
    splits = {r.image_id: split_of[r.lesion_id] for r in records}
    present = {(splits[r.image_id], r.label) for r in records}
    for name in SPLITS:
        for label, word in ((1, "melanoma"), (0, "other lesion")):
            if (name, label) not in present:
                raise UserError(
                    f"the split {name!r} that was carried over holds no {word} here"
                )
    return splits


def _split_of_lesion(table: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    split_of: dict[str, str] = {}
    for lesion, split in table.values():
        if split_of.setdefault(lesion, split) != split:
            raise UserError(
                f"lesion {lesion!r} is in the splits {split_of[lesion]!r} and "
                f"{split!r}; a lesion may be in one only: make the splits anew"
            )
    return split_of


def _assign(
    records: Sequence[Record], *, fractions: Sequence[float], seed: int, what: str
) -> dict[str, int]:
    """Return lesion id -> index of the fraction it falls into."""
    counts = collections.Counter(r.lesion_id for r in records)
    positive = {r.lesion_id for r in records if r.label == 1}
    parts: dict[str, int] = {}
    for word, lesions in (
        ("melanomas", positive),
        ("other lesions", set(counts) - positive),
    ):
        if len(lesions) < len(fractions):
            raise UserError(
                f"{len(lesions)} {word} (counted by lesion, not image) are too few for "
                f"{len(fractions)} {what}, each of which needs one; add images"
            )
        ordered = sorted(
            lesions, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest()
        )
        sizes = [counts[name] for name in ordered]
        parts |= dict(zip(ordered, _cut(sizes, fractions), strict=True))
    return parts


def _cut(sizes: Sequence[int], fractions: Sequence[float]) -> list[int]:
    """Cut a row of lesions into consecutive parts, none of them empty.

    A lesion falls into the part that holds its midpoint on the line of images.
    """
    total = sum(sizes)
    ends = [math.fsum(fractions[: i + 1]) * total for i in range(len(fractions) - 1)]
    after = itertools.accumulate(sizes)
    middles = [end - size / 2 for end, size in zip(after, sizes, strict=True)]
    bounds = [0]
    for i, end in enumerate(ends):
        bound = sum(middle < end for middle in middles)
        still_to_come = len(fractions) - 1 - i
        bounds.append(min(max(bound, bounds[-1] + 1), len(sizes) - still_to_come))
    bounds.append(len(sizes))
    return np.repeat(np.arange(len(fractions)), np.diff(bounds)).tolist()
