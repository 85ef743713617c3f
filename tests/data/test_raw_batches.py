"""Batches before rendering are what the host's pipeline renders."""

import threading
from functools import partial

import numpy as np
import pytest
from mela_jax.data.augment import augment_batch
from mela_jax.data.raw_batches import fetch_ahead, make_fetch

from mela_jax.data import raw_batches
from mela_jax.data.input_pipeline import make_train_batches, make_view_batches
from tests.views import IMAGES, LABELS, OPTIONS, ROWS


def raw(**changes):
    """Return ten training batches that are not rendered."""
    steps = {"start_step": 0, "num_steps": 10, "render": False}
    return list(
        make_train_batches(IMAGES, LABELS, ROWS, **OPTIONS | steps | changes),
    )


def one_view(**changes):
    """Return the batches of view 2 of every row, not rendered."""
    options = OPTIONS | {"view": 2, "render": False} | changes
    return list(make_view_batches(IMAGES, ROWS, **options))


@pytest.mark.parametrize(
    ("batches", "count", "keys"),
    [
        (raw, 10, ("label", "index", "view")),
        (partial(raw, num_views=2), 10, ("label", "index", "view")),
        (one_view, 5, ("index", "view", "mask")),
    ],
    ids=["fresh views", "fixed views", "one view of every row"],
)
def test_rendered_they_are_the_batches_of_the_host(batches, count, keys):
    """The same rows in the same order, and the parameters of the same views."""
    rendered = batches(render=True)
    assert len(batches()) == len(rendered) == count
    for ours, theirs in zip(batches(), rendered, strict=True):
        assert ours["image"].dtype == np.uint8
        assert theirs.keys() == {"image", *keys}
        for key in keys:
            np.testing.assert_array_equal(ours[key], theirs[key], strict=True)
        np.testing.assert_array_equal(ours["image"], IMAGES[ours["index"]])
        view = augment_batch(ours["image"], ours["transform"], ours["colour"], size=8)
        np.testing.assert_allclose(view, theirs["image"], atol=1e-3)


@pytest.mark.parametrize("start", [1, 4, 10])
def test_restart(start):
    """From any step on, the batches are those of an uninterrupted run."""
    again, whole = raw(start_step=start), raw()[start:]
    assert len(again) == len(whole)
    for batch, other in zip(again, whole, strict=True):
        assert batch.keys() == other.keys()
        for key in batch:
            np.testing.assert_array_equal(batch[key], other[key], strict=True)


def test_processes_share_a_batch():
    parts = [raw(process_index=p, process_count=2) for p in range(2)]
    for step, whole in enumerate(raw()):
        for key in whole:
            joined = np.concatenate([part[step][key] for part in parts])
            np.testing.assert_array_equal(joined, whole[key], strict=True)


def test_fetched_ahead_by_threads_they_come_in_order():
    """The first step is fetched last: order is not left to the threads."""
    others = threading.Event()

    def fetch(step: int) -> dict[str, np.ndarray]:
        if step == 0:
            assert others.wait(60), "step 1 was never fetched beside step 0"
        else:
            others.set()
        return {"step": np.array(step)}

    batches = fetch_ahead(fetch, start=0, stop=9)
    assert [int(batch["step"]) for batch in batches] == list(range(9))


def test_no_more_is_fetched_than_is_kept():
    """Memory is bounded, however slow the steps are."""
    fetched: list[int] = []

    def fetch(step: int) -> dict[str, np.ndarray]:
        fetched.append(step)
        return {}

    batches = fetch_ahead(fetch, start=0, stop=100)
    next(batches)
    batches.close()
    assert sorted(fetched) == list(range(raw_batches._AHEAD + 1))


def test_an_error_while_fetching_is_not_swallowed():
    fetch = make_fetch(IMAGES, LABELS, np.array([0, 1, 2, 99]), **OPTIONS)
    with pytest.raises(IndexError):
        list(fetch_ahead(fetch, start=0, stop=1))
