"""Distances and angles between images, by hand and by their invariances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import ortho_group

from mela_jax.distill.relations import angle_loss, distance_loss

LOSSES = {"distance": distance_loss, "angle": angle_loss}
RNG = np.random.default_rng(0)
# Teacher: 0, 3, 6 on a line. Student: an equilateral triangle.
LINE = jnp.array([[0.0, 0.0], [3.0, 0.0], [6.0, 0.0]])
TRIANGLE = jnp.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(0.75)]])


def smooth_l1(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < 1, 0.5 * x**2, np.abs(x) - 0.5)


def test_a_line_and_a_triangle_by_hand():
    assert float(distance_loss(TRIANGLE, LINE)) == pytest.approx(0.0416667, abs=1e-6)
    assert float(angle_loss(TRIANGLE, LINE)) == pytest.approx(0.0925926, abs=1e-6)


def test_distances_and_angles_are_those_written_out_in_float64():
    student, teacher = RNG.normal(0, 2, (12, 5)), RNG.normal(3, 1, (12, 8))

    def distances(x: np.ndarray) -> np.ndarray:
        d = cdist(x, x)
        return d / d[d > 0].mean()

    def cosines(x: np.ndarray) -> np.ndarray:
        e = x[None] - x[:, None]
        e /= np.maximum(np.linalg.norm(e, axis=-1, keepdims=True), 1e-12)
        return np.einsum("abf,acf->abc", e, e)

    for loss, of in ((distance_loss, distances), (angle_loss, cosines)):
        expected = smooth_l1(of(student) - of(teacher)).mean()
        found = loss(jnp.asarray(student), jnp.asarray(teacher))
        assert float(found) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_rotation_shift_and_scale_change_nothing(name: str):
    student, teacher = RNG.normal(0, 1, (10, 6)), RNG.normal(0, 1, (10, 6))
    turned = 3.7 * teacher @ ortho_group.rvs(6, random_state=0) + 20.0
    expected = float(LOSSES[name](jnp.asarray(student), jnp.asarray(teacher)))
    found = LOSSES[name](jnp.asarray(student), jnp.asarray(turned))
    assert float(found) == pytest.approx(expected, rel=1e-3)
    same = LOSSES[name](jnp.asarray(turned), jnp.asarray(teacher))
    assert float(same) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("case", ["equal", "two rows alike", "all alike", "huge"])
def test_loss_and_gradient_are_finite(name: str, case: str):
    student = RNG.normal(0, 1, (6, 4))
    teacher = student.copy()
    if case == "two rows alike":
        student[3] = student[1]
    elif case == "all alike":
        student[:] = student[0]
    elif case == "huge":
        student *= 1e4
        teacher = RNG.normal(0, 1e4, (6, 4))
    value, gradient = jax.value_and_grad(LOSSES[name])(
        jnp.asarray(student, jnp.float32), jnp.asarray(teacher, jnp.float32)
    )
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    if case == "equal":
        assert float(value) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_the_teacher_gets_no_gradient_and_the_students_is_that_of_differences(
    name: str,
):
    student, teacher = (jnp.asarray(RNG.normal(0, 1, (5, 3))) for _ in range(2))
    loss = LOSSES[name]
    ours, theirs = jax.grad(loss, argnums=(0, 1))(student, teacher)
    np.testing.assert_array_equal(theirs, 0.0)
    step = 1e-2
    for row, column in ((0, 0), (2, 1), (4, 2)):
        moved = [student.at[row, column].add(s * step) for s in (1, -1)]
        slope = (loss(moved[0], teacher) - loss(moved[1], teacher)) / (2 * step)
        assert float(ours[row, column]) == pytest.approx(float(slope), abs=1e-3)
