"""Fake quantization against TensorFlow's.

Where in a network it is applied is tested beside the export, against its files.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from mela_jax.models import fake_quant
from mela_jax.models.zoo import MODELS, create_model

SIZE = 32


def normal(*shape, scale=1.0, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


@given(st.floats(1e-3, 1e3), st.integers(0, 9))
def test_weights_are_rounded_as_tensorflow_rounds_them(scale, seed):
    kernel = normal(3, 3, 4, 5, scale=scale, seed=seed)
    largest = np.abs(kernel).max((0, 1, 2))
    expected = tf.quantization.fake_quant_with_min_max_vars_per_channel(
        kernel, -largest, largest, num_bits=8, narrow_range=True
    )
    found = fake_quant.fake_quantize_weights(jnp.asarray(kernel))
    # A value half way between two levels may fall to either.
    step = largest / 127
    assert np.all(np.abs(found - expected) < 1.01 * step)
    assert np.mean(np.abs(found - expected) > 1e-3 * step) < 0.01


@pytest.mark.parametrize("shift", [-5.0, -0.3, 0.0, 0.7, 5.0])
def test_activations_are_rounded_as_tensorflow_rounds_them(shift):
    x = normal(2, 5, 5, 7) + np.float32(shift)
    low, high = min(x.min(), 0), max(x.max(), 0)
    expected = tf.quantization.fake_quant_with_min_max_args(
        x, float(low), float(high), num_bits=8
    )
    found = fake_quant.fake_quantize_activations(jnp.asarray(x))
    step = (high - low) / 255
    assert np.all(np.abs(found - expected) < 1.01 * step)
    assert np.mean(np.abs(found - expected) > 1e-2 * step) < 0.02


def test_zero_stays_zero_and_a_relu_loses_no_level():
    x = jnp.maximum(jnp.asarray(normal(1000)), 0)
    found = fake_quant.fake_quantize_activations(x)
    assert np.all(found[x == 0] == 0)
    assert len(np.unique(np.round(found / (x.max() / 255)))) > 150


def test_constant_tensors_are_left_alone():
    for value in (0.0, 3.0, -2.0):
        x = jnp.full((4, 4), value)
        np.testing.assert_allclose(
            fake_quant.fake_quantize_activations(x), x, rtol=1e-6
        )
        np.testing.assert_allclose(fake_quant.fake_quantize_weights(x), x, rtol=1e-6)


def test_folding_batch_norm_and_rounding_commute():
    kernel, factor = jnp.asarray(normal(3, 3, 4, 6)), jnp.asarray(normal(6, seed=1))
    np.testing.assert_allclose(
        fake_quant.fake_quantize_weights(kernel * factor),
        fake_quant.fake_quantize_weights(kernel) * factor,
        rtol=1e-4,
        atol=1e-6,
    )


@pytest.mark.parametrize(
    "rounding",
    [fake_quant.fake_quantize_weights, fake_quant.fake_quantize_activations],
)
def test_the_gradient_passes_straight_through(rounding):
    x = jnp.asarray(normal(6, 5))
    weights = jnp.asarray(normal(6, 5, seed=3))
    gradient = jax.grad(lambda x: jnp.sum(weights * rounding(x)))(x)
    np.testing.assert_array_equal(gradient, weights)


@pytest.fixture(scope="module", params=["mobilenet_v3_small", "efficientnet_lite0"])
def network(request):
    return create_model(request.param)


@pytest.fixture(scope="module")
def variables(network):
    image = jnp.zeros((1, SIZE, SIZE, 3))
    init = jax.jit(lambda key: network.init(key, image, train=False))
    return init(jax.random.key(0))


def test_rounding_adds_no_variables_and_with_finer_levels_vanishes(
    network, variables, monkeypatch
):
    images = jnp.asarray(np.random.default_rng(1).uniform(0, 255, (8, SIZE, SIZE, 3)))
    rng = {"dropout": jax.random.key(0)}

    def train(apply):
        run = jax.jit(
            lambda v: apply(v, images, train=True, mutable=["batch_stats"], rngs=rng)
        )
        return run(variables)

    plain, plain_stats = train(network.apply)
    rounded, rounded_stats = train(fake_quant.make_fake_quantized(network))
    assert jax.tree.structure(plain_stats) == jax.tree.structure(rounded_stats)
    # A random network of fifty layers amplifies the rounding of eight bits; that of
    # sixteen it must not show.
    monkeypatch.setattr(fake_quant, "_WEIGHT_LEVELS", 2**15 - 1)
    monkeypatch.setattr(fake_quant, "_ACTIVATION_LEVELS", 2**16 - 1)
    fine, _ = train(fake_quant.make_fake_quantized(network))
    coarse_difference, fine_difference = (
        np.abs(plain.logits - found.logits).max() for found in (rounded, fine)
    )
    assert coarse_difference > 0
    assert fine_difference < 0.05 * np.std(plain.logits)
    assert fine_difference < 0.05 * coarse_difference


@pytest.mark.parametrize("name", MODELS)
def test_a_network_trains_rounded_or_is_refused(name):
    network = create_model(name)
    if MODELS[name].trains_rounded:
        assert callable(fake_quant.make_fake_quantized(network))
    else:
        with pytest.raises(ValueError, match=type(network.body).__name__):
            fake_quant.make_fake_quantized(network)


def test_resnet_alone_cannot_be_trained_rounded():
    assert [n for n in MODELS if not MODELS[n].trains_rounded] == ["resnet50"]
