"""What every network keeps to, whatever its family."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mela_jax.errors import UserError
from mela_jax.models.outputs import Outputs
from mela_jax.models.zoo import MODELS, create_model
from tests.models.networks import blank_variables, jit_apply, noise

NAME = "mobilenet_v3_small"


@pytest.fixture(scope="module")
def initialised() -> dict:
    image = jnp.zeros((1, 32, 32, 3))
    return jax.jit(lambda key: create_model(NAME).init(key, image, train=False))(
        jax.random.key(0)
    )


@pytest.mark.parametrize("num_logits", [1, 7])
@pytest.mark.parametrize("name", MODELS)
def test_shapes_and_dtypes_of_every_network(name, num_logits):
    model = create_model(name, num_logits=num_logits, dtype=jnp.bfloat16)
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
    assert outputs.logits.shape == (2, num_logits)
    assert outputs.features.shape == (2, outputs.maps["stride_32"].shape[-1])
    assert {outputs.logits.dtype, outputs.features.dtype} == {jnp.dtype("float32")}
    # 65 x 97 pixels, a remainder counted as a whole.
    assert {name: x.shape[:3] for name, x in outputs.maps.items()} == {
        "stride_4": (2, 17, 25),
        "stride_8": (2, 9, 13),
        "stride_16": (2, 5, 7),
        "stride_32": (2, 3, 4),
    }
    assert {x.dtype for x in outputs.maps.values()} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype("float32")}


@pytest.fixture(scope="module")
def outputs(initialised: dict) -> Outputs:
    return jit_apply(create_model(NAME))(initialised, noise(64, num=2))


def test_bfloat16_agrees_with_float32(initialised, outputs):
    model = create_model(NAME, dtype=jnp.bfloat16)
    half = jit_apply(model)(initialised, noise(64, num=2))
    assert half.logits.dtype == jnp.float32
    scale = np.abs(outputs.features).max()
    np.testing.assert_allclose(half.features, outputs.features, atol=0.05 * scale)


def test_features_may_be_the_largest_of_the_map(initialised, outputs):
    # That they are its mean otherwise, the parity tests show.
    head = create_model(NAME, pool="max").head
    params = {"params": initialised["params"]["head"]}
    feature_map = outputs.maps["stride_32"]
    _, features = head.apply(params, feature_map, train=False)
    np.testing.assert_array_equal(features, feature_map.max(axis=(1, 2)))
    assert (features > outputs.features).any()


def test_the_network_is_its_two_halves():
    model = create_model(NAME, num_logits=7)
    shapes = blank_variables(model)
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)

    def halves(variables: dict, images: jax.Array) -> Outputs:
        maps = model.apply(variables, images, train=False, method="extract")
        return model.apply(variables, maps, train=False, method="classify")

    def whole(variables: dict, images: jax.Array) -> Outputs:
        return model.apply(variables, images, train=False)

    one, other = (jax.make_jaxpr(fn)(shapes, images) for fn in (whole, halves))
    assert str(one) == str(other)


def test_hidden_layer_and_dropout():
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


def test_training_moves_the_running_statistics(initialised):
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
def test_unknown_choices_are_named(name, options, said):
    with pytest.raises(UserError, match=said):
        create_model(name, **options)
