"""Channels' inner products and gates: by hand, by definition, by invariance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mela_jax.distill.maps import attention_loss, channel_loss

RNG = np.random.default_rng(0)


def maps(*shape: int) -> np.ndarray:
    return RNG.normal(0, 1, shape).astype(np.float32)


def test_one_pixel_by_hand():
    ours, theirs = (jnp.asarray([[[pixel]]]) for pixel in ([1.0, 0.0], [0.0, 1.0]))
    assert float(channel_loss(ours, theirs)) == pytest.approx(0.353553, abs=1e-5)


def test_channels_are_those_written_out_with_all_their_products():
    ours, theirs = maps(3, 4, 5, 6), maps(3, 4, 5, 6)

    def gram(x: np.ndarray) -> np.ndarray:
        flat = x.reshape(3, 20, 6).astype(np.float64)
        return np.einsum("npc,npd->ncd", flat, flat) / (6 * 20)

    expected = np.sqrt(np.mean((gram(ours) - gram(theirs)) ** 2))
    assert float(channel_loss(ours, theirs)) == pytest.approx(expected, rel=1e-4)


def test_order_of_places_does_not_count_and_that_of_channels_must_agree():
    ours, theirs = maps(2, 3, 3, 4), maps(2, 3, 3, 4)
    plain = float(channel_loss(ours, theirs))
    turned = np.rot90(ours, axes=(1, 2))
    assert float(channel_loss(turned, theirs)) == pytest.approx(plain, rel=1e-5)
    both = channel_loss(ours[..., ::-1], theirs[..., ::-1])
    assert float(both) == pytest.approx(plain, rel=1e-5)
    one = float(channel_loss(ours[..., ::-1], theirs))
    assert one != pytest.approx(plain, rel=1e-3)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_equal_maps_have_a_finite_gradient(scale):
    x = scale * maps(2, 3, 3, 4)
    value, gradient = jax.value_and_grad(channel_loss)(x, x)
    # What rounding leaves of the difference of equal numbers.
    assert float(value) <= 1e-3 * scale**2
    assert np.isfinite(gradient).all()


def test_no_gradient_flows_into_the_teacher():
    x, y = maps(2, 3, 3, 4), maps(2, 3, 3, 4)
    assert not np.any(jax.grad(channel_loss, argnums=1)(x, y))
    gates = x[..., :1], y[..., :1]
    by_teacher = jax.grad(lambda a, b: attention_loss(a, b).sum(), argnums=1)(*gates)
    assert not np.any(by_teacher)


def test_maps_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        channel_loss(maps(2, 3, 3, 4), maps(2, 3, 3, 5))


def test_gates_of_one_and_zero_differ_by_one():
    ones, zeros = jnp.ones((2, 7, 7, 1)), jnp.zeros((2, 7, 7, 1))
    np.testing.assert_array_equal(attention_loss(ones, zeros), [1, 1])


def test_a_finer_gate_is_averaged_over_areas():
    board = np.indices((14, 14)).sum(0) % 2
    teacher = jnp.asarray(board, jnp.float32)[None, :, :, None]
    half = jnp.full((1, 7, 7, 1), 0.5)
    assert float(attention_loss(half, teacher)[0]) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("size", "to"), [(12, 7), (7, 7), (10, 3)])
def test_areas_share_the_cells_at_their_edges(size, to):
    # A line of values against its integral over each area.
    line = RNG.uniform(size=size)
    total = np.concatenate([[0], np.cumsum(line)])
    edges = np.interp(np.arange(to + 1) * size / to, np.arange(size + 1), total)
    means = np.diff(edges) * to / size
    teacher = np.broadcast_to(line[:, None], (size, size))[None, :, :, None]
    student = np.broadcast_to(means[:, None], (to, to))[None, :, :, None]
    found = attention_loss(jnp.asarray(student), jnp.asarray(teacher))
    assert float(found[0]) == pytest.approx(0, abs=1e-10)
