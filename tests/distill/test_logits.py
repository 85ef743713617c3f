"""The soft loss against SciPy in float64, and the checks on its targets."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, rel_entr, softmax

from mela_jax.distill.logits import (
    average_teachers,
    check_are_logits,
    decoupled_kl,
    tempered_kl,
)
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


def pair(z) -> jax.Array:
    """Return the logits 0 and z of two classes."""
    return jnp.stack([jnp.zeros(len(z)), jnp.asarray(z, jnp.float32)], axis=1)


# One logit


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_binary_kd_is_the_divergence_of_two_coins_and_of_two_classes(
    temperature: float,
):
    p, q = expit(TEACHER / temperature), expit(STUDENT / temperature)
    kl = rel_entr(p, q) + rel_entr(expit(-TEACHER / temperature), 1 - q)
    ours = binary_kd(STUDENT, TEACHER, temperature=temperature)
    np.testing.assert_allclose(ours, temperature**2 * kl, rtol=1e-4, atol=2e-6)
    two = tempered_kl(pair(STUDENT), pair(TEACHER), temperature=temperature)
    np.testing.assert_allclose(two, ours, rtol=1e-4, atol=3e-6)


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


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_soft_loss_is_zero_where_student_and_teacher_agree_and_only_there(
    temperature: float,
):
    z = jnp.array([-1e4, -30.0, -2.0, 0.0, 0.5, 8.0, 1e4])
    np.testing.assert_array_equal(binary_kd(z, z, temperature=temperature), 0.0)
    near = jnp.array([-2.0, 0.0, 0.5, 8.0])
    for other in (near - 0.5, near + 0.5):
        assert (binary_kd(other, near, temperature=temperature) > 0).all()
    # Certain of opposite answers: T^2 * |z| / T.
    far = binary_kd(jnp.array(-1e4), jnp.array(1e4), temperature=temperature)
    assert float(far) == pytest.approx(1e4 * temperature, rel=1e-6)


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


@pytest.mark.parametrize("shapes", [((4, 1), (4, 2)), ((4,), (4,)), ((4, 1), (4,))])
def test_teacher_logits_of_another_shape_are_refused(shapes):
    with pytest.raises(ValueError):
        tempered_kl(*map(jnp.zeros, shapes), temperature=2.0)


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


@pytest.mark.parametrize("classes", [1, 7])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_huge_logits_stay_finite_and_the_teacher_gets_no_gradient(
    classes: int, temperature: float
):
    rng = np.random.default_rng(0)
    values = [-1e4, -100.0, -3.0, 0.0, 100.0, 1e4]
    student, teacher = (
        jnp.asarray(rng.choice(values, (60, classes)), jnp.float32) for _ in range(2)
    )

    def loss(student, teacher):
        return tempered_kl(student, teacher, temperature=temperature).sum()

    ours, theirs = jax.grad(loss, argnums=(0, 1))(student, teacher)
    assert np.isfinite(loss(student, teacher))
    assert np.isfinite(ours).all()
    np.testing.assert_array_equal(theirs, 0.0)


# Several teachers

RNG = np.random.default_rng(1)


def softened(z: np.ndarray, temperature: float) -> np.ndarray:
    """Return P(class) of logits, of two classes for one logit."""
    z = np.asarray(z, np.float64) / temperature
    return softmax(np.hstack([z, np.zeros_like(z)]) if z.shape[1] == 1 else z, axis=-1)


@pytest.mark.parametrize("classes", [1, 2, 7])
@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_equal_teachers_are_one_and_weight_1_ignores_the_other(classes, average):
    first, second = (jnp.asarray(RNG.normal(0, 4, (9, classes))) for _ in range(2))
    options = {"temperature": 2.0, "average": average}
    both = average_teachers([first, first], weights=(0.5, 0.5), **options)
    alone = average_teachers([first, second], weights=(1.0, 0.0), **options)
    for found in (both, alone):
        np.testing.assert_allclose(softened(found, 2), softened(first, 2), rtol=1e-4)
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
    expected = sum(
        w * softened(each, temperature) for w, each in zip(weights, z, strict=True)
    )
    np.testing.assert_allclose(softened(ours, temperature), expected, rtol=1e-4)


def test_sure_teachers_that_contradict_each_other_leave_even_odds():
    z = [jnp.array([[40.0, -40.0]]), jnp.array([[-40.0, 40.0]])]
    for average in ("probabilities", "logits"):
        ours = average_teachers(z, weights=(0.5, 0.5), temperature=1.0, average=average)
        np.testing.assert_allclose(softened(ours, 1), [[0.5, 0.5]], rtol=1e-6)
    # Means of logits and of probabilities differ where one is surer than the other.
    z = [jnp.array([[8.0]]), jnp.array([[-1.0]])]
    means = [
        float(average_teachers(z, weights=(0.5, 0.5), temperature=1.0, average=a)[0, 0])
        for a in ("probabilities", "logits")
    ]
    odds = np.log(expit([8, -1]).mean() / expit([-8, 1]).mean())
    assert means == [pytest.approx(odds, rel=1e-4), pytest.approx(3.5)]


@pytest.mark.parametrize("weights", [(0.5, 0.6), (1.0,)])
def test_weights_that_do_not_add_up_are_refused(weights):
    z = [jnp.zeros((1, 1))] * 2
    with pytest.raises(ValueError):
        average_teachers(z, weights=weights, temperature=1.0, average="logits")


# What is refused


@pytest.mark.parametrize(
    ("outputs", "wanted"),
    [
        (expit(np.linspace(-5, 5, 50)), "some teacher: all 50 outputs .* logits"),
        ([-3.0, np.nan, 2.0], "not all finite"),
        ([-3.0, np.inf, 2.0], "not all finite"),
        ([-3.0, -np.inf, 2.0], "not all finite"),
    ],
)
def test_what_is_no_logits_is_refused(outputs, wanted: str):
    with pytest.raises(UserError, match=wanted):
        check_are_logits(np.array(outputs), source="some teacher")


@pytest.mark.parametrize("logits", [[-0.01, 0.3, 0.9], [0.2, 1.01], [-4.0, 5.0]])
def test_logits_are_accepted_as_soft_targets(logits: list[float]):
    check_are_logits(np.array(logits), source="teacher")


# In two parts


def decoupled(student, teacher, labels, **weights: float) -> jax.Array:
    options = {"temperature": 4.0, "target_weight": 1.0, "others_weight": 1.0}
    return decoupled_kl(student, teacher, labels, **(options | weights))


@pytest.fixture
def logits() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(0, 4, (2, 20, 7))
    return student, teacher, rng.integers(0, 7, 20)


def test_the_parts_are_divergences_of_what_they_compare(logits):
    student, teacher, labels = logits
    rows = np.arange(20)
    p, q = softmax(teacher / 4, 1), softmax(student / 4, 1)
    of_label, ours = p[rows, labels], q[rows, labels]
    target = rel_entr(of_label, ours) + rel_entr(1 - of_label, 1 - ours)
    rest = ~np.eye(7, dtype=bool)[labels]
    p, q = (x[rest].reshape(20, 6) for x in (p, q))
    p, q = (x / x.sum(1, keepdims=True) for x in (p, q))
    others = rel_entr(p, q).sum(1)
    found = decoupled(*logits, target_weight=2.0, others_weight=8.0)
    np.testing.assert_allclose(found, 16 * (2 * target + 8 * others), rtol=1e-4)


def test_the_parts_make_up_the_divergence(logits):
    student, teacher, labels = logits
    target = decoupled(*logits, others_weight=0.0)
    others = decoupled(*logits, target_weight=0.0)
    left = 1 - softmax(teacher / 4, 1)[np.arange(20), labels]
    whole = tempered_kl(student, teacher, temperature=4.0)
    np.testing.assert_allclose(target + left * others, whole, rtol=1e-4)


def test_of_two_classes_the_others_are_one_and_say_nothing(logits):
    student, teacher, labels = logits
    two = student[:, :2], teacher[:, :2], labels % 2
    found = decoupled(*two, others_weight=8.0)
    np.testing.assert_allclose(
        found, tempered_kl(*two[:2], temperature=4.0), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("size", [1e4, 1e-3])
def test_the_parts_and_their_gradient_are_finite(logits, size):
    student, teacher, labels = (size * logits[0], size * logits[1], logits[2])
    value, gradient = jax.value_and_grad(lambda z: decoupled(z, teacher, labels).sum())(
        student
    )
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    by_teacher = jax.grad(lambda z: decoupled(student, z, labels).sum())(teacher)
    assert not np.any(by_teacher)
