"""The convolutions written out for a CPU against the plain ones and TensorFlow's."""

import contextlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mela_jax.models import convolution
from mela_jax.models.convolution import (
    DepthwiseConv,
    PointwiseConv,
    depthwise_conv,
    max_pool,
    plain_convolutions,
    pointwise_conv,
)

ODD_EVEN = (2, 7, 8, 3)  # batch, height, width, channels
EVEN_ODD = (2, 10, 9, 3)
PADDINGS = {
    "SAME": "SAME",
    "none": ((0, 0), (0, 0)),
    "symmetric": ((2, 2), (2, 2)),
    "lopsided": ((0, 1), (2, 0)),
    # More than the window is wide: an output that sees no pixel at all.
    "wide": ((5, 0), (1, 5)),
}


def normal(*shape: int, seed: int = 0, dtype: Any = jnp.float32) -> jax.Array:
    """Draw an array from the normal distribution."""
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=shape), dtype)


def output_and_gradients(
    convolve: Any, x: jax.Array, kernel: jax.Array, *, plain: bool
) -> list[np.ndarray]:
    """Return the output, and the gradients by input and kernel, in float32."""

    # A function of its own each time: what jit has traced inside the context must not
    # be found again outside.
    @jax.jit
    def compute(x: jax.Array, kernel: jax.Array):
        y, pull_back = jax.vjp(convolve, x, kernel)
        cotangent = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
        return (y, *pull_back(cotangent.astype(y.dtype)))

    if plain:
        with plain_convolutions():
            results = compute(x, kernel)
    else:
        results = compute(x, kernel)
    for result, like in zip(results, (x, x, kernel), strict=True):
        assert result.dtype == like.dtype
    return [np.asarray(r, np.float32) for r in results]


def assert_same(convolve: Any, x: jax.Array, kernel: jax.Array, *, rtol: float) -> None:
    """Compare both lowerings, with `rtol` relative to each array's largest value."""
    fast = output_and_gradients(convolve, x, kernel, plain=False)
    plain = output_and_gradients(convolve, x, kernel, plain=True)
    for what, ours, expected in zip(
        ("output", "input gradient", "kernel gradient"), fast, plain, strict=True
    ):
        scale = np.abs(expected).max()
        np.testing.assert_allclose(
            ours, expected, rtol=0, atol=rtol * scale, err_msg=what
        )


def depthwise(strides: int, padding: Any) -> Any:
    """Return the function of input and kernel."""
    return lambda x, kernel: depthwise_conv(x, kernel, strides=strides, padding=padding)


@pytest.mark.parametrize("shape", [ODD_EVEN, EVEN_ODD], ids=str)
@pytest.mark.parametrize("k", [3, 5])
@pytest.mark.parametrize("strides", [1, 2])
def test_depthwise_and_its_gradients_are_the_plain_ones(
    strides: int, k: int, shape: tuple[int, ...]
):
    kernel = normal(k, k, 1, shape[-1], seed=1)
    assert_same(depthwise(strides, "SAME"), normal(*shape), kernel, rtol=2e-6)


@pytest.mark.parametrize("padding", [p for p in PADDINGS if p != "SAME"])
@pytest.mark.parametrize("strides", [1, 2])
def test_depthwise_with_explicit_padding_is_the_plain_one(strides: int, padding: str):
    kernel = normal(3, 3, 1, 3, seed=1)
    convolve = depthwise(strides, PADDINGS[padding])
    assert_same(convolve, normal(*EVEN_ODD), kernel, rtol=2e-6)


def test_depthwise_of_a_picture_smaller_than_the_window_is_the_plain_one():
    kernel = normal(5, 5, 1, 4, seed=1)
    assert_same(depthwise(2, "SAME"), normal(1, 1, 2, 4), kernel, rtol=2e-6)


def test_depthwise_of_a_single_image_and_channel_is_the_plain_one():
    kernel = normal(3, 3, 1, 1, seed=1)
    assert_same(depthwise(1, "SAME"), normal(1, 6, 6, 1), kernel, rtol=2e-6)


def test_depthwise_in_bfloat16_is_the_plain_one_to_its_precision():
    x = normal(*EVEN_ODD, dtype=jnp.bfloat16)
    kernel = normal(3, 3, 1, 3, seed=1, dtype=jnp.bfloat16)
    # bfloat16 has 8 bits: 2^-8 for rounding the result once.
    assert_same(depthwise(2, "SAME"), x, kernel, rtol=2 * 2**-8)


@pytest.mark.parametrize("shape", [ODD_EVEN, (1, 1, 1, 3)], ids=str)
@pytest.mark.parametrize("strides", [1, 2])
def test_pointwise_and_its_gradients_are_the_plain_ones(
    strides: int, shape: tuple[int, ...]
):
    kernel = normal(1, 1, shape[-1], 5, seed=1)
    assert_same(
        lambda x, kernel: pointwise_conv(x, kernel, strides=strides),
        normal(*shape),
        kernel,
        rtol=2e-6,
    )


def test_pointwise_in_bfloat16_is_the_plain_one_to_its_precision():
    assert_same(
        pointwise_conv,
        normal(*EVEN_ODD, dtype=jnp.bfloat16),
        normal(1, 1, 3, 5, seed=1, dtype=jnp.bfloat16),
        rtol=2 * 2**-8,
    )


CALLS = {
    "depthwise": (depthwise(2, "SAME"), (3, 3, 1, 3)),
    "depthwise, padded": (depthwise(1, PADDINGS["lopsided"]), (3, 3, 1, 3)),
    "pointwise": (pointwise_conv, (1, 1, 3, 5)),
}


