"""What training rounds is what the int8 file has in eight bits."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from benchmarks.network_table import POOLS
from export import conversion, quantize
from mela_jax.models import eight_bits, fake_quant
from mela_jax.models.zoo import create_model

# The last map is not of a single place, over which pooling would be nothing.
SIZE = 64


@pytest.fixture(
    scope="module",
    params=[
        "mobilenet_v3_small",
        "mobilenet_v3_small_relu6",
        "mobilenet_v3_small_relu6_no_se",
        "mobilenet_v3_large",
        "mobilenet_v3_large_gate",
        "mobilenet_v2",
        "efficientnet_lite0",
        "efficientnet_b0",
        "efficientnet_b0_hard",
        "dsnet",
        "three_block",
        "tiny_student",
    ],
)
def network(request):
    return create_model(request.param, pool=POOLS.get(request.param, "avg"))


@pytest.fixture(scope="module")
def shapes(network):
    image = jnp.zeros((1, SIZE, SIZE, 3))
    return jax.eval_shape(lambda: network.init(jax.random.key(0), image, train=False))


def draw(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draw a kernel that keeps the size of what it is given, or positive numbers."""
    if name == "kernel":
        fan_in = math.prod(shape[:-1])
        return rng.normal(0, fan_in**-0.5, shape).astype(np.float32)
    return rng.uniform(0.5, 1.5, shape).astype(np.float32)


@pytest.fixture(scope="module")
def tensors(network, shapes) -> list:
    """Return the int8 tensors of the file, the constants with their content."""
    rng = np.random.default_rng(1)
    variables = jax.tree_util.tree_map_with_path(
        lambda path, x: draw(rng, path[-1].key, x.shape), shapes
    )
    image = rng.integers(0, 256, (1, SIZE, SIZE, 3), np.uint8)
    content = conversion.convert(
        network,
        variables,
        image_size=SIZE,
        input_dtype="float32",
        activation_map=network.head.pool == "avg",
        calibration=(0.8, -0.3),
    )
    ranges = quantize.calibrate(content, image)
    recipe = quantize.int8_recipes(network)["int8"]
    model = flatbuffer_utils.read_model_from_bytearray(
        quantize.quantize_int8(content, ranges, recipe)
    )
    graph = model.subgraphs[0]
    # What is pooled is the same numbers before and after: training rounds it after.
    pooled = {
        int(operator.inputs[0])
        for operator in graph.operators
        if code_of(model, operator) == schema.BuiltinOperator.MAX_POOL_2D
    }
    return [
        (tuple(int(side) for side in t.shape), model.buffers[t.buffer].data)
        for index, t in enumerate(graph.tensors)
        if t.type == schema.TensorType.INT8 and index not in pooled
    ]


def code_of(model: Any, operator: Any) -> int:
    """Return the built-in code of an operator."""
    return model.operatorCodes[operator.opcodeIndex].builtinCode


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
