"""What every network keeps to, whatever its family."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mela_jax.errors import UserError
from mela_jax.models.head import Classifier
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


# As far from a multiple of 32 as the network bears.
SIZE = 96 + 16


@pytest.mark.parametrize("name", MODELS)
def test_shapes_and_dtypes_of_every_network(name):
    model = create_model(name, num_logits=7, dtype=jnp.bfloat16)
    variables = blank_variables(model, size=SIZE)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float32")}
    assert set(variables["params"]) == {"body", "head"}
    assert set(variables.get("batch_stats", ["body"])) == {"body"}
    outputs, updates = traced(model, variables, (2, SIZE, SIZE, 3))
    assert outputs.logits.shape == (2, 7)
    assert outputs.features.shape == (2, outputs.maps["last"].shape[-1])
    assert {outputs.logits.dtype, outputs.features.dtype} == {jnp.dtype("float32")}
    assert {x.dtype for x in outputs.maps.values()} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} <= {jnp.dtype("float32")}
    strides = {n: x for n, x in outputs.maps.items() if n.startswith("stride_")}
    # Unpadded convolutions lose up to two rows at the edge of a map.
    lost = 0 if name not in ("inception_v3", "dsnet") else 3
    for stride, x in strides.items():
        side = SIZE // int(stride.removeprefix("stride_"))
        assert side - lost <= x.shape[1] <= side + 1


def traced(model: Classifier, variables: dict, shape: tuple[int, ...]) -> tuple:
    """Return the shapes of what training and its update give."""
    image = jax.ShapeDtypeStruct(shape, jnp.float32)
    rngs = {"dropout": jax.random.key(0)}
    return jax.eval_shape(
        lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"], rngs=rngs),
        variables,
        image,
    )


def test_images_need_not_be_square():
    model = create_model(NAME)
    outputs, _ = traced(model, blank_variables(model), (2, 65, 97, 3))
    # A remainder counts as a whole.
    assert {name: x.shape[:3] for name, x in outputs.maps.items()} == {
        "stride_4": (2, 17, 25),
        "stride_8": (2, 9, 13),
        "stride_16": (2, 5, 7),
        "last": (2, 3, 4),
    }


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
    feature_map = outputs.maps["last"]
    _, features = head.apply(params, feature_map, train=False)
    np.testing.assert_array_equal(features, feature_map.max(axis=(1, 2)))
    assert (features > outputs.features).any()


def test_flattened_features_are_the_places_of_the_map(initialised, outputs):
    # As TensorFlow flattens: rows, columns, channels.
    head = create_model(NAME, pool="flatten").head
    feature_map = outputs.maps["last"]
    flat = feature_map.reshape(feature_map.shape[0], -1)
    variables = head.init(jax.random.key(0), feature_map, train=False)
    logits, features = head.apply(variables, feature_map, train=False)
    np.testing.assert_array_equal(features, flat)
    params = variables["params"]["logits"]
    np.testing.assert_allclose(
        logits, flat @ params["kernel"] + params["bias"], rtol=1e-5
    )


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
        (NAME, {"pool": "median"}, "choose one of avg, max"),
        (NAME, {"hidden": -1}, "hidden=-1"),
        (NAME, {"dropout": 1.0}, "dropout=1.0"),
    ],
)
def test_unknown_choices_are_named(name, options, said):
    with pytest.raises(UserError, match=said):
        create_model(name, **options)
