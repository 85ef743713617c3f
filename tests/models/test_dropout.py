"""Stochastic depth: whole images, the same whatever the number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from mela_jax import parallel
from mela_jax.models.dropout import drop_rows
from mela_jax.models.layers import Block, InvertedResidual


def test_whole_images_are_dropped_and_the_rest_scaled():
    x = jnp.ones((4000, 2, 2, 3))
    y = np.asarray(drop_rows(x, jax.random.key(0), 0.25, axis=None))
    rows = y.reshape(4000, -1)
    assert (rows == rows[:, :1]).all()
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}
    # The share that is kept, within four standard errors.
    assert abs((rows[:, 0] > 0).mean() - 0.75) < 4 * np.sqrt(0.25 * 0.75 / 4000)


def test_the_masks_do_not_depend_on_the_devices():
    x, key = jnp.ones((16, 1, 1, 1)), jax.random.key(1)
    spec = PartitionSpec(parallel.BATCH_AXIS)
    spread = jax.shard_map(
        lambda part: drop_rows(part, key, 0.5, axis=parallel.BATCH_AXIS),
        mesh=parallel.make_mesh(),
        in_specs=spec,
        out_specs=spec,
    )
    np.testing.assert_array_equal(spread(x), drop_rows(x, key, 0.5, axis=None))


def test_a_dropped_block_leaves_its_input_and_scoring_drops_none():
    x = jax.random.normal(jax.random.key(2), (8, 4, 4, 8))
    always, never = (
        InvertedResidual(
            Block(2, 8, 3, 1, jax.nn.relu, drop=drop), jnp.float32, bn_axis_name=None
        )
        for drop in (0.999999, 0.0)
    )
    variables = always.init(jax.random.key(3), x, train=False)
    y, _ = always.apply(
        variables,
        x,
        train=True,
        mutable=["batch_stats"],
        rngs={"dropout": jax.random.key(4)},
    )
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(
        always.apply(variables, x, train=False), never.apply(variables, x, train=False)
    )
