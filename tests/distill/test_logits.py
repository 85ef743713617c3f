"""The soft loss against SciPy in float64, and the checks on its targets."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, log_softmax, rel_entr, softmax

from mela_jax.distill.logits import average_teachers, check_are_logits, tempered_kl
from mela_jax.errors import UserError

TEMPERATURES = [1.0, 2.0, 4.0]
GRID = np.linspace(-9, 9, 13)
STUDENT, TEACHER = (a.ravel() for a in np.meshgrid(GRID, GRID - 0.3))


def binary_kd(student, teacher, *, temperature):
    """Return the loss of one logit, of arrays of any shape."""
    student, teacher = (jnp.asarray(z, jnp.float32) for z in (student, teacher))
    loss = tempered_kl(
        student.reshape(-1, 1), teacher.reshape(-1, 1), temperature=temperature
    )
    return loss.reshape(student.shape)


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


@pytest.mark.parametrize("shapes", [((4, 1), (4, 2)), ((4,), (4,)), ((4, 1), (4,))])
def test_teacher_logits_of_another_shape_are_refused(shapes):
    with pytest.raises(ValueError):
        tempered_kl(*map(jnp.zeros, shapes), temperature=2.0)


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


# Several classes


@pytest.mark.parametrize(
    ("teacher", "classes", "temperature", "expected"),
    [
        (np.log(3), 2, 1.0, 0.130812),
        (2 * np.log(3), 2, 2.0, 0.523248),
        (4 * np.log(3), 7, 4.0, 1.838235),
    ],
)
def test_softmax_distillation_by_hand(teacher, classes, temperature, expected):
    z_t = jnp.zeros((1, classes)).at[0, 0].set(teacher)
    loss = tempered_kl(jnp.zeros((1, classes)), z_t, temperature=temperature)
    assert float(loss[0]) == pytest.approx(expected, rel=5e-6)
    same = tempered_kl(z_t, z_t, temperature=temperature)
    assert float(same[0]) == pytest.approx(0.0, abs=1e-6)
    shifted = tempered_kl(jnp.full((1, classes), 5.0), z_t - 3, temperature=temperature)
    np.testing.assert_allclose(shifted, loss, rtol=1e-5)


def test_the_logits_0_and_z_are_the_binary_form():
    def two(z):
        return jnp.stack([jnp.zeros(len(z)), jnp.asarray(z, jnp.float32)], axis=1)

    np.testing.assert_allclose(
        tempered_kl(two(STUDENT), two(TEACHER), temperature=2.0),
        binary_kd(STUDENT, TEACHER, temperature=2.0),
        rtol=1e-4,
        atol=3e-6,
    )


def test_softmax_distillation_stays_finite_and_gives_the_teacher_no_gradient():
    rng = np.random.default_rng(0)
    student, teacher = (
        jnp.asarray(rng.choice([-1e4, -3.0, 0.0, 1e4], (20, 7)), jnp.float32)
        for _ in range(2)
    )

    def loss(student, teacher):
        return tempered_kl(student, teacher, temperature=4.0).sum()

    ours, theirs = jax.grad(loss, argnums=(0, 1))(student, teacher)
    assert np.isfinite(loss(student, teacher))
    assert np.isfinite(ours).all()
    np.testing.assert_array_equal(theirs, 0.0)


# Several teachers

RNG = np.random.default_rng(1)


@pytest.mark.parametrize("classes", [1, 2, 7])
@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_equal_teachers_are_one_and_weight_1_ignores_the_other(classes, average):
    first, second = (jnp.asarray(RNG.normal(0, 4, (9, classes))) for _ in range(2))
    options = {"temperature": 2.0, "average": average}

    def softened(z):
        return softmax(
            np.hstack([z, np.zeros_like(z)] if classes == 1 else [z]) / 2, -1
        )

    both = average_teachers([first, first], weights=(0.5, 0.5), **options)
    np.testing.assert_allclose(softened(both), softened(first), rtol=1e-4)
    alone = average_teachers([first, second], weights=(1.0, 0.0), **options)
    np.testing.assert_allclose(softened(alone), softened(first), rtol=1e-4)
    assert average_teachers([first], weights=(1.0,), **options) is first


@pytest.mark.parametrize("classes", [1, 7])
def test_the_mean_of_softened_probabilities_is_that_of_scipy(classes: int):
    z = [RNG.normal(0, 4, (9, classes)) for _ in range(3)]
    weights, temperature = (0.5, 0.2, 0.3), 3.0
    ours = average_teachers(
        [jnp.asarray(each) for each in z],
        weights=weights,
        temperature=temperature,
        average="probabilities",
    )
    link = expit if classes == 1 else softmax_rows
    expected = sum(
        w * link(each / temperature) for w, each in zip(weights, z, strict=True)
    )
    np.testing.assert_allclose(
        link(np.asarray(ours, np.float64) / temperature), expected, rtol=1e-4
    )


def softmax_rows(z: np.ndarray) -> np.ndarray:
    """Return softmax over the classes."""
    return softmax(z, axis=-1)


def test_sure_teachers_that_contradict_each_other_leave_even_odds():
    z = [jnp.array([[40.0, -40.0]]), jnp.array([[-40.0, 40.0]])]
    for average in ("probabilities", "logits"):
        ours = average_teachers(z, weights=(0.5, 0.5), temperature=1.0, average=average)
        np.testing.assert_allclose(softmax_rows(ours), [[0.5, 0.5]], rtol=1e-6)
    # Means of logits and of probabilities differ where one is surer than the other.
    z = [jnp.array([[8.0]]), jnp.array([[-1.0]])]
    means = [
        float(average_teachers(z, weights=(0.5, 0.5), temperature=1.0, average=a)[0, 0])
        for a in ("probabilities", "logits")
    ]
    assert means[0] == pytest.approx(
        np.log(expit([8, -1]).mean() / expit([-8, 1]).mean()), rel=1e-4
    )
    assert means[1] == pytest.approx(3.5)


def test_weights_that_do_not_add_up_are_refused():
    for weights in ((0.5, 0.6), (1.0,)):
        with pytest.raises(ValueError):
            average_teachers(
                [jnp.zeros((1, 1))] * 2,
                weights=weights,
                temperature=1.0,
                average="logits",
            )


# What is refused


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
