"""The exported graph computes what the network does, in the operations it should."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as np_st
from scipy.special import entr, expit, logsumexp, softmax

from export import conversion, quantize
from export.file_metadata import outputs
from mela_jax.errors import UserError
from mela_jax.labels import LabelSpace
from mela_jax.models.outputs import LAST_MAP, Outputs
from mela_jax.models.pretrained import load_pretrained
from mela_jax.models.zoo import create_model
from mela_jax.tflite import PhoneModel
from tests import tiny
from tests.models.networks import photographs
from tflite_bench.graph import read_graph

SIZE = tiny.IMAGE_SIZE
MODES = ("float32", "float16", "weight_int8", "int8")
SLOPE, INTERCEPT = CALIBRATION = (1.5, -0.25)
# Of the logits; the network's lie some units apart.
TOLERANCE = {"float32": 1e-5, "float16": 0.02, "weight_int8": 0.05, "int8": 0.1}


def images(count: int, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (count, size, size, 3), np.uint8)


@pytest.fixture(scope="module", params=[LabelSpace(), tiny.THREE], ids=["1", "3"])
def classes(request) -> LabelSpace:
    return request.param


@pytest.fixture(scope="module")
def network(classes):
    return tiny.network(axis_name=None, num_logits=classes.num_logits)


@pytest.fixture(scope="module")
def variables(network, classes):
    """Return variables with logits that differ, and batch norm that does something."""
    found = tiny.initial(network, seed=4)
    rng = np.random.default_rng(6)
    found["batch_stats"] = jax.tree.map(
        lambda x: rng.uniform(0.05, 0.2, x.shape).astype(np.float32),
        found["batch_stats"],
    )
    head = found["params"]["head"]["logits"]
    head["kernel"] = 4 * head["kernel"]
    head["bias"] = rng.normal(size=classes.num_logits).astype(np.float32)
    return found


def apply(network, variables, pictures) -> Outputs:
    return network.apply(variables, pictures.astype(np.float32), train=False)


def convert(network, variables, **options) -> bytes:
    options = {"input_dtype": "float32", "activation_map": True} | options
    return conversion.convert(network, variables, image_size=SIZE, **options)


@pytest.fixture(scope="module")
def files(network, variables, classes) -> dict[str, bytes]:
    found = {
        mode: convert(
            network,
            variables,
            classes=classes,
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
def test_every_file_answers_as_the_network(network, variables, classes, files, mode):
    pictures = images(40)
    logits = np.asarray(apply(network, variables, pictures).logits, np.float64)
    log_odds, probability, found = PhoneModel(files[mode], source="m").score(pictures)
    tolerance = TOLERANCE[mode]
    # Or the bound would say nothing.
    assert logits.std(axis=0).min() > 0.3
    expected = logits[:, 0]
    if not classes.is_binary:
        expected = logits[:, 1] - np.logaddexp(logits[:, 0], logits[:, 2])
        np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)
        between = np.log(found[:, 0] / found[:, 2])
        np.testing.assert_allclose(between, logits[:, 0] - logits[:, 2], atol=tolerance)
    np.testing.assert_allclose(log_odds, expected, atol=tolerance)
    # A float16 file has the calibration in half precision.
    calibrated = expit(SLOPE * log_odds + INTERCEPT)
    atol = 1e-3 if mode == "float16" else 1e-6
    np.testing.assert_allclose(probability, calibrated, atol=atol)
    np.testing.assert_array_equal(found[:, classes.melanoma], probability)


def test_a_plain_file_of_bytes_answers_as_the_network(network, variables, classes):
    content = convert(
        network,
        variables,
        classes=classes,
        input_dtype="uint8",
        activation_map=False,
    )
    model = PhoneModel(content, source="m")
    log_odds, probability, _ = model.score(images(6))
    assert "activation_map" not in model.outputs
    expected = classes.log_odds(apply(network, variables, images(6)).logits)
    np.testing.assert_allclose(log_odds, expected, atol=1e-5)
    np.testing.assert_allclose(probability, expit(log_odds), atol=1e-6)


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
    network, variables, classes, files, mode
):
    model = PhoneModel(files[mode], source="m")
    bias = variables["params"]["head"]["logits"]["bias"]
    tolerance = TOLERANCE[mode]

    def log_odds(last):
        classified = network.apply(
            variables, {LAST_MAP: last}, train=False, method=network.classify
        )
        return classes.log_odds(classified.logits)[0]

    for picture in images(6):
        answer = model.run(picture)
        found = apply(network, variables, picture[None])
        last = found.maps[LAST_MAP]
        expected = (jax.grad(log_odds)(last) * last).sum(axis=-1) * last[..., 0].size
        np.testing.assert_allclose(
            answer["activation_map"], expected, atol=20 * tolerance
        )
        # Its mean and a number of the whole image are the log-odds.
        constant = bias[classes.melanoma]
        if not classes.is_binary:
            q = softmax(found.logits[0, [0, 2]])
            constant = constant - q @ bias[[0, 2]] - entr(q).sum()
        mean = answer["activation_map"].mean()
        assert mean + constant == pytest.approx(answer["logit"][0], abs=tolerance)


def test_the_activation_map_is_offered_where_it_is_exact():
    linear = {"pool": "avg", "hidden": 0}
    assert conversion.has_activation_map(linear)
    assert not conversion.has_activation_map(linear | {"pool": "max"})
    assert not conversion.has_activation_map(linear | {"hidden": 8})


def test_the_metadata_describe_every_output(classes, files):
    described = outputs(classes, activation_map=True)
    assert sorted(described) == PhoneModel(files["int8"], source="m").outputs
    assert ("probabilities" in described) != classes.is_binary


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


def test_extreme_logits_stay_finite_in_a_file():
    network = tiny.network(axis_name=None, num_logits=3)
    variables = tiny.initial(network, seed=4)
    head = variables["params"]["head"]["logits"]
    head["bias"] = np.array([-1e4, 1e4, 0], np.float32)
    classes = LabelSpace(("nv", "bkl", "mel"), 2)
    content = convert(network, variables, input_dtype="uint8", classes=classes)
    answer = PhoneModel(content, source="m").run(images(1)[0])
    assert answer["logit"][0] == pytest.approx(-1e4, rel=1e-2)
    assert answer["probabilities"].tolist() == [[0, 1, 0]]
    assert np.isfinite(answer["activation_map"]).all()


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


def test_a_converter_that_refuses_is_one_short_line(monkeypatch):
    class Refusing:
        def convert(self):
            raise RuntimeError("junk\n" * 5 + "loc: error: 'tfl.x' bad " + "y" * 10**6)

    monkeypatch.setattr(
        tf.lite.TFLiteConverter, "from_concrete_functions", lambda *_: Refusing()
    )
    network = tiny.network(axis_name=None)
    with pytest.raises(UserError, match=r"refuses the network: loc: error: 'tfl") as e:
        convert(network, tiny.initial(network, seed=4))
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
    )[:, 0]
    options = {"image_size": 64, "input_dtype": "float32", "activation_map": False}
    model = PhoneModel(conversion.convert(network, variables, **options), source="m")
    found, *_ = model.score(pictures.astype(np.uint8))
    assert np.std(expected) > 0.1  # or the bound would say nothing
    assert np.abs(found - expected).max() <= 1e-4
