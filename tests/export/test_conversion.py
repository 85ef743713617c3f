"""The exported graph computes what the network does, in the operations it should."""

import jax
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from scipy.special import expit

from export import conversion
from mela_jax.errors import UserError
from mela_jax.models.pretrained import load_pretrained
from mela_jax.models.zoo import create_model
from mela_jax.tflite import PhoneModel
from tests import tiny
from tests.models.networks import photographs

SIZE = tiny.IMAGE_SIZE


def images(count: int, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (count, size, size, 3), np.uint8)


@pytest.fixture(scope="module")
def network():
    return tiny.network(axis_name=None)


@pytest.fixture(scope="module")
def variables(network):
    """Return variables whose batch norm does something."""
    found = tiny.initial(network, seed=4)
    rng = np.random.default_rng(6)
    found["batch_stats"] = jax.tree.map(
        lambda x: rng.uniform(0.5, 2, x.shape).astype(np.float32), found["batch_stats"]
    )
    return found


@pytest.fixture(scope="module")
def expected(network, variables):
    return network.apply(variables, images(6).astype(np.float32), train=False)


def convert(network, variables, **options) -> bytes:
    options = {"input_dtype": "float32", "activation_map": True} | options
    return conversion.convert(network, variables, image_size=SIZE, **options)


@pytest.mark.parametrize("input_dtype", ["float32", "uint8"])
def test_the_file_answers_as_the_network(network, variables, expected, input_dtype):
    model = PhoneModel(
        convert(network, variables, input_dtype=input_dtype), source="file"
    )
    logits, probabilities, _ = model.score(images(6))
    np.testing.assert_allclose(logits, expected.logits[:, 0], atol=1e-5)
    np.testing.assert_allclose(probabilities, expit(expected.logits[:, 0]), atol=1e-6)


def test_the_activation_map_adds_up_to_the_logit(network, variables, expected):
    model = PhoneModel(convert(network, variables), source="file")
    bias = variables["params"]["head"]["logits"]["bias"]
    for image, logit in zip(images(6), expected.logits[:, 0], strict=True):
        found = model.run(image)["activation_map"]
        assert found.shape == (1, SIZE // 2, SIZE // 2)
        assert found.mean() + bias[0] == pytest.approx(float(logit), abs=1e-5)


def test_the_activation_map_is_offered_where_it_is_exact():
    linear = {"pool": "avg", "hidden": 0}
    assert conversion.has_activation_map(linear)
    assert not conversion.has_activation_map(linear | {"pool": "max"})
    assert not conversion.has_activation_map(linear | {"hidden": 8})


def test_a_calibration_moves_the_probability_and_leaves_the_logit(
    network, variables, expected
):
    content = convert(
        network, variables, activation_map=False, calibration=(1.5, -0.25)
    )
    model = PhoneModel(content, source="file")
    assert model.outputs == ["logit", "probability"]
    logits, probabilities, _ = model.score(images(6))
    np.testing.assert_allclose(logits, expected.logits[:, 0], atol=1e-5)
    wanted = expit(1.5 * expected.logits[:, 0] - 0.25)
    np.testing.assert_allclose(probabilities, wanted, atol=1e-6)


def test_half_precision_halves_the_file_and_hardly_moves_the_logit():
    network = create_model("mobilenet_v3_small")
    variables = jax.jit(
        lambda k: network.init(k, np.zeros((1, 32, 32, 3)), train=False)
    )(jax.random.key(0))
    options = {"image_size": 32, "input_dtype": "float32", "activation_map": True}
    whole = conversion.convert(network, variables, **options)
    half = conversion.convert(network, variables, **options, float16=True)
    assert len(half) < 0.56 * len(whole)
    scores = [PhoneModel(c, source="m").score(images(4, 32))[0] for c in (whole, half)]
    np.testing.assert_allclose(*scores, rtol=0.02, atol=0.01)
    # Batch norm is folded, and nothing is transposed, padded or broadcast.
    found = {
        op["op_name"] for op in Interpreter(model_content=whole)._get_ops_details()
    }
    allowed = {"CONV_2D", "DEPTHWISE_CONV_2D", "HARD_SWISH", "ADD", "SUB", "MUL"}
    allowed |= {"SUM", "MEAN", "RESHAPE", "FULLY_CONNECTED", "LOGISTIC", "DELEGATE"}
    assert found <= allowed


def test_a_converter_that_refuses_is_one_short_line(network, variables, monkeypatch):
    class Refusing:
        def convert(self):
            raise RuntimeError("junk\n" * 5 + "loc: error: 'tfl.x' bad " + "y" * 10**6)

    monkeypatch.setattr(
        tf.lite.TFLiteConverter, "from_concrete_functions", lambda *_: Refusing()
    )
    with pytest.raises(
        UserError, match=r"refuses the network: loc: error: 'tfl\.x'"
    ) as e:
        convert(network, variables)
    assert len(str(e.value)) < 500


def test_real_images_give_the_logits_of_the_network(shared):
    file = shared / "weights" / "efficientnet_lite0_imagenet.npz"
    if not file.is_file():
        pytest.skip(f"no pretrained weights: {file} is absent")
    network = create_model("efficientnet_lite0")
    blank = jax.jit(lambda k: network.init(k, np.zeros((1, 64, 64, 3)), train=False))
    variables = load_pretrained(
        "efficientnet_lite0", blank(jax.random.key(0)), init=file
    )
    pictures = photographs(shared, 64, num=200)
    assert len(pictures) == 200
    expected = jax.jit(lambda v, x: network.apply(v, x, train=False).logits)(
        variables, pictures
    )
    options = {"image_size": 64, "input_dtype": "float32", "activation_map": False}
    model = PhoneModel(conversion.convert(network, variables, **options), source="m")
    found = model.score(pictures.astype(np.uint8))[0]
    expected = expected[:, 0]
    assert np.std(expected) > 0.1  # or the bound would say nothing
    assert np.abs(found - expected).max() <= 1e-4