@pytest.mark.parametrize("name", CALLS)
def test_one_lax_convolution_is_traced_inside_the_context_and_none_outside(name: str):
    convolve, kernel_shape = CALLS[name]
    x, kernel = normal(*EVEN_ODD), normal(*kernel_shape)

    def num_convolutions() -> int:
        # A new function: make_jaxpr remembers what it has traced.
        jaxpr = jax.make_jaxpr(lambda x, kernel: convolve(x, kernel))(x, kernel)
        return str(jaxpr).count("conv_general_dilated[")

    assert num_convolutions() == 0
    with plain_convolutions():
        assert num_convolutions() == 1
        with plain_convolutions():
            assert num_convolutions() == 1
        assert num_convolutions() == 1
    assert num_convolutions() == 0


def test_an_error_inside_the_context_ends_it():
    with pytest.raises(RuntimeError), plain_convolutions():
        raise RuntimeError
    x, kernel = normal(*EVEN_ODD), normal(1, 1, 3, 5)
    jaxpr = jax.make_jaxpr(lambda x, kernel: pointwise_conv(x, kernel))(x, kernel)
    assert "conv_general_dilated" not in str(jaxpr)


@pytest.mark.parametrize("name", CALLS)
def test_another_platform_gets_one_lax_convolution(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(convolution.jax, "default_backend", lambda: "tpu")
    convolve, kernel_shape = CALLS[name]
    jaxpr = jax.make_jaxpr(lambda x, kernel: convolve(x, kernel))(
        normal(*EVEN_ODD), normal(*kernel_shape)
    )
    assert str(jaxpr).count("conv_general_dilated[") == 1


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("k", [3, 5])
def test_depthwise_is_that_of_tensorflow(strides: int, k: int):
    tf = pytest.importorskip("tensorflow")
    x, kernel = normal(*EVEN_ODD), normal(k, k, 1, 3, seed=1)
    expected = tf.nn.depthwise_conv2d(
        np.asarray(x),
        np.asarray(kernel).transpose(0, 1, 3, 2),
        strides=[1, strides, strides, 1],
        padding="SAME",
    ).numpy()
    ours = depthwise_conv(x, kernel, strides=strides, padding="SAME")
    np.testing.assert_allclose(ours, expected, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("strides", [1, 2])
def test_pointwise_is_that_of_tensorflow(strides: int):
    tf = pytest.importorskip("tensorflow")
    x, kernel = normal(*ODD_EVEN), normal(1, 1, 3, 5, seed=1)
    expected = tf.nn.conv2d(
        np.asarray(x), np.asarray(kernel), strides=strides, padding="SAME"
    ).numpy()
    ours = pointwise_conv(x, kernel, strides=strides)
    np.testing.assert_allclose(ours, expected, atol=2e-6 * np.abs(expected).max())


def test_layers_are_those_of_flax_with_the_same_parameters():
    x = normal(*EVEN_ODD)
    pairs = [
        (
            DepthwiseConv(5, strides=2),
            nn.Conv(3, (5, 5), strides=2, feature_group_count=3, use_bias=False),
        ),
        (PointwiseConv(4, use_bias=True), nn.Conv(4, (1, 1))),
        (PointwiseConv(4, strides=2), nn.Conv(4, (1, 1), strides=2, use_bias=False)),
    ]
    for ours, theirs in pairs:
        variables = theirs.init(jax.random.key(0), x)
        shapes = jax.tree.map(jnp.shape, variables)
        assert jax.tree.map(jnp.shape, ours.init(jax.random.key(1), x)) == shapes
        # A bias of zeros would hide that it is not added.
        variables = jax.tree.map(lambda p: p + 0.1, variables)
        np.testing.assert_allclose(
            ours.apply(variables, x), theirs.apply(variables, x), atol=1e-5
        )


def test_layers_that_compute_in_bfloat16_keep_float32_parameters():
    x = normal(*EVEN_ODD)
    for layer in (
        DepthwiseConv(3, dtype=jnp.bfloat16),
        PointwiseConv(4, use_bias=True, dtype=jnp.bfloat16),
    ):
        y, variables = layer.init_with_output(jax.random.key(0), x)
        assert y.dtype == jnp.bfloat16
        assert {p.dtype for p in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("shape", [ODD_EVEN, EVEN_ODD, (1, 3, 3, 1)])
@pytest.mark.parametrize(
    ("window", "strides", "padding"), [(3, 2, 1), (2, 2, 0), (3, 1, 1)]
)
def test_max_pool_and_its_gradient_are_the_plain_ones(
    shape: tuple[int, ...], window: int, strides: int, padding: int
):
    # Few distinct values: many windows hold their maximum more than once, and the
    # gradient must go to the same place.
    x = jnp.asarray(np.random.default_rng(0).integers(0, 3, shape), jnp.float32)

    def gradient(plain: bool) -> tuple[np.ndarray, np.ndarray]:
        def pool(x: jax.Array) -> jax.Array:
            return max_pool(x, window=window, strides=strides, padding=padding)

        context = plain_convolutions() if plain else contextlib.nullcontext()
        with context:
            y, pull_back = jax.vjp(pool, x)
            cotangent = jnp.arange(1.0, y.size + 1).reshape(y.shape)
            return np.asarray(y), np.asarray(pull_back(cotangent)[0])

    for fast, plain in zip(gradient(False), gradient(True), strict=True):
        np.testing.assert_array_equal(fast, plain)
