"""The soft loss against SciPy in float64, and the checks on its targets."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, log_softmax, rel_entr, softmax

from mela_jax.distill.logits import binary_kd, check_are_logits, total_loss
from mela_jax.errors import UserError

TEMPERATURES = [1.0, 2.0, 4.0]
GRID = np.linspace(-9, 9, 13)
STUDENT, TEACHER = (a.ravel() for a in np.meshgrid(GRID, GRID - 0.3))


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_binary_kd_is_the_divergence_of_two_coins_by_scipy(temperature: float):
    p, q = expit(TEACHER / temperature), expit(STUDENT / temperature)
    kl = rel_entr(p, q) + rel_entr(expit(-TEACHER / temperature), 1 - q)
    ours = binary_kd(STUDENT, TEACHER, temperature=temperature)
    np.testing.assert_allclose(ours, temperature**2 * kl, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_binary_kd_is_softmax_distillation_with_the_logits_0_and_z(temperature: float):
    def two_classes(z: np.ndarray) -> np.ndarray:
        return np.stack([np.zeros_like(z), z], axis=-1) / temperature

    targets = softmax(two_classes(TEACHER), axis=-1)
    difference = log_softmax(two_classes(TEACHER), axis=-1) - log_softmax(
        two_classes(STUDENT), axis=-1
    )
    expected = temperature**2 * (targets * difference).sum(axis=-1)
    ours = binary_kd(STUDENT, TEACHER, temperature=temperature)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_gradient_is_temperature_times_the_difference_of_probabilities(
    temperature: float,
):
    gradient = jax.grad(lambda z: binary_kd(z, TEACHER, temperature=temperature).sum())(
        jnp.asarray(STUDENT, jnp.float32)
    )
    expected = temperature * (
        expit(STUDENT / temperature) - expit(TEACHER / temperature)
    )
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)


def test_gradient_keeps_its_size_as_the_temperature_grows():
    # Hinton's reason for T^2: the gradient tends to (z_s - z_t) / 4, T gone.
    gradient = jax.grad(lambda z: binary_kd(z, jnp.array(-1.0), temperature=1000.0))(
        jnp.array(3.0)
    )
    assert float(gradient) == pytest.approx((3.0 + 1.0) / 4, rel=1e-3)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_soft_loss_is_zero_where_student_and_teacher_agree_and_only_there(
    temperature: float,
):
    z = jnp.array([-1e4, -30.0, -2.0, 0.0, 0.5, 8.0, 1e4])
    np.testing.assert_array_equal(binary_kd(z, z, temperature=temperature), 0.0)
    near = jnp.array([-2.0, 0.0, 0.5, 8.0])
    for other in (near - 0.5, near + 0.5):
        assert (binary_kd(other, near, temperature=temperature) > 0).all()


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_soft_loss_and_gradient_stay_finite_for_huge_logits(temperature: float):
    extremes = jnp.array([-1e4, -100.0, 0.0, 100.0, 1e4])
    student, teacher = (a.ravel() for a in jnp.meshgrid(extremes, extremes))
    loss = binary_kd(student, teacher, temperature=temperature)
    gradient = jax.grad(lambda z: binary_kd(z, teacher, temperature=temperature).sum())(
        student
    )
    assert np.isfinite(loss).all()
    assert np.isfinite(gradient).all()
    # Certain of opposite answers: T^2 * |z| / T.
    far = binary_kd(jnp.array(-1e4), jnp.array(1e4), temperature=temperature)
    assert float(far) == pytest.approx(1e4 * temperature, rel=1e-6)


def test_no_gradient_flows_into_the_teacher():
    gradient = jax.grad(
        lambda z: binary_kd(jnp.asarray(STUDENT), z, temperature=2.0).sum()
    )(jnp.asarray(TEACHER, jnp.float32))
    np.testing.assert_array_equal(gradient, 0.0)


def test_teacher_logits_of_another_shape_are_refused():
    with pytest.raises(ValueError):
        binary_kd(jnp.zeros(4), jnp.zeros((4, 1)), temperature=2.0)


@hypothesis.given(
    student=st.floats(-1e4, 1e4, width=32),
    teacher=st.floats(-1e4, 1e4, width=32),
    temperature=st.sampled_from(TEMPERATURES),
)
def test_soft_loss_is_never_negative(
    student: float, teacher: float, temperature: float
):
    loss = binary_kd(np.float32(student), np.float32(teacher), temperature=temperature)
    assert np.isfinite(loss)
    assert float(loss) >= -1e-6 * temperature**2


@hypothesis.given(
    student=st.floats(-20, 20, width=32), teacher=st.floats(-20, 20, width=32)
)
def test_soft_loss_is_the_same_when_the_classes_change_names(
    student: float, teacher: float
):
    one = binary_kd(np.float32(student), np.float32(teacher), temperature=2.0)
    other = binary_kd(np.float32(-student), np.float32(-teacher), temperature=2.0)
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_alpha_is_the_share_of_the_soft_loss():
    hard, soft = jnp.array([1.0, 2.0]), jnp.array([10.0, 20.0])
    np.testing.assert_array_equal(total_loss(hard, soft, alpha=0.0), hard)
    np.testing.assert_array_equal(total_loss(hard, soft, alpha=1.0), soft)
    np.testing.assert_allclose(total_loss(hard, soft, alpha=0.25), [3.25, 6.5])


def test_probabilities_are_refused_as_soft_targets():
    probabilities = expit(np.linspace(-5, 5, 50))
    with pytest.raises(UserError, match="some teacher: all 50 outputs .* logits"):
        check_are_logits(probabilities, source="some teacher")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_targets_that_are_not_finite_are_refused(bad: float):
    with pytest.raises(UserError, match="not all finite"):
        check_are_logits(np.array([-3.0, bad, 2.0]), source="teacher")


@pytest.mark.parametrize(
    "logits", [[-0.01, 0.3, 0.9], [0.2, 1.01], [-4.0, 5.0]], ids=str
)
def test_logits_are_accepted_as_soft_targets(logits: list[float]):
    check_are_logits(np.array(logits), source="teacher")
