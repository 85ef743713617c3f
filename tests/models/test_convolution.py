"""The convolutions written out for a CPU and a GPU against the plain ones.

That these pad as TensorFlow does, the parity tests of whole networks show.
"""

import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mela_jax.models import convolution
from mela_jax.models.convolution import max_pool, plain_convolutions
from mela_jax.models.layers import Conv

ODD_EVEN = (2, 7, 8, 3)  # batch, height, width, channels
EVEN_ODD = (2, 10, 9, 3)
PADDINGS = (
    ((0, 0), (0, 0)),
    ((2, 2), (2, 2)),
    ((0, 1), (2, 0)),
    # More than the window is wide: an output that sees no pixel at all.
    ((5, 0), (1, 5)),
)


def normal(*shape: int, seed: int = 0, dtype: Any = jnp.float32) -> jax.Array:
    """Draw an array from the normal distribution."""
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=shape), dtype)


def make_convolve(
    strides: int = 1, padding: Any = "SAME", *, depthwise: bool, dilation: int = 1
) -> Any:
    """Return the function of input and kernel."""
    return lambda x, kernel: convolution.conv_general_dilated(
        x,
        kernel,
        (strides, strides),
        padding,
        lhs_dilation=(1, 1),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] if depthwise else 1,
    )


def make_inputs(shape: tuple[int, ...], k: int, *, depthwise: bool, dtype: Any) -> Any:
    """Draw an image and a kernel, that of a convolution to 5 channels or depthwise."""
    channels = (1, shape[-1]) if depthwise else (shape[-1], 5)
    return normal(*shape, dtype=dtype), normal(k, k, *channels, seed=1, dtype=dtype)


def output_and_gradients(convolve: Any, x: jax.Array, kernel: jax.Array) -> list:
    """Return the output, and the gradients by input and kernel, in float32."""

    # A function of its own each time: what jit has traced inside the context must not
    # be found again outside.
    @jax.jit
    def compute(x: jax.Array, kernel: jax.Array):
        y, pull_back = jax.vjp(convolve, x, kernel)
        cotangent = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
        return (y, *pull_back(cotangent.astype(y.dtype)))

    results = compute(x, kernel)
    for result, like in zip(results, (x, x, kernel), strict=True):
        assert result.dtype == like.dtype
    return [np.asarray(r, np.float32) for r in results]


DEPTHWISE = [
    *itertools.product((3, 5), (1, 2), ["SAME"], (ODD_EVEN, EVEN_ODD)),
    *itertools.product([3], (1, 2), PADDINGS, [EVEN_ODD]),
    # A picture smaller than the window, and a single image of one channel.
    (5, 2, "SAME", (1, 1, 2, 4)),
    (3, 1, "SAME", (1, 6, 6, 1)),
]
POINTWISE = itertools.product([1], (1, 2), ["SAME"], (ODD_EVEN, (1, 1, 1, 3)))
# bfloat16 has 8 bits: 2^-8 for rounding the result once.
HALF = (jnp.bfloat16, 2 * 2**-8)
CASES = [
    *[(True, *case, jnp.float32, 2e-6) for case in DEPTHWISE],
    *[(False, *case, jnp.float32, 2e-6) for case in POINTWISE],
    (True, 3, 2, "SAME", EVEN_ODD, *HALF),
    (False, 1, 1, "SAME", EVEN_ODD, *HALF),
]


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("depthwise, k, strides, padding, shape, dtype, rtol", CASES)
def test_convolutions_and_their_gradients_are_the_plain_ones(
    depthwise, k, strides, padding, shape, dtype, rtol, platform, monkeypatch
):
    # What a GPU would be given, computed here.
    monkeypatch.setattr(convolution.jax, "default_backend", lambda: platform)
    x, kernel = make_inputs(shape, k, depthwise=depthwise, dtype=dtype)
    convolve = make_convolve(strides, padding, depthwise=depthwise)
    fast = output_and_gradients(convolve, x, kernel)
    with plain_convolutions():
        plain = output_and_gradients(convolve, x, kernel)
    for ours, expected in zip(fast, plain, strict=True):
        scale = np.abs(expected).max()
        np.testing.assert_allclose(ours, expected, rtol=0, atol=rtol * scale)


def count_convolutions(convolve: Any, x: jax.Array, kernel: jax.Array) -> int:
    """Count the `lax` convolutions that are traced."""
    # A new function: make_jaxpr remembers what it has traced.
    jaxpr = jax.make_jaxpr(lambda x, kernel: convolve(x, kernel))(x, kernel)
    return str(jaxpr).count("conv_general_dilated[")


