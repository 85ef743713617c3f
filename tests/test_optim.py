"""The optimizer: its schedule, what it decays, what it clips."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest

from mela_jax import optim


@pytest.mark.parametrize(
    ("total", "warmup"), [(110, 10), (100, 0), (5, 500), (2, 500), (1, 500)]
)
def test_schedule_warms_up_to_the_peak_and_ends_at_zero(total: int, warmup: int):
    schedule = optim.make_schedule(
        learning_rate=0.4, total_steps=total, warmup_steps=warmup
    )
    # A warm-up longer than the run still trains.
    warmup = min(warmup, total - 1)
    for step in range(total + 1):
        # Half a cosine over the steps that follow the warm-up.
        cosine = 0.4 * (1 + np.cos(np.pi * (step - warmup) / (total - warmup))) / 2
        expected = 0.4 * step / warmup if step < warmup else cosine
        assert float(schedule(step)) == pytest.approx(expected, rel=1e-5, abs=1e-7)


def parameters() -> dict[str, dict[str, jax.Array]]:
    """Make the kinds of parameters that the networks have."""
    return {
        "conv": {"kernel": jnp.full((3, 3, 2, 4), 2.0)},
        "bn": {"scale": jnp.full(4, 2.0), "bias": jnp.full(4, 2.0)},
        "logits": {"kernel": jnp.full((4, 1), 2.0), "bias": jnp.full(1, 2.0)},
    }


def updates_of(gradients, *, weight_decay: float, clip_norm: float):
    """Return the first step's updates, at a learning rate of 0.1."""
    params = parameters()
    optimizer = optim.make_optimizer(
        learning_rate=0.1,
        total_steps=100,
        warmup_steps=0,
        weight_decay=weight_decay,
        clip_norm=clip_norm,
    )
    return optimizer.update(gradients, optimizer.init(params), params)


def test_weight_decay_shrinks_kernels_but_not_batch_norm_and_biases():
    zeros = jax.tree.map(jnp.zeros_like, parameters())
    updates, _ = updates_of(zeros, weight_decay=0.5, clip_norm=0.0)
    for layer in ("conv", "logits"):
        np.testing.assert_allclose(updates[layer]["kernel"], -0.1 * 0.5 * 2.0)
    for vector in (updates["bn"]["scale"], updates["bn"]["bias"]):
        np.testing.assert_array_equal(vector, 0.0)
    np.testing.assert_array_equal(updates["logits"]["bias"], 0.0)


@pytest.mark.parametrize(("clip_norm", "scale"), [(0.0, 1.0), (1e6, 1.0), (0.5, None)])
def test_gradient_is_clipped_by_its_global_norm(clip_norm: float, scale: float | None):
    gradients = jax.tree.map(lambda p: 3.0 * jnp.ones_like(p), parameters())
    if scale is None:
        scale = clip_norm / float(optax.global_norm(gradients))
    _, state = updates_of(gradients, weight_decay=0.0, clip_norm=clip_norm)
    # Adam's step does not show the gradient's size; its first moment does.
    moment = optax.tree_utils.tree_get(state, "mu")
    for leaf in jax.tree.leaves(moment):
        np.testing.assert_allclose(leaf, (1 - 0.9) * 3.0 * scale, rtol=1e-5)


@pytest.mark.parametrize("warmup", [0, 4])
def test_a_constant_rate_stays_after_its_warm_up(warmup: int):
    schedule = optim.make_schedule(
        learning_rate=0.4, total_steps=20, warmup_steps=warmup, kind="constant"
    )
    for step in range(20):
        expected = 0.4 * min(1.0, step / warmup) if warmup else 0.4
        assert float(schedule(step)) == pytest.approx(expected, abs=1e-7)


# What Keras and the published methods call them, with no warm-up and a constant rate.
KERAS = {
    "adam": lambda: keras.optimizers.Adam(0.1, epsilon=1e-8),
    "adadelta": lambda: keras.optimizers.Adadelta(0.1, rho=0.95, epsilon=1e-7),
    "sgd": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
}


@pytest.mark.parametrize("name", KERAS)
def test_optimizers_take_the_steps_of_keras(name: str):
    rng = np.random.default_rng(0)
    start = rng.normal(size=(3, 4)).astype(np.float32)
    variable = keras.Variable(start)
    theirs = KERAS[name]()
    ours = optim.make_optimizer(
        learning_rate=0.1,
        total_steps=10,
        warmup_steps=0,
        weight_decay=0.5,
        clip_norm=0.0,
        optimizer=name,
        schedule="constant",
    )
    params = {"bias": jnp.asarray(start)}
    state = ours.init(params)
    for _ in range(4):
        gradient = rng.normal(size=start.shape).astype(np.float32)
        # Weight decay is a part of the gradient, of biases too.
        theirs.apply([gradient + 0.5 * np.asarray(variable)], [variable])
        updates, state = ours.update({"bias": jnp.asarray(gradient)}, state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params["bias"], variable, rtol=1e-4, atol=1e-6)
