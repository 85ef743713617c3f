"""Batches follow from the seed and their number, on one process or two."""

import hashlib
import itertools
import subprocess
import sys

import numpy as np
import pytest

from mela_jax.data import views_on_device
from mela_jax.data.input_pipeline import (
    make_eval_batches,
    make_train_batches,
    make_view_batches,
)
from mela_jax.data.views import Views, augment_batch, draw_views
from mela_jax.errors import UserError
from tests.job import REPOSITORY
from tests.views import IMAGES, LABELS, MILD, OFF, OPTIONS, ROWS

ON_DEVICE = Views(MILD, on_device=True)
FOUR = {"views": Views(MILD, per_image=4), "batch_size": 16}
# Each key of a list of batches, its bytes one after the other, as SHA-256; and what the
# pipeline of plain threads gave that came before tf.data. On x86-64: another C library,
# BLAS or OpenCV may round another last bit of the last three.
INDEX, LABEL = "494f2f887ff9f1ea", "44b9c3bd1488f169"
SWEEP_INDEX, SWEEP_MASK = "fd3736bcbc230efe", "5250a4a322d56cf8"
BEFORE = {
    "training": {
        "index": INDEX,
        "label": LABEL,
        "view": "e2e4f0d5644ca3c6",
        "image": "98fd11f51bdb7652",
    },
    "training, views on the device": {
        "index": INDEX,
        "label": LABEL,
        "view": "e2e4f0d5644ca3c6",
        "image": "575882de4bad6416",
        "transform": "b6e8165e664d162d",
        "colour": "39e82755f29b6428",
    },
    "training, two recurring views": {
        "index": INDEX,
        "label": LABEL,
        "view": "4144d56064b884da",
        "image": "1855c1f5ed71467f",
    },
    "view 2 of every row": {
        "index": SWEEP_INDEX,
        "mask": SWEEP_MASK,
        "view": "8c28b81a53438b26",
        "image": "d7d851b390f1e087",
    },
    "evaluation": {
        "index": SWEEP_INDEX,
        "mask": SWEEP_MASK,
        "label": "72542b85fe32f7a6",
        "image": "8010246ed3083243",
    },
}


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
            view=step // 4,
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
@pytest.mark.parametrize(
    "options",
    [{}, {"views": ON_DEVICE}, FOUR, {"row_weights": np.arange(19)}],
    ids=["on the host", "on the device", "four views", "weighted"],
)
def test_restart(start, options):
    """From any step on, the batches are those of an uninterrupted run."""
    assert_same(train(start_step=start, **options), train(**options)[start:])


def digests(batches):
    """Return the first 16 digits of SHA-256 of each key of all batches."""
    found = {}
    for batch in batches:
        for key, value in batch.items():
            found.setdefault(key, hashlib.sha256()).update(value.tobytes())
    return {key: digest.hexdigest()[:16] for key, digest in found.items()}


