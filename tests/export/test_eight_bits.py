"""What training rounds is what the int8 file has in eight bits."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from export import conversion, quantize
from mela_jax.models import eight_bits, fake_quant
from mela_jax.models.zoo import create_model

SIZE = 32


@pytest.fixture(
    scope="module",
    params=["mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_lite0"],
)
def network(request):
    return create_model(request.param)


@pytest.fixture(scope="module")
def shapes(network):
    image = jnp.zeros((1, SIZE, SIZE, 3))
    return jax.eval_shape(lambda: network.init(jax.random.key(0), image, train=False))


@pytest.fixture(scope="module")
def tensors(network, shapes) -> list:
    """Return the int8 tensors of the file, the constants with their content."""
    rng = np.random.default_rng(1)
    # Positive, as variances have to be.
    variables = jax.tree.map(
        lambda x: rng.uniform(0.5, 1.5, x.shape).astype(np.float32), shapes
    )
    image = rng.integers(0, 256, (1, SIZE, SIZE, 3), np.uint8)
    content = conversion.convert(
        network,
        variables,
        image_size=SIZE,
        input_dtype="float32",
        activation_map=True,
        calibration=(0.8, -0.3),
    )
    ranges = quantize.calibrate(content, image)
    recipe = quantize.int8_recipes(network)["int8"]
    model = flatbuffer_utils.read_model_from_bytearray(
        quantize.quantize_int8(content, ranges, recipe)
    )
    return [
        (tuple(int(side) for side in t.shape), model.buffers[t.buffer].data)
        for t in model.subgraphs[0].tensors
        if t.type == schema.TensorType.INT8
    ]


@pytest.fixture
def rounded(network, shapes, monkeypatch) -> dict[str, list]:
    """Return what a forward pass in training rounds, by function of `fake_quant`."""
    seen: dict[str, list] = {"weights": [], "activations": []}

    def note(kind, original, x):
        # What two operations take is rounded for both: once is enough.
        if not any(x is y for y in seen[kind]):
            x = original(x)
            seen[kind].append(x)
        return x

    for kind in seen:
        name = f"fake_quantize_{kind}"
        noted = functools.partial(note, kind, getattr(fake_quant, name))
        monkeypatch.setattr(fake_quant, name, noted)
    jax.eval_shape(
        lambda v: fake_quant.make_fake_quantized(network)(
            v, jnp.zeros((1, SIZE, SIZE, 3)), train=False
        ),
        shapes,
    )
    return seen


def test_training_rounds_what_the_file_has_in_eight_bits(tensors, rounded):
    activations = sorted(shape for shape, content in tensors if content is None)
    assert sorted(x.shape for x in rounded["activations"]) == activations
    kernels = [shape for shape, content in tensors if content is not None]
    assert sorted(x.size for x in rounded["weights"]) == sorted(map(math.prod, kernels))


def test_narrow_depthwise_convolutions_stay_float_in_mobilenet_v3_small_only():
    found = {
        name: [p for p in eight_bits.float_parts(create_model(name)) if "dept" in p]
        for name in (
            "mobilenet_v3_small",
            "mobilenet_v3_large",
            "efficientnet_lite0",
            "resnet50",
        )
    }
    assert found.pop("mobilenet_v3_small") == [
        "body/block_03/depthwise",
        "body/block_06/depthwise",
    ]
    assert not any(found.values())
