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


def assert_rounded_alike(found, expected, step, *, but: float) -> None:
    """Demand the same levels, but for the few values half way between two levels."""
    steps = np.abs(found - expected) / step
    assert np.all(steps < 1.01)
    assert np.mean(steps > 1e-3) < but


@given(st.floats(1e-3, 1e3), st.integers(0, 9))
def test_weights_are_rounded_as_tensorflow_rounds_them(scale, seed):
    kernel = normal(3, 3, 4, 5, scale=scale, seed=seed)
    largest = np.abs(kernel).max((0, 1, 2))
    expected = tf.quantization.fake_quant_with_min_max_vars_per_channel(
        kernel, -largest, largest, num_bits=8, narrow_range=True
    )
    found = fake_quant.fake_quantize_weights(jnp.asarray(kernel))
    assert_rounded_alike(found, expected, largest / 127, but=0.01)


@pytest.mark.parametrize("shift", [-5.0, -0.3, 0.0, 0.7, 5.0])
def test_activations_are_rounded_as_tensorflow_rounds_them(shift):
    x = normal(2, 5, 5, 7) + np.float32(shift)
    low, high = min(x.min(), 0), max(x.max(), 0)
    expected = tf.quantization.fake_quant_with_min_max_args(
        x, float(low), float(high), num_bits=8
    )
    found = fake_quant.fake_quantize_activations(jnp.asarray(x))
    assert_rounded_alike(found, expected, (high - low) / 255, but=0.02)


def test_zero_stays_zero_and_a_relu_loses_no_level():
    x = jnp.maximum(jnp.asarray(normal(1000)), 0)
    found = fake_quant.fake_quantize_activations(x)
    assert np.all(found[x == 0] == 0)
    assert len(np.unique(np.round(found / (x.max() / 255)))) > 150


BOTH = [fake_quant.fake_quantize_weights, fake_quant.fake_quantize_activations]


@pytest.mark.parametrize("rounding", BOTH)
@pytest.mark.parametrize("value", [0.0, 3.0, -2.0])
def test_constant_tensors_are_left_alone(rounding, value):
    x = jnp.full((4, 4), value)
    np.testing.assert_allclose(rounding(x), x, rtol=1e-6)


def test_folding_batch_norm_and_rounding_commute():
    kernel, factor = jnp.asarray(normal(3, 3, 4, 6)), jnp.asarray(normal(6, seed=1))
    np.testing.assert_allclose(
        fake_quant.fake_quantize_weights(kernel * factor),
        fake_quant.fake_quantize_weights(kernel) * factor,
        rtol=1e-4,
        atol=1e-6,
    )


@pytest.mark.parametrize("rounding", BOTH)
def test_the_gradient_passes_straight_through(rounding):
    x = jnp.asarray(normal(6, 5))
    weights = jnp.asarray(normal(6, 5, seed=3))
    gradient = jax.grad(lambda x: jnp.sum(weights * rounding(x)))(x)
    np.testing.assert_array_equal(gradient, weights)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "efficientnet_lite0"])
def test_rounding_adds_no_variables_and_with_finer_levels_vanishes(name, monkeypatch):
    network = create_model(name)
    images = jnp.asarray(np.random.default_rng(1).uniform(0, 255, (8, SIZE, SIZE, 3)))
    init = jax.jit(lambda key: network.init(key, images[:1], train=False))
    variables = init(jax.random.key(0))

    def train(apply):
        run = jax.jit(lambda v: apply(v, images, train=True, mutable=["batch_stats"]))
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
def test_networks_without_a_rounding_are_refused(name):
    network = create_model(name)
    if MODELS[name].trains_rounded:
        assert callable(fake_quant.make_fake_quantized(network))
    else:
        with pytest.raises(ValueError, match=type(network.body).__name__):
            fake_quant.make_fake_quantized(network)


def test_every_student_can_be_trained_rounded():
    students = ("mobilenet_v2", "mobilenet_v3", "efficientnet_lite", "efficientnet_b0")
    students += ("dsnet", "three_block", "tiny_student")
    for name in MODELS:
        assert MODELS[name].trains_rounded or not name.startswith(students)