@pytest.mark.parametrize(
    "depthwise, k, strides, padding",
    [(True, 3, 2, "SAME"), (True, 3, 1, PADDINGS[2]), (False, 1, 1, "SAME")],
)
def test_one_lax_convolution_is_traced_inside_the_context_and_on_a_tpu(
    depthwise, k, strides, padding, monkeypatch
):
    arrays = make_inputs(EVEN_ODD, k, depthwise=depthwise, dtype=jnp.float32)
    convolve = make_convolve(strides, padding, depthwise=depthwise)
    assert count_convolutions(convolve, *arrays) == 0
    with plain_convolutions():
        assert count_convolutions(convolve, *arrays) == 1
        with plain_convolutions():
            assert count_convolutions(convolve, *arrays) == 1
        assert count_convolutions(convolve, *arrays) == 1
    with pytest.raises(RuntimeError), plain_convolutions():
        raise RuntimeError
    assert count_convolutions(convolve, *arrays) == 0
    for platform, lax_ones in (("tpu", 1), ("gpu", 0 if depthwise else 1)):
        monkeypatch.setattr(convolution.jax, "default_backend", lambda p=platform: p)
        assert count_convolutions(convolve, *arrays) == lax_ones


@pytest.mark.parametrize(
    "kernel, padding, dilation",
    [
        ((3, 3, 3, 5), "SAME", 1),
        ((1, 7, 3, 5), "VALID", 1),
        ((1, 3, 1, 3), "VALID", 1),
        ((3, 3, 1, 3), "SAME", 2),
        ((1, 1, 3, 5), ((1, 1), (0, 0)), 1),
    ],
)
def test_other_convolutions_are_lax_ones_on_a_cpu(kernel, padding, dilation):
    convolve = make_convolve(1, padding, depthwise=kernel[2] == 1, dilation=dilation)
    assert count_convolutions(convolve, normal(*EVEN_ODD), normal(*kernel)) == 1


@pytest.mark.parametrize("fixed_bias", [False, True])
def test_a_layer_is_that_of_flax_but_for_the_gradient_of_a_fixed_bias(fixed_bias):
    x = normal(*EVEN_ODD)
    ours, flax = Conv(4, use_bias=True, fixed_bias=fixed_bias), nn.Conv(4, (1, 1))
    variables = flax.init(jax.random.key(0), x)
    shapes = jax.tree.map(jnp.shape, variables)
    assert jax.tree.map(jnp.shape, ours.init(jax.random.key(1), x)) == shapes
    # A bias of zeros would hide that it is not added.
    variables = jax.tree.map(lambda p: p + 0.1, variables)
    np.testing.assert_allclose(
        ours.apply(variables, x), flax.apply(variables, x), atol=1e-5
    )
    one, other = (
        jax.grad(lambda v, layer=layer: layer.apply(v, x).sum())(variables)["params"]
        for layer in (ours, flax)
    )
    np.testing.assert_allclose(one["kernel"], other["kernel"], rtol=1e-4)
    np.testing.assert_allclose(one["bias"], 0 if fixed_bias else other["bias"])


@pytest.mark.parametrize("groups", [1, 3])
def test_a_layer_that_computes_in_bfloat16_keeps_float32_parameters(groups):
    layer = Conv(3, use_bias=True, feature_group_count=groups, dtype=jnp.bfloat16)
    y, variables = layer.init_with_output(jax.random.key(0), normal(*EVEN_ODD))
    assert y.dtype == jnp.bfloat16
    assert {p.dtype for p in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("shape", [ODD_EVEN, EVEN_ODD, (1, 3, 3, 1)])
@pytest.mark.parametrize("window, strides, padding", [(3, 2, 1), (2, 2, 0), (3, 1, 1)])
def test_max_pool_and_its_gradient_are_the_plain_ones(shape, window, strides, padding):
    # Few distinct values: many windows hold their maximum more than once, and the
    # gradient must go to the same place.
    x = jnp.asarray(np.random.default_rng(0).integers(0, 3, shape), jnp.float32)

    def output_and_gradient() -> tuple[jax.Array, jax.Array]:
        y, pull_back = jax.vjp(
            lambda x: max_pool(x, window=window, strides=strides, padding=padding), x
        )
        return y, pull_back(jnp.arange(1.0, y.size + 1).reshape(y.shape))[0]

    fast = output_and_gradient()
    with plain_convolutions():
        plain = output_and_gradient()
    for ours, expected in zip(fast, plain, strict=True):
        np.testing.assert_array_equal(ours, expected)
