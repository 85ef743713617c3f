"""Batch norm with its own gradient against Flax's."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mela_jax.models.normalization import BatchNorm

EPSILON, MOMENTUM = 1e-3, 0.9


def make(kind: Any = BatchNorm, *, train: bool = True, **options: Any) -> nn.Module:
    """Return a layer with the settings that both are held to."""
    return kind(
        use_running_average=not train, epsilon=EPSILON, momentum=MOMENTUM, **options
    )


def variables() -> dict[str, Any]:
    """Return parameters and statistics of 6 channels, not those of the start."""
    rng = np.random.default_rng(1)
    scale, bias, mean, var = (
        jnp.asarray(rng.uniform(low, high, 6), jnp.float32)
        for low, high in ((0.5, 2.0), (-1.0, 1.0), (-1.0, 1.0), (0.5, 2.0))
    )
    return {
        "params": {"scale": scale, "bias": bias},
        "batch_stats": {"mean": mean, "var": var},
    }


def images(dtype: Any = jnp.float32) -> jax.Array:
    """Return float[3, 5, 4, 6] with a mean and a spread for each channel."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(3, 5, 4, 6)) * np.arange(1, 7) + np.arange(-3, 3)
    return jnp.asarray(x, dtype)


def test_variables_and_evaluation_are_those_of_flax():
    ours, flax = (make(kind, train=False) for kind in (BatchNorm, nn.BatchNorm))
    one, other = (
        jax.tree.map(
            lambda a: (a.shape, a.dtype, float(a[0])),
            layer.init(jax.random.key(0), images()),
        )
        for layer in (ours, flax)
    )
    assert one == other
    one, other = (layer.apply(variables(), images()) for layer in (ours, flax))
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(jnp.float32, 2e-5), (jnp.bfloat16, 2e-2)]
)
def test_training_statistics_and_gradients_are_those_of_flax(dtype, tolerance):
    def run(kind: Any) -> Any:
        layer = make(kind, dtype=dtype)
        state = variables()

        def loss(params: Any, x: jax.Array) -> Any:
            y, updates = layer.apply(
                {**state, "params": params}, x, mutable=["batch_stats"]
            )
            assert y.dtype == dtype
            weights = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
            return (jnp.sin(y.astype(jnp.float32)) * weights).sum(), updates

        grads, updates = jax.grad(loss, argnums=(0, 1), has_aux=True)(
            state["params"], images(dtype)
        )
        assert grads[1].dtype == dtype
        return jax.tree.map(lambda a: np.asarray(a, np.float32), (grads, updates))

    ours, flax = run(BatchNorm), run(nn.BatchNorm)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(flax), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def test_statistics_and_scale_stay_float32_in_bfloat16():
    layer = make(dtype=jnp.bfloat16)
    x = images(jnp.bfloat16)
    state = layer.init(jax.random.key(0), x)
    _, updates = layer.apply(state, x, mutable=["batch_stats"])
    assert {a.dtype for a in jax.tree.leaves((state, updates))} == {jnp.dtype("f4")}


def test_split_batch_with_an_axis_name_is_the_whole_batch():
    x = images()[:2]
    state = variables()

    def loss(layer: nn.Module, x: jax.Array, params: Any) -> Any:
        y, updates = layer.apply(
            {**state, "params": params}, x, mutable=["batch_stats"]
        )
        return (y**3).mean(), updates

    whole = jax.grad(loss, argnums=(1, 2), has_aux=True)
    (grad_x, grad_params), updates = whole(make(), x, state["params"])
    layer = make(axis_name="rows")
    # vmap with an axis name averages as devices do.
    (rows_x, rows_params), rows_updates = jax.vmap(
        lambda row: whole(layer, row, state["params"]), axis_name="rows"
    )(x[:, None])
    # A row's loss is the mean over half of the images.
    np.testing.assert_allclose(rows_x[:, 0] / 2, grad_x, rtol=1e-4, atol=1e-6)
    for name, value in grad_params.items():
        mean = rows_params[name].mean(0)
        np.testing.assert_allclose(mean, value, rtol=1e-4, atol=1e-6)
    for name, value in updates["batch_stats"].items():
        for row in rows_updates["batch_stats"][name]:
            np.testing.assert_allclose(row, value, rtol=1e-5)


def test_a_constant_channel_gives_finite_values():
    x = jnp.full((2, 3, 3, 6), 1000.3)
    y, _ = make().apply(variables(), x, mutable=["batch_stats"])
    # E[x^2] - E[x]^2 of a constant is rounding, which may be negative.
    assert np.isfinite(y).all()
