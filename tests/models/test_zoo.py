"""What every network keeps to, whatever its family."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mela_jax.errors import UserError
from mela_jax.models.outputs import Outputs
from mela_jax.models.zoo import MODELS, create_model
from tests.models.networks import blank_variables, noise

NAME = "mobilenet_v3_small"


@pytest.fixture(scope="module")
def initialised() -> dict:
    image = jnp.zeros((1, 32, 32, 3))
    return jax.jit(lambda key: create_model(NAME).init(key, image, train=False))(
        jax.random.key(0)
    )


@pytest.mark.parametrize("name", MODELS)
def test_shapes_and_dtypes_of_every_family(name: str) -> None:
    channels = {
        "resnet50": 2048,
        "mobilenet_v3_small": 576,
        "mobilenet_v3_large": 960,
        "efficientnet_lite0": 1280,
        "efficientnet_lite2": 1280,
    }
    model = create_model(name, dtype=jnp.bfloat16)
    variables = blank_variables(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float32")}
    assert set(variables["params"]) == {"body", "head"}
    assert set(variables["batch_stats"]) == {"body"}
    image = jax.ShapeDtypeStruct((2, 65, 97, 3), jnp.float32)
    outputs, updates = jax.eval_shape(
        lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]),
        variables,
        image,
    )
    assert (outputs.logits.shape, outputs.logits.dtype) == ((2,), jnp.float32)
    assert outputs.features.shape == (2, channels[name])
    assert outputs.features.dtype == jnp.float32
    assert outputs.feature_map.shape == (2, 3, 4, channels[name])
    assert outputs.feature_map.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype("float32")}


@pytest.fixture(scope="module")
def outputs(initialised: dict) -> Outputs:
    model = create_model(NAME)
    return jax.jit(lambda v, x: model.apply(v, x, train=False))(
        initialised, noise(64, num=2)
    )


def test_bfloat16_agrees_with_float32(initialised: dict, outputs: Outputs) -> None:
    model = create_model(NAME, dtype=jnp.bfloat16)
    half = jax.jit(lambda v, x: model.apply(v, x, train=False))(
        initialised, noise(64, num=2)
    )
    assert half.logits.dtype == jnp.float32
    scale = np.abs(outputs.features).max()
    np.testing.assert_allclose(half.features, outputs.features, atol=0.05 * scale)


def test_features_are_the_pooled_map_and_logits_their_sum(
    initialised: dict, outputs: Outputs
) -> None:
    feature_map = np.asarray(outputs.feature_map)
    mean, peak = feature_map.mean(axis=(1, 2)), feature_map.max(axis=(1, 2))
    np.testing.assert_allclose(outputs.features, mean, rtol=1e-5, atol=1e-6)
    logits = initialised["params"]["head"]["logits"]
    np.testing.assert_allclose(
        outputs.logits, (mean @ logits["kernel"] + logits["bias"])[:, 0], rtol=1e-4
    )
    head = {"params": initialised["params"]["head"]}
    _, features = create_model(NAME, pool="max").head.apply(
        head, outputs.feature_map, train=False
    )
    np.testing.assert_array_equal(features, peak)
    assert (peak > mean).any()


def test_hidden_layer_and_dropout() -> None:
    head = create_model(NAME, hidden=8, dropout=0.5).head
    x = jax.random.normal(jax.random.key(1), (2, 3, 3, 16))
    params = head.init(jax.random.key(2), x, train=False)
    assert params["params"]["hidden"]["kernel"].shape == (16, 8)
    calm, features = head.apply(params, x, train=False)
    drawn, same_features = head.apply(
        params, x, train=True, rngs={"dropout": jax.random.key(3)}
    )
    np.testing.assert_array_equal(features, same_features)
    assert (calm != drawn).any()


def test_training_moves_the_running_statistics(initialised: dict) -> None:
    model = create_model(NAME)
    _, updates = jax.jit(
        lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"])
    )(initialised, noise(32))
    before = jax.tree.leaves(initialised["batch_stats"])
    after = jax.tree.leaves(updates["batch_stats"])
    assert all((one != other).any() for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("resnet51", {}, "resnet50"),
        (NAME, {"pool": "median"}, "avg or max"),
        (NAME, {"hidden": -1}, "hidden=-1"),
        (NAME, {"dropout": 1.0}, "dropout=1.0"),
    ],
)
def test_unknown_choices_are_named(name: str, options: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        create_model(name, **options)
