"""Quantized files: what they are calibrated with and what stays float in them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from hypothesis import given
from hypothesis import strategies as st

from export import conversion, quantize
from mela_jax.models.zoo import create_model
from mela_jax.tflite import PhoneModel
from tflite_bench.graph import read_graph


@given(st.integers(1, 400), st.integers(1, 400), st.integers(256, 600))
def test_calibration_rows_are_balanced_and_from_the_split(melanomas, others, count):
    labels = np.zeros(2000, np.int32)
    split = np.arange(2000)[::2][: melanomas + others]
    labels[split[:melanomas]] = 1
    found = quantize.choose_calibration_rows(
        split, labels, melanoma=1, count=count, seed=3
    )
    assert len(found) == len(set(found)) == min(count, len(split))
    assert set(found) <= set(split)
    num_melanomas = labels[found].sum()
    assert num_melanomas >= min(melanomas, count // 2)
    assert 0 < num_melanomas < len(found)
    if melanomas >= count // 2 and others >= count - count // 2:
        assert num_melanomas == count // 2


def test_calibration_rows_follow_the_seed():
    labels = np.arange(1000) % 5 == 0
    choose = quantize.choose_calibration_rows
    first, again, other = (
        choose(np.arange(1000), labels, melanoma=1, count=256, seed=seed)
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert set(first) != set(other)


@given(
    st.lists(st.integers(0, 300), min_size=3, max_size=7).filter(any),
    st.integers(256, 600),
    st.integers(0, 2),
)
def test_other_classes_have_equal_parts_as_far_as_they_reach(sizes, count, melanoma):
    labels = np.random.default_rng(4).permutation(np.repeat(range(len(sizes)), sizes))
    found = quantize.choose_calibration_rows(
        np.arange(len(labels)), labels, melanoma=melanoma, count=count, seed=3
    )
    assert len(set(found)) == min(count, len(labels))
    taken = np.bincount(labels[found], minlength=len(sizes))
    assert taken[melanoma] >= min(sizes[melanoma], count // 2)
    others = [k for k in range(len(sizes)) if k != melanoma]
    most = max(taken[others])
    # A class with fewer than the largest part has given all it has, or was next.
    assert all(taken[k] in (sizes[k], most, most - 1) for k in others)


def test_ranges_are_the_extremes_of_all_images(exported):
    content = (exported / "student_float32.tflite").read_bytes()
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (5, 32, 32, 3), np.uint8)
    ranges = quantize.calibrate(content, images)
    # The first operation, pixel / 127.5, is one whose values are known from outside.
    name = next(name for name in ranges if "/body/div" in name)
    assert ranges[name]["min"] == pytest.approx(images.min() / 127.5)
    assert ranges[name]["max"] == pytest.approx(images.max() / 127.5)


def test_an_int8_file_with_a_dead_squeeze_runs_and_answers_as_the_float_one():
    """Its ReLU lets nothing through; such a scale once brought XNNPACK down."""
    network = create_model("mobilenet_v3_small")
    image = jnp.zeros((1, 32, 32, 3))
    variables = jax.jit(lambda: network.init(jax.random.key(0), image, train=False))()
    squeeze = variables["params"]["body"]["block_06"]["squeeze_excite"]["reduce"]
    squeeze["bias"] = jnp.full_like(squeeze["bias"], -10.0)
    content = conversion.convert(
        network,
        variables,
        image_size=32,
        input_dtype="float32",
        activation_map=False,
    )
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    ranges = quantize.calibrate(content, images)
    dead = [
        name
        for name, found in ranges.items()
        if "block_06/squeeze_excite/reduce" in name and found["min"].max() == 0
    ]
    assert any(ranges[name]["max"].max() == 1 for name in dead)
    rounded = quantize.quantize_int8(
        content, ranges, quantize.int8_recipes(network)["int8"]
    )
    ours, theirs = (
        PhoneModel(each, source="test").score(images)[0] for each in (rounded, content)
    )
    assert np.abs(ours - theirs).max() < 0.2 * max(np.abs(theirs).max(), 1e-3)


def test_a_gate_is_not_rounded_over_the_range_of_other_images(exported):
    """One image whose means reach far must not cost all the others their values."""
    network = create_model("mobilenet_v3_small")
    content = (exported / "student_float32.tflite").read_bytes()
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    ranges = dict(quantize.calibrate(content, images))
    recipe = quantize.int8_recipes(network)["int8"]
    file = quantize.quantize_int8(content, ranges, recipe)

    def stretch(pattern: str) -> bytes:
        names = [name for name in ranges if re.search(pattern, name)]
        assert names
        wide = {k: {e: 50 * v for e, v in ranges[k].items()} for k in names}
        return quantize.quantize_int8(content, ranges | wide, recipe)

    assert stretch(r"squeeze_excite/(reduce|expand)") == file
    assert stretch("block_04/expand_conv") != file


def test_int8_is_one_piece_with_its_ends_in_float(exported):
    content = (exported / "student_int8.tflite").read_bytes()
    found = read_graph(content)
    assert found.partitions == 1
    assert found.outside == {}
    assert found.operations["QUANTIZE"] > 5
    tensors = Interpreter(model_content=content).get_tensor_details()
    pictures = [t for t in tensors if list(t["shape"]) == [1, 32, 32, 3]]
    assert pictures and {t["dtype"] for t in pictures} == {np.float32}
    logits, *_ = PhoneModel(content, source="int8").score(
        np.random.default_rng(0).integers(0, 256, (400, 32, 32, 3), np.uint8)
    )
    assert len(set(logits)) > 256  # more than an 8-bit logit has


def test_quantized_files_are_smaller(exported):
    size = {
        mode: (exported / f"student_{mode}.tflite").stat().st_size
        for mode in ("float32", "float16", "weight_int8", "int8")
    }
    assert size["float16"] < 0.56 * size["float32"]
    assert size["int8"] < 0.4 * size["float32"]
    assert size["weight_int8"] < 0.4 * size["float32"]
