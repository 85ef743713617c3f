"""Batches follow from the seed and their number, on one process or two."""

import itertools

import numpy as np
import pytest
from mela_jax.data.augment import augment_batch, draw_views

from mela_jax.data import raw_batches
from mela_jax.data.input_pipeline import (
    make_eval_batches,
    make_train_batches,
    make_view_batches,
)
from mela_jax.errors import UserError
from tests.views import IMAGES, LABELS, MILD, OPTIONS, ROWS


def train(**changes):
    """Return the training batches as a list."""
    steps = {"start_step": 0, "num_steps": 10}
    return list(make_train_batches(IMAGES, LABELS, ROWS, **OPTIONS | steps | changes))


def assert_same(batches, expected):
    """Compare lists of batches, bit for bit."""
    assert len(batches) == len(expected)
    for batch, other in zip(batches, expected, strict=True):
        assert set(batch) == set(other)
        for key in batch:
            np.testing.assert_array_equal(batch[key], other[key], strict=True)


def test_batches_hold_what_they_say():
    """Shapes, types, labels, and the augmented pixels of the very rows."""
    batches = train()
    assert len(batches) == 10
    for step, batch in enumerate(batches):
        assert batch["image"].shape == (4, 8, 8, 3)
        assert batch["image"].dtype == np.float32
        assert batch["label"].dtype == batch["index"].dtype == np.int32
        np.testing.assert_array_equal(batch["label"], LABELS[batch["index"]])
        assert batch["view"].tolist() == [step // 4] * 4
        transforms, colours = draw_views(
            seed=5,
            epoch=step // 4,
            indices=batch["index"],
            settings=MILD,
            size_in=12,
            size_out=8,
        )
        expected = augment_batch(IMAGES[batch["index"]], transforms, colours, size=8)
        np.testing.assert_allclose(batch["image"], expected, atol=1e-3)


def test_an_epoch_is_a_permutation():
    """No image twice in an epoch, none from outside; epochs and seeds differ."""
    index = [batch["index"] for batch in train()]
    first, second = np.concatenate(index[:4]), np.concatenate(index[4:8])
    for epoch in (first, second):
        assert len(set(epoch)) == 16 and set(epoch) <= set(ROWS)
    assert first.tolist() != second.tolist()
    other = np.concatenate([batch["index"] for batch in train(seed=6)[:4]])
    assert first.tolist() != other.tolist()


@pytest.mark.parametrize("start", [1, 4, 7, 10])
def test_restart(start):
    """From any step on, the batches are those of an uninterrupted run."""
    assert_same(train(start_step=start), train()[start:])


def test_threads(monkeypatch):
    """The number of threads has no say."""
    expected = train()
    for threads in (1, 8):
        monkeypatch.setattr(raw_batches, "_THREADS", threads)
        assert_same(train(), expected)


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_a_batch(count):
    """The processes' parts, one after the other, are the whole batch."""
    parts = [train(process_index=p, process_count=count) for p in range(count)]
    joined = [
        {key: np.concatenate([part[key] for part in step]) for key in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert_same(joined, train())


def by_row_and_view(batches):
    """Return {(row, view): pixels} of training batches."""
    seen = {}
    for batch in batches:
        for row, view, image in zip(
            batch["index"], batch["view"], batch["image"], strict=True
        ):
            np.testing.assert_array_equal(seen.setdefault((row, view), image), image)
    return seen


def test_fixed_views_recur_in_another_order():
    """Epoch e has view e modulo their number; the order is that of fresh views."""
    fresh, fixed = train(num_steps=24), train(num_steps=24, num_views=2)
    for step, (ours, theirs) in enumerate(zip(fixed, fresh, strict=True)):
        np.testing.assert_array_equal(ours["index"], theirs["index"])
        assert theirs["view"].tolist() == [step // 4] * 4
        assert ours["view"].tolist() == [step // 4 % 2] * 4
    assert_same(fixed[:8], fresh[:8])
    assert_same(train(num_steps=24, num_views=2, start_step=13), fixed[13:])
    # A row met twice in a view showed the same pixels: by_row_and_view has checked.
    seen = by_row_and_view(fixed)
    assert len(seen) <= 2 * len(ROWS)


@pytest.mark.parametrize(("batch_size", "count"), [(4, 1), (6, 2), (32, 1)])
@pytest.mark.parametrize("view", [0, 2])
def test_a_view_of_every_row_is_the_one_that_training_sees(view, batch_size, count):
    """Every row once, in order, with the pixels of the epoch of that number."""
    parts = [
        list(
            make_view_batches(
                IMAGES,
                ROWS,
                view=view,
                process_index=p,
                process_count=count,
                **OPTIONS | {"batch_size": batch_size},
            )
        )
        for p in range(count)
    ]
    steps = list(itertools.chain.from_iterable(zip(*parts, strict=True)))
    assert {len(step["mask"]) for step in steps} == {batch_size // count}
    whole = {key: np.concatenate([step[key] for step in steps]) for key in steps[0]}
    real = whole["mask"] == 1
    np.testing.assert_array_equal(whole["index"][real], ROWS)
    np.testing.assert_array_equal(whole["index"][~real], ROWS[0])
    assert set(whole["view"]) == {view}
    trained = by_row_and_view(train(num_steps=12))
    compared = 0
    for row, image in zip(ROWS, whole["image"][real], strict=True):
        if (row, view) in trained:
            np.testing.assert_array_equal(image, trained[row, view])
            compared += 1
    assert compared == 16  # three rows waited in that epoch


@pytest.mark.parametrize(("batch_size", "count"), [(4, 1), (4, 2), (19, 1), (32, 2)])
def test_evaluation_sees_every_image_once(batch_size, count):
    """In order, unaugmented; the filling is masked."""
    parts = [
        list(
            make_eval_batches(
                IMAGES,
                LABELS,
                ROWS,
                image_size=12,
                batch_size=batch_size,
                process_index=p,
                process_count=count,
            )
        )
        for p in range(count)
    ]
    steps = list(itertools.chain.from_iterable(zip(*parts, strict=True)))
    whole = {key: np.concatenate([step[key] for step in steps]) for key in steps[0]}
    assert {len(step["mask"]) for step in steps} == {batch_size // count}
    assert len(whole["mask"]) == -(-19 // batch_size) * batch_size
    real = whole["mask"] == 1
    np.testing.assert_array_equal(whole["index"][real], ROWS)
    np.testing.assert_array_equal(whole["mask"][~real], 0)
    np.testing.assert_array_equal(whole["index"][~real], ROWS[0])
    np.testing.assert_array_equal(whole["image"], IMAGES[whole["index"]])
    np.testing.assert_array_equal(whole["label"], LABELS[whole["index"]])
    assert whole["image"].dtype == whole["mask"].dtype == np.float32


def test_maps_and_memory_are_alike(tmp_path):
    """Images mapped from the disk give the same batches."""
    np.save(tmp_path / "images.npy", IMAGES)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    batches = make_train_batches(
        mapped, LABELS, ROWS, start_step=0, num_steps=10, **OPTIONS
    )
    assert_same(list(batches), train())


def test_refusals():
    """Too few images, an odd share, a wrong size: one line each."""
    with pytest.raises(UserError, match="19 training images are too few"):
        train(batch_size=20)
    with pytest.raises(UserError, match="does not divide among 3 processes"):
        train(process_count=3)
    with pytest.raises(UserError, match="12 pixels cannot be evaluated at 8"):
        make_eval_batches(IMAGES, LABELS, ROWS, image_size=8, batch_size=4)
    with pytest.raises(UserError, match="no images to evaluate"):
        make_eval_batches(IMAGES, LABELS, ROWS[:0], image_size=12, batch_size=4)
    with pytest.raises(UserError, match="no images to evaluate"):
        make_view_batches(IMAGES, ROWS[:0], view=0, **OPTIONS)
    with pytest.raises(UserError, match="does not divide among 3 processes"):
        make_view_batches(IMAGES, ROWS, view=0, process_count=3, **OPTIONS)
