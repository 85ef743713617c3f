"""tf.data runs a function of a number ahead: in order, bounded, and to its end."""

import gc
import threading
import weakref
from pathlib import Path

import jax
import numpy as np
import pytest

from mela_jax import parallel
from mela_jax.data.input_pipeline import stream
from mela_jax.data.views import aligned_empty
from mela_jax.errors import UserError

DTYPES = {"step": np.int64}


def one(step: int) -> dict[str, np.ndarray]:
    return {"step": np.array(step)}


def threads() -> list[str]:
    """Return the names of this process's threads, those of C++ too."""
    return [task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")]


def test_batches_come_in_order_however_long_they_take():
    """The first is fetched last: order is not left to the threads."""
    others = threading.Event()

    def fetch(step: int) -> dict[str, np.ndarray]:
        if step == 0:
            assert others.wait(60), "step 1 was never fetched beside step 0"
        else:
            others.set()
        return one(step)

    batches = stream(fetch, dtypes=DTYPES, start=0, stop=9)
    assert [int(batch["step"]) for batch in batches] == list(range(9))


def test_no_more_is_fetched_than_is_kept():
    """Memory is bounded, however slow the steps are."""
    fetched: list[int] = []

    def fetch(step: int) -> dict[str, np.ndarray]:
        fetched.append(step)
        return one(step)

    batches = stream(fetch, dtypes=DTYPES, start=0, stop=100)
    for _ in range(10):
        next(batches)
    # What is taken, two that are fetched, what waits of them, and the one prefetched.
    deadline = threading.Event()
    deadline.wait(0.5)
    assert 10 <= len(fetched) <= 15
    batches.close()
    assert sorted(fetched) == list(range(len(fetched)))


@pytest.mark.parametrize(
    "error", [UserError, KeyError, ValueError, StopIteration, OSError]
)
def test_an_error_comes_as_it_was_when_its_batch_is_next(error):
    """Of two, the one of the earlier batch, though the later was fetched first."""
    later = threading.Event()

    def fetch(step: int) -> dict[str, np.ndarray]:
        if step == 4:
            later.set()
            raise RuntimeError("the later one")
        if step == 3:
            later.wait(60)
            raise error("what happened")
        return one(step)

    batches = stream(fetch, dtypes=DTYPES, start=0, stop=9)
    assert [int(next(batches)["step"]) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(Exception) as raised:
        next(batches)
    # A generator may not raise StopIteration itself.
    found = raised.value.__cause__ if error is StopIteration else raised.value
    assert type(found) is error and "what happened" in str(found)
    assert list(batches) == []


@pytest.mark.parametrize("end", ["exhausted", "closed", "dropped", "failed"])
def test_at_its_end_neither_threads_nor_images_are_left(end):
    class Images(np.ndarray):
        """Memory whose end can be seen."""

    def run() -> weakref.ref:
        images = np.zeros((100, 8, 8, 3), np.uint8).view(Images)

        def fetch(step: int) -> dict[str, np.ndarray]:
            if step == 5 and end == "failed":
                raise ValueError("five")
            return {"step": np.asarray(images[step, 0, 0, 0]).astype(np.int64)}

        batches = stream(fetch, dtypes=DTYPES, start=0, stop=100)
        next(batches)
        if end == "exhausted":
            assert len(list(batches)) == 99
        elif end == "closed":
            batches.close()
        elif end == "failed":
            with pytest.raises(ValueError, match="five"):
                list(batches)
        return weakref.ref(images)

    run()  # what TensorFlow keeps for good, it has after this
    gc.collect()
    before = sorted(threads())
    for _ in range(3):
        images = run()
        gc.collect()
        assert images() is None
    assert sorted(threads()) == before


def test_aligned_buffers_are_passed_on_uncopied_to_the_devices():
    made: dict[int, int] = {}

    def fetch(step: int) -> dict[str, np.ndarray]:
        image = aligned_empty((16, 8, 8, 3), np.float32)
        image[:] = step
        made[step] = image.ctypes.data
        return {"image": image}

    mesh = parallel.make_mesh()
    for step, batch in enumerate(
        stream(fetch, dtypes={"image": np.float32}, start=0, stop=5)
    ):
        assert batch["image"].ctypes.data == made[step]
        on_devices = parallel.shard_batch(mesh, batch)["image"]
        shards = sorted(on_devices.addressable_shards, key=lambda s: s.index[0].start)
        assert len(shards) == jax.device_count() == 8
        for number, shard in enumerate(shards):
            place = shard.data.unsafe_buffer_pointer()
            assert place == made[step] + number * 2 * 8 * 8 * 3 * 4
            assert (np.asarray(shard.data) == step).all()


def test_nothing_is_made_of_no_steps():
    assert list(stream(one, dtypes=DTYPES, start=4, stop=4)) == []
