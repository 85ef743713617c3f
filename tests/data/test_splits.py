"""Splits share no lesion, keep the prevalence, and are the same everywhere."""

import collections
import dataclasses
import hashlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mela_jax.data.published import read_published
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

# Of the split of all of HAM10000 with seed 0: it must never change.
GOLDEN = "e5c8b3780e9a9162534356260301a7ff8d725400d532cf0e193fc825aba3e515"


def made_up(sizes_positive, sizes_negative):
    """Return records of lesions with the given numbers of images."""
    records = []
    for label, sizes in ((1, sizes_positive), (0, sizes_negative)):
        for number, size in enumerate(sizes):
            for image in range(size):
                lesion = f"{label}_{number}"
                records.append(Record(f"{lesion}_{image}", lesion, label, "x.jpg"))
    return records


@pytest.fixture(scope="module")
def ham(ham10000_small):
    """Return the records of the real data set."""
    return read_published(ham10000_small)


def test_real_metadata(ham, tmp_path):
    """No lesion in two splits; proportions hold for images and for melanomas."""
    splits = make_splits(ham, val_fraction=0.15, test_fraction=0.15, seed=0)
    lesions = collections.defaultdict(set)
    for r in ham:
        lesions[r.lesion_id].add(splits[r.image_id])
    assert len(lesions) == 7470
    assert all(len(names) == 1 for names in lesions.values())
    for name, share in (("train", 0.70), ("val", 0.15), ("test", 0.15)):
        part = [r for r in ham if splits[r.image_id] == name]
        assert len(part) / len(ham) == pytest.approx(share, abs=0.01)
        assert sum(r.label for r in part) / 1113 == pytest.approx(share, abs=0.02)
    write_splits(tmp_path / "splits.csv", ham, splits)
    content = (tmp_path / "splits.csv").read_bytes()
    assert hashlib.sha256(content).hexdigest() == GOLDEN
    assert content.startswith(b"image_id,lesion_id,label,split\n")
    table = read_splits(tmp_path / "splits.csv")
    assert table == {r.image_id: (r.lesion_id, splits[r.image_id]) for r in ham}


def test_order_of_records_does_not_matter_and_the_seed_does(ham):
    """A shuffled list of records gives the same split, another seed another."""
    shuffled = random.Random(0).sample(ham, len(ham))
    fractions = {"val_fraction": 0.15, "test_fraction": 0.15}
    assert make_splits(ham, **fractions, seed=3) == make_splits(
        shuffled, **fractions, seed=3
    )
    assert make_splits(ham, **fractions, seed=3) != make_splits(
        ham, **fractions, seed=4
    )


def test_real_folds(ham):
    """Five folds of equal size and prevalence share no lesion."""
    folds = make_folds(ham, num_folds=5, seed=0)
    lesions = collections.defaultdict(set)
    for r in ham:
        lesions[r.lesion_id].add(folds[r.image_id])
    assert all(len(numbers) == 1 for numbers in lesions.values())
    images = collections.Counter(folds.values())
    melanomas = collections.Counter(folds[r.image_id] for r in ham if r.label)
    for fold in range(5):
        assert images[fold] / len(ham) == pytest.approx(0.2, abs=0.01)
        assert melanomas[fold] / 1113 == pytest.approx(0.2, abs=0.02)
    splits = splits_of_fold(folds, fold=4, num_folds=5)
    assert {folds[i] for i, name in splits.items() if name == "test"} == {4}
    assert {folds[i] for i, name in splits.items() if name == "val"} == {0}
    with pytest.raises(UserError, match=r"fold is 5"):
        splits_of_fold(folds, fold=5, num_folds=5)


def test_split_is_carried_over_to_another_copy(ham):
    """A lesion of a copy with other and fewer images lands where the first has it."""
    other = [dataclasses.replace(r, image_id=f"copy {r.image_id}") for r in ham[::2]]
    splits = make_splits(ham, val_fraction=0.15, test_fraction=0.15, seed=0)
    table = {r.image_id: (r.lesion_id, splits[r.image_id]) for r in ham}
    carried = apply_splits(other, table)
    by_lesion = {r.lesion_id: splits[r.image_id] for r in ham}
    assert carried == {r.image_id: by_lesion[r.lesion_id] for r in other}


