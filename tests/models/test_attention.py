"""The attention modules, against values worked out by hand and their definitions."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from mela_jax.models.attention import CBAM, S2, SGE, Gate, SpatialGate
from mela_jax.models.cost import count_params


def initial(module: nn.Module, x: Any) -> Any:
    return module.init(jax.random.key(0), x)


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, 5, 6, 32)).astype(np.float32)


@pytest.mark.parametrize(
    ("module", "channels", "count"),
    [
        (Gate(), 960, 123_137),
        (Gate(), 1792, 229_633),
        (S2(), 232, 8 * 232**2 + 4 * 232),
        (SGE(), 232, 16),
        (SpatialGate(), 232, 98),
        (CBAM(), 232, 2 * 232 * 14 + 99),
    ],
)
def test_counts(module, channels, count):
    image = jax.ShapeDtypeStruct((1, 7, 7, channels), jnp.float32)
    assert count_params(jax.eval_shape(module.init, jax.random.key(0), image)) == count


@pytest.mark.parametrize("module", [S2(), SGE(), SpatialGate(), CBAM()])
def test_shape_and_dtype_stay(module, x):
    half = type(module)(dtype=jnp.bfloat16)
    y = half.apply(initial(half, x), x.astype(jnp.bfloat16))
    assert (y.shape, y.dtype) == (x.shape, jnp.bfloat16)
    gradient = jax.grad(lambda v: module.apply(v, x).sum())(initial(module, x))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_s2_of_a_constant_map_is_constant(x):
    constant = np.broadcast_to(x[:, :1, :1], x.shape)
    y = S2().apply(initial(S2(), x), constant)
    np.testing.assert_allclose(y, np.broadcast_to(y[:, :1, :1], y.shape), atol=1e-5)


def test_s2_shifts_as_a_small_filter_does(x):
    """With the weights of one part and no mixing, what is left is the shifted map."""
    variables = initial(S2(), x)
    params = jax.tree.map(np.zeros_like, variables["params"])
    channels = x.shape[-1]
    # Every part is the input, and all three weigh a third.
    params["split"]["kernel"] = np.tile(np.eye(channels), 3)
    params["merge"]["kernel"] = np.eye(channels)
    found = S2().apply({"params": params}, x)

    def shifted(rows: int, columns: int, part: np.ndarray) -> np.ndarray:
        offset = (0, rows, columns, 0)
        return scipy.ndimage.shift(part, offset, order=0, mode="nearest")

    quarters = np.split(x, 4, axis=-1)
    down, up, right, left = (1, 0), (-1, 0), (0, 1), (0, -1)
    expected = np.concatenate(
        [
            (shifted(*one, q) + shifted(*other, q) + q) / 3
            for q, one, other in zip(
                quarters,
                (down, up, right, left),
                (right, left, down, up),
                strict=True,
            )
        ],
        axis=-1,
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_sge_of_a_constant_map_is_the_map_times_the_bias_s_sigmoid(x):
    constant = np.broadcast_to(x[:, :1, :1], x.shape)
    y = SGE().apply(initial(SGE(), x), constant)
    np.testing.assert_allclose(y, constant / (1 + np.exp(-1)), rtol=1e-4)


def test_sge_by_its_definition(x):
    rng = np.random.default_rng(1)
    weight, bias = rng.normal(size=(2, 8)).astype(np.float32)
    params = {"params": {"weight": weight, "bias": bias}}
    groups = x.reshape(2, 30, 8, 4)
    likeness = (groups * groups.mean(1, keepdims=True)).sum(-1)
    likeness -= likeness.mean(1, keepdims=True)
    likeness /= likeness.std(1, ddof=1, keepdims=True) + 1e-5
    gate = 1 / (1 + np.exp(-(weight * likeness + bias)))
    expected = (groups * gate[..., None]).reshape(x.shape)
    np.testing.assert_allclose(SGE().apply(params, x), expected, rtol=1e-3, atol=1e-5)


def test_cbam_without_weights_adds_a_quarter(x):
    params = jax.tree.map(jnp.zeros_like, initial(CBAM(), x))
    np.testing.assert_allclose(CBAM().apply(params, x), x + x / 4, rtol=1e-6)


def test_a_gate_of_zero_weights_is_a_half(x):
    params = jax.tree.map(jnp.zeros_like, initial(Gate(), x))
    np.testing.assert_array_equal(Gate().apply(params, x), np.full((2, 5, 6, 1), 0.5))
