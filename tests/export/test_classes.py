"""Files of models that tell several diagnoses apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as np_st
from scipy.special import entr, expit, logsumexp, softmax

from export import conversion, quantize
from export.file_metadata import outputs
from mela_jax.labels import LabelSpace
from mela_jax.models.outputs import LAST_MAP, Outputs
from mela_jax.tflite import PhoneModel
from tests import tiny
from tests.export.test_conversion import images
from tflite_bench.graph import read_graph

SIZE = tiny.IMAGE_SIZE
MODES = ("float32", "float16", "weight_int8", "int8")
SLOPE, INTERCEPT = CALIBRATION = (1.5, -0.25)
# Of the logits; the network's lie some units apart.
TOLERANCE = {"float32": 1e-4, "float16": 0.02, "weight_int8": 0.05, "int8": 0.1}


@pytest.fixture(scope="module")
def network():
    return tiny.network(axis_name=None, num_logits=3)


@pytest.fixture(scope="module")
def variables(network):
    """Return variables with logits that differ, and batch norm that does something."""
    found = tiny.initial(network, seed=4)
    rng = np.random.default_rng(6)
    found["batch_stats"] = jax.tree.map(
        lambda x: rng.uniform(0.05, 0.2, x.shape).astype(np.float32),
        found["batch_stats"],
    )
    head = found["params"]["head"]["logits"]
    head["kernel"] = 4 * head["kernel"]
    head["bias"] = rng.normal(size=3).astype(np.float32)
    return found


def apply(network, variables, pictures) -> Outputs:
    return network.apply(variables, pictures.astype(np.float32), train=False)


@pytest.fixture(scope="module")
def files(network, variables) -> dict[str, bytes]:
    found = {
        mode: conversion.convert(
            network,
            variables,
            image_size=SIZE,
            input_dtype="float32",
            activation_map=True,
            classes=tiny.THREE,
            float16=mode == "float16",
            calibration=CALIBRATION,
        )
        for mode in ("float32", "float16")
    }
    ranges = quantize.calibrate(found["float32"], images(40))
    recipe = quantize.int8_recipes(network)["int8"]
    return found | {
        "weight_int8": quantize.quantize_weights(found["float32"]),
        "int8": quantize.quantize_int8(found["float32"], ranges, recipe),
    }


@pytest.mark.parametrize("mode", MODES)
def test_every_file_answers_as_the_network(network, variables, files, mode):
    pictures = images(40)
    logits = np.asarray(apply(network, variables, pictures).logits)
    log_odds, probability, classes = PhoneModel(files[mode], source="m").score(pictures)
    tolerance = TOLERANCE[mode]
    # Or the bound would say nothing.
    assert logits.std(axis=0).min() > 0.3
    expected = logits[:, 1] - np.logaddexp(logits[:, 0], logits[:, 2])
    np.testing.assert_allclose(log_odds, expected, atol=tolerance)
    # A float16 file has the calibration in half precision.
    calibrated = expit(SLOPE * log_odds + INTERCEPT)
    atol = 1e-3 if mode == "float16" else 1e-6
    np.testing.assert_allclose(probability, calibrated, atol=atol)
    np.testing.assert_array_equal(classes[:, 1], probability)
    np.testing.assert_allclose(classes.sum(axis=1), 1, atol=1e-6)
    between = np.log(classes[:, 0] / classes[:, 2])
    np.testing.assert_allclose(between, logits[:, 0] - logits[:, 2], atol=tolerance)


@pytest.mark.parametrize("mode", MODES)
def test_files_are_one_piece_of_builtin_operations(files, mode):
    found = read_graph(files[mode])
    assert found.partitions == 1 and found.outside == {}
    assert not any("flex" in name.lower() for name in found.operations)
    assert "CUSTOM" not in found.operations


def test_what_makes_up_the_answers_stays_float_in_int8(files):
    tensors = Interpreter(model_content=files["int8"]).get_tensor_details()
    eight_bits = [t for t in tensors if t["dtype"] == np.int8]
    assert eight_bits and min(len(t["shape"]) for t in eight_bits) == 4


@pytest.mark.parametrize("mode", ["float32", "int8"])
def test_the_activation_map_is_the_gradient_of_the_log_odds_times_the_map(
    network, variables, files, mode
):
    model = PhoneModel(files[mode], source="m")
    head = variables["params"]["head"]["logits"]
    tolerance = TOLERANCE[mode]

    def log_odds(last):
        classified = network.apply(
            variables, {LAST_MAP: last}, train=False, method=network.classify
        )
        return tiny.THREE.log_odds(classified.logits)[0]

    for picture in images(6):
        answer = model.run(picture)
        outputs = apply(network, variables, picture[None])
        last = outputs.maps[LAST_MAP]
        expected = (jax.grad(log_odds)(last) * last).sum(axis=-1) * last[..., 0].size
        np.testing.assert_allclose(
            answer["activation_map"], expected, atol=20 * tolerance
        )
        # Its mean and a number of the whole image are the log-odds.
        q = softmax(outputs.logits[0, [0, 2]])
        constant = head["bias"][1] - q @ head["bias"][[0, 2]] - entr(q).sum()
        mean = answer["activation_map"].mean()
        assert mean + constant == pytest.approx(answer["logit"][0], abs=tolerance)


@given(
    np_st.arrays(np.float32, (1, 4), elements=st.floats(-1e4, 1e4, width=32)),
    st.integers(2, 4),
    st.data(),
)
def test_the_answers_add_up_for_any_logits(logits, num_classes, data):
    logits = logits[:, :num_classes]
    melanoma = data.draw(st.integers(0, num_classes - 1))
    classes = LabelSpace(tuple("abcd"[:num_classes]), melanoma)
    found = conversion.read_out(jnp.asarray(logits), classes, conversion.UNCALIBRATED)
    others = np.delete(logits.astype(np.float64), melanoma, axis=1)
    expected = logits[:, melanoma] - logsumexp(others, axis=1)
    np.testing.assert_allclose(found["logit"], expected, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(
        found["probabilities"][:, melanoma], found["probability"]
    )
    np.testing.assert_allclose(
        found["probabilities"], classes.probabilities(logits), rtol=2e-3, atol=1e-6
    )


def test_extreme_logits_stay_finite_in_a_file(network, variables):
    head = variables["params"]["head"]["logits"]
    extreme = head | {"bias": np.array([-1e4, 1e4, 0], np.float32)}
    params = variables["params"] | {"head": {"logits": extreme}}
    content = conversion.convert(
        network,
        variables | {"params": params},
        image_size=SIZE,
        input_dtype="uint8",
        activation_map=True,
        classes=LabelSpace(("nv", "bkl", "mel"), 2),
    )
    answer = PhoneModel(content, source="m").run(images(1)[0])
    assert answer["logit"][0] == pytest.approx(-1e4, rel=1e-2)
    assert answer["probabilities"].tolist() == [[0, 1, 0]]
    assert np.isfinite(answer["activation_map"]).all()


def test_the_metadata_describe_every_output(files):
    described = outputs(tiny.THREE, activation_map=True)
    assert sorted(described) == PhoneModel(files["int8"], source="m").outputs
    assert described["probabilities"].startswith("float32 [1, 3]")
    assert "probabilities" not in outputs(LabelSpace(), activation_map=True)
