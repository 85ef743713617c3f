"""Flags, and timing in turn."""

import argparse

import numpy as np
import pytest

from benchmarks import harness
from mela_jax.data.input_pipeline import make_train_batches, make_train_fetch
from tests.views import IMAGES, LABELS, OPTIONS, ROWS


def test_names_are_read_in_order_and_a_stranger_is_refused():
    read = harness.names_of(("a", "b", "c"))
    assert read("c,a") == ["c", "a"]
    for text in ("a,d", "", "a,"):
        with pytest.raises(argparse.ArgumentTypeError, match="none of a, b, c"):
            read(text)


def test_only_whole_numbers_above_0_are_sizes():
    assert harness.positives("8,16") == [8, 16]
    for text in ("0", "-1", "1.5", "8,", "²"):
        with pytest.raises(argparse.ArgumentTypeError, match="whole number above 0"):
            harness.positives(text)


def test_each_is_called_in_turn_and_the_warm_up_is_not_counted():
    called: list[str] = []
    runs = {name: lambda name=name: called.append(name) for name in ("a", "b", "c")}
    seconds = harness.interleave(runs, rounds=3, warmup=2)
    assert called == ["a", "b", "c"] * 5
    assert seconds.keys() == runs.keys()
    for values in seconds.values():
        assert len(values) == 3
        assert all(value >= 0 for value in values)


def test_a_call_is_timed_from_its_start_to_its_end(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def take(seconds: float) -> None:
        clock[0] += seconds

    runs = {"short": lambda: take(1.0), "long": lambda: take(5.0)}
    seconds = harness.interleave(runs, rounds=2, warmup=1)
    assert seconds == {"short": [1, 1], "long": [5, 5]}


def test_threads_give_the_batches_of_tf_data():
    fetch = make_train_fetch(IMAGES, LABELS, ROWS, **OPTIONS)
    ours = list(harness.fetch_ahead(fetch, start=3, stop=10))
    theirs = list(
        make_train_batches(IMAGES, LABELS, ROWS, start_step=3, num_steps=10, **OPTIONS)
    )
    assert len(ours) == len(theirs) == 7
    for batch, other in zip(ours, theirs, strict=True):
        for key in other:
            np.testing.assert_array_equal(batch[key], other[key], strict=True)


def test_a_batch_of_noise_is_what_a_step_takes():
    batch = harness.noise_batch(batch_size=5, size=4)
    image, label = batch["image"], batch["label"]
    assert (image.shape, image.dtype) == ((5, 4, 4, 3), np.float32)
    assert 0 <= image.min() < 30 and 225 < image.max() <= 255
    np.testing.assert_array_equal(label, np.int32([0, 1, 0, 1, 0]), strict=True)
    again = harness.noise_batch(batch_size=5, size=4)
    np.testing.assert_array_equal(image, again["image"])
