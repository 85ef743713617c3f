import numpy as np
import pytest

from tests.tflite_bench.tiny_model import INPUT, SHAPE, tiny_model
from tflite_bench.android_output import (
    NEEDED_FLAGS,
    Tensor,
    compare,
    describe,
    input_flags,
    run_on_host,
    why_not_comparable,
)
from tflite_bench.failures import BenchmarkError, Failure


@pytest.fixture
def model(tmp_path):
    file = tmp_path / "m.tflite"
    file.write_bytes(tiny_model())
    return file


def tensor(values, *, dtype=np.float32, scale=0.0, zero_point=0):
    return Tensor("logit", np.array(values, dtype), scale, zero_point)


def test_the_host_runs_the_model_on_raw_pixels(model):
    run = run_on_host(model)
    (image,) = run.inputs
    assert (image.name, image.value.shape) == (INPUT, SHAPE)
    assert image.value.min() >= 0 and 128 < image.value.max() <= 255
    weights = 0.01 * np.where(np.arange(image.value.size) % 2, -1, 1)
    logit = float(weights @ image.value.ravel())
    probability, found = (output.value.item() for output in run.outputs)
    assert found == pytest.approx(logit, abs=1e-4)
    assert probability == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-5)
    assert not run.is_quantized
    np.testing.assert_array_equal(run_on_host(model).inputs[0].value, image.value)


def test_a_model_without_finite_outputs_is_refused(tmp_path):
    file = tmp_path / "m.tflite"
    file.write_bytes(tiny_model(weight=1e38))
    with pytest.raises(BenchmarkError, match="not a finite number") as caught:
        run_on_host(file)
    assert caught.value.failure is Failure.BAD_INPUT


def test_the_flags_say_which_input_gets_which_file():
    image = Tensor("serving_default_image:0", np.zeros((1, 4, 4, 3)), 0.0, 0)
    other = Tensor("mask", np.zeros((1, 2)), 0.0, 0)
    assert input_flags([image, other], ["/d/a", "/d/b"]) == [
        "--input_layer=serving_default_image:0,mask",
        "--input_layer_shape=1,4,4,3:1,2",
        "--input_layer_value_files=serving_default_image::0:/d/a,mask:/d/b",
    ]


def test_outputs_are_only_compared_where_the_program_can_write_them(model, tmp_path):
    run = run_on_host(model)
    assert why_not_comparable(run, frozenset(NEEDED_FLAGS)) is None
    for name in NEEDED_FLAGS:
        reason = why_not_comparable(run, frozenset(NEEDED_FLAGS) - {name})
        assert reason is not None and f"--{name}" in reason
    model.write_bytes(tiny_model(input_name="a,b"))
    reason = why_not_comparable(run_on_host(model), frozenset(NEEDED_FLAGS))
    assert reason is not None and "comma" in reason


@pytest.mark.parametrize(
    "here, there, equal, difference",
    [
        ([0.5, -2.0], [0.5, -2.0], True, 0.0),
        ([0.5, 0.0], [0.5009, 0.0], True, 0.0009),  # of 1, as it is larger than 0.5
        ([0.5, 0.0], [0.5011, 0.0], False, 0.0011),
        ([0.5, -20.0], [0.519, -20.0], True, 0.019),  # of 20
        ([0.5, -20.0], [0.521, -20.0], False, 0.021),
        ([0.5, 1.0], [0.5, np.nan], False, None),
        ([0.5, 1.0], [0.5, np.inf], False, None),
    ],
)
def test_floats_are_compared_by_the_largest_magnitude(here, there, equal, difference):
    content = np.array(there, np.float32).tobytes()
    check = compare([tensor(here)], content, tolerance=1e-3)
    (output,) = check["outputs"]
    assert check["equal"] is output["equal"] is equal
    assert output["max_abs_difference"] == pytest.approx(difference, abs=1e-6)
    assert ("differs by" in describe(check)) is not equal


@pytest.mark.parametrize("steps, equal", [(0, True), (1, True), (-1, True), (2, False)])
def test_one_quantization_step_is_allowed(steps, equal):
    here = tensor([3, -7], dtype=np.int8, scale=0.5, zero_point=-1)
    there = np.array([3, -7 + steps], np.int8)
    check = compare([here], there.tobytes(), tolerance=1e-3)
    assert check["equal"] is equal
    assert check["outputs"][0]["max_abs_difference"] == abs(steps) * 0.5


def test_every_output_is_compared_in_its_place():
    first, second = tensor([1.0]), tensor([2.0, 3.0])
    swapped = np.array([2.0, 3.0, 1.0], np.float32).tobytes()
    assert not compare([first, second], swapped, tolerance=1e-3)["equal"]
    right = np.array([1.0, 2.0, 3.0], np.float32).tobytes()
    assert compare([first, second], right, tolerance=1e-3)["equal"]
    late = np.array([1.0, 2.0, 4.0], np.float32).tobytes()
    check = compare([first, second], late, tolerance=1e-3)
    assert [output["equal"] for output in check["outputs"]] == [True, False]


@pytest.mark.parametrize("length", [0, 7, 12])
def test_an_output_of_another_size_is_not_equal(length):
    check = compare([tensor([1.0, 2.0])], bytes(length), tolerance=1.0)
    assert check["equal"] is False
    assert describe(check) == f"{length} bytes of output there, 8 here"