def test_batches_are_bit_for_bit_those_of_the_threads_before_tf_data():
    assert {
        "training": digests(train(num_steps=24)),
        "training, views on the device": digests(train(num_steps=24, views=ON_DEVICE)),
        "training, two recurring views": digests(
            train(num_steps=24, views=Views(MILD, recurring=2))
        ),
        "view 2 of every row": digests(
            make_view_batches(IMAGES, ROWS, view=2, **OPTIONS)
        ),
        "evaluation": digests(
            make_eval_batches(IMAGES, LABELS, ROWS, image_size=12, batch_size=4)
        ),
    } == BEFORE


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize(
    "options",
    [{}, {"views": ON_DEVICE}, FOUR, {"row_weights": np.arange(19)}],
    ids=["on the host", "on the device", "four views", "weighted"],
)
def test_processes_share_a_batch(count, options):
    """The processes' parts, one after the other, are the whole batch."""
    parts = [
        train(process_index=p, process_count=count, **options) for p in range(count)
    ]
    joined = [
        {key: np.concatenate([part[key] for part in step]) for key in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert_same(joined, train(**options))


@pytest.mark.parametrize("recurring", [0, 8])
def test_several_views_of_an_image_lie_one_after_the_other(recurring):
    """Four images a step; epoch e has views 4 e to 4 e + 3, each the right pixels."""
    views = Views(MILD, per_image=4, recurring=recurring)
    batches = train(views=views, batch_size=16, num_steps=14)
    plain = train(num_steps=14)
    for step, (batch, single) in enumerate(zip(batches, plain, strict=True)):
        assert batch["image"].shape == (16, 8, 8, 3)
        # The same images as with one view each.
        np.testing.assert_array_equal(batch["label"], single["label"])
        np.testing.assert_array_equal(batch["index"], np.repeat(single["index"], 4))
        first = 4 * (step // 4)
        numbers = [(first + v) % (recurring or 99) for v in range(4)]
        assert batch["view"].tolist() == numbers * 4
        transforms, colours = draw_views(
            seed=5,
            view=batch["view"],
            indices=batch["index"],
            settings=MILD,
            size_in=12,
            size_out=8,
            per_image=4,
        )
        expected = augment_batch(IMAGES[single["index"]], transforms, colours, size=8)
        np.testing.assert_array_equal(batch["image"], expected)


def test_row_r_is_upright_where_it_starts_an_image_and_a_mark_turns_from_there():
    """A white pixel in the top left corner goes round counter-clockwise."""
    marked = np.zeros((23, 8, 8, 3), np.uint8)
    marked[:, 0, 0] = 255
    (batch,) = make_train_batches(
        marked,
        LABELS,
        ROWS,
        **OPTIONS | FOUR | {"views": Views(OFF, per_image=4)},
        start_step=0,
        num_steps=1,
    )
    corners = batch["image"][:, [0, -1, -1, 0], [0, 0, -1, -1], 0]
    np.testing.assert_allclose(corners, np.tile(255 * np.eye(4), (4, 1)), atol=0.1)


def test_one_view_in_a_pass_is_the_one_of_the_training_batch():
    """Also where it is turned: what a teacher's kept outputs belong to."""
    trained = by_row_and_view(train(**FOUR))
    for view in (0, 1, 6):
        for batch in make_view_batches(
            IMAGES, ROWS, view=view, **OPTIONS | {"views": FOUR["views"]}
        ):
            for row, image in zip(batch["index"], batch["image"], strict=True):
                if (row, view) in trained:
                    np.testing.assert_array_equal(image, trained[row, view])


@pytest.mark.parametrize("per_image", [1, 4])
def test_views_on_the_device_are_those_of_the_host(per_image):
    """The device gets each picture once, with the draws of all its views."""
    host = train(views=Views(MILD, per_image=per_image), batch_size=16)
    views = Views(MILD, per_image=per_image, on_device=True)
    for ours, theirs in zip(train(views=views, batch_size=16), host, strict=True):
        assert ours["image"].dtype == np.uint8
        np.testing.assert_array_equal(
            ours["image"], IMAGES[theirs["index"][::per_image]]
        )
        for key in ("label", "index", "view"):
            np.testing.assert_array_equal(ours[key], theirs[key], strict=True)
        rendered = views_on_device.augment_batch(
            ours["image"], ours["transform"], ours["colour"], size=8
        )
        np.testing.assert_allclose(rendered, theirs["image"], atol=0.05)


def test_weighted_rows_are_shown_in_other_views_each_time():
    """A row without weight never comes; a heavy one comes in many views of its own."""
    weights = np.where(ROWS == 5, 20.0, 1.0)
    weights[7] = 0.0
    batches = train(row_weights=weights, num_steps=16)
    shown = [
        (int(row), int(view))
        for batch in batches
        for row, view in zip(batch["index"], batch["view"], strict=True)
    ]
    assert len(set(shown)) == len(shown)
    assert ROWS[7] not in dict(shown)
    assert sum(row == 5 for row, _ in shown) > 16


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
    fresh, fixed = (
        train(num_steps=24),
        train(num_steps=24, views=Views(MILD, recurring=2)),
    )
    for step, (ours, theirs) in enumerate(zip(fixed, fresh, strict=True)):
        np.testing.assert_array_equal(ours["index"], theirs["index"])
        assert theirs["view"].tolist() == [step // 4] * 4
        assert ours["view"].tolist() == [step // 4 % 2] * 4
    assert_same(fixed[:8], fresh[:8])
    assert_same(
        train(num_steps=24, views=Views(MILD, recurring=2), start_step=13), fixed[13:]
    )
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
    with pytest.raises(UserError, match="10 does not divide into 4 views"):
        train(**FOUR | {"batch_size": 10})
    with pytest.raises(UserError, match="does not divide among 3 processes"):
        train(process_count=3, **FOUR)
    with pytest.raises(UserError, match="12 pixels cannot be evaluated at 8"):
        make_eval_batches(IMAGES, LABELS, ROWS, image_size=8, batch_size=4)
    with pytest.raises(UserError, match="no images to evaluate"):
        make_eval_batches(IMAGES, LABELS, ROWS[:0], image_size=12, batch_size=4)
    with pytest.raises(UserError, match="no images to evaluate"):
        make_view_batches(IMAGES, ROWS[:0], view=0, **OPTIONS)
    with pytest.raises(UserError, match="does not divide among 3 processes"):
        make_view_batches(IMAGES, ROWS, view=0, process_count=3, **OPTIONS)


def test_the_data_layer_and_the_job_are_imported_without_tensorflow():
    code = (
        "import sys, mela_jax.data.input_pipeline, mela_jax.progress\n"
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)