sizes = st.lists(st.integers(1, 5), min_size=3, max_size=30)


@given(sizes, sizes, st.integers(0, 2**31))
def test_small_sets(positive, negative, seed):
    """Whatever the lesions: whole, in one split each, both classes in every split."""
    records = made_up(positive, negative)
    splits = make_splits(records, val_fraction=0.15, test_fraction=0.15, seed=seed)
    assert set(splits) == {r.image_id for r in records}
    where = collections.defaultdict(set)
    for r in records:
        where[r.lesion_id].add(splits[r.image_id])
    assert all(len(names) == 1 for names in where.values())
    for name in SPLITS:
        assert {r.label for r in records if splits[r.image_id] == name} == {0, 1}
    # Beyond what the guarantee of one lesion costs, a cut is off by half a lesion.
    for label, lesions in ((1, positive), (0, negative)):
        size = sum(r.label == label and splits[r.image_id] == "test" for r in records)
        assert size <= max(0.15 * sum(lesions) + max(lesions) / 2, max(lesions))


@given(st.lists(st.integers(1, 4), min_size=5, max_size=20), st.integers(3, 5))
def test_small_folds(lesions, num_folds):
    """Every fold has both classes."""
    records = made_up(lesions, lesions)
    folds = make_folds(records, num_folds=num_folds, seed=1)
    for fold in range(num_folds):
        assert {r.label for r in records if folds[r.image_id] == fold} == {0, 1}


def test_too_few_positives():
    """A split without positives is refused with their number."""
    records = made_up([5, 5], [1] * 50)
    with pytest.raises(UserError, match=r"2 melanomas .* too few for 3 splits"):
        make_splits(records, val_fraction=0.15, test_fraction=0.15, seed=0)
    with pytest.raises(UserError, match=r"0 other lesions"):
        make_splits(made_up([1] * 9, []), val_fraction=0.1, test_fraction=0.1, seed=0)
    with pytest.raises(UserError, match="too few for 5 folds"):
        make_folds(records, num_folds=5, seed=0)
    with pytest.raises(UserError, match="leave something for training"):
        make_splits(
            made_up([1] * 9, [1] * 9), val_fraction=0.5, test_fraction=0.5, seed=0
        )


def test_mixed_group_counts_as_positive():
    """A patient with a melanoma and a mole is a positive group, and stays whole."""
    records = [*made_up([1] * 9, [1] * 9), Record("m", "1_0", 0, "x.jpg")]
    splits = make_splits(records, val_fraction=0.2, test_fraction=0.2, seed=0)
    assert splits["m"] == splits["1_0_0"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image_id,lesion_id,split\na,b,val\n", "no column label"),
        ("image_id,lesion_id,label,split\na,b,1,dev\n", "line 2: split 'dev'"),
        ("image_id,lesion_id,label,split\na,b,1,val\na,b,1,val\n", "appears twice"),
        ("image_id,lesion_id,label,split\na,b,1,val\nc,b,1,test\n", "in one only"),
    ],
)
def test_malformed_splits_file(tmp_path, text, message):
    """What is wrong with a splits.csv is said."""
    path = tmp_path / "splits.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_splits(path)
    with pytest.raises(UserError, match="absent.csv: cannot be read"):
        read_splits(tmp_path / "absent.csv")


def test_carrying_over_needs_every_lesion():
    """A lesion that the table does not have is named; so is a class that is missing."""
    records = made_up([1] * 3, [1] * 3)
    splits = make_splits(records, val_fraction=0.2, test_fraction=0.2, seed=0)
    table = {r.image_id: (r.lesion_id, splits[r.image_id]) for r in records}
    stranger = Record("s", "stranger", 0, "x.jpg")
    with pytest.raises(UserError, match="1 lesions .* stranger"):
        apply_splits([*records, stranger], table)
    with pytest.raises(UserError, match="holds no melanoma"):
        apply_splits([r for r in records if r.label == 0], table)
