"""Hard losses against optax, scikit-learn, Keras and float64 formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import expit, log_expit
from sklearn.metrics import log_loss

from mela_jax import losses

LOGITS = np.concatenate([np.linspace(-12, 12, 49), [-0.01, 0.01]]).astype(np.float32)
LOGITS = np.concatenate([LOGITS, LOGITS])
LABELS = np.repeat(np.array([0, 1], np.int32), len(LOGITS) // 2)
# What the loss is made of, in float64: the log-probability of the label's class.
LOG_P = log_expit(np.where(LABELS == 1, LOGITS, -LOGITS).astype(np.float64))

EVERY_LOSS = {
    "bce": losses.bce,
    "weighted_bce": lambda z, y: losses.weighted_bce(z, y, positive_weight=7.5),
    "focal, gamma 0": lambda z, y: losses.focal(z, y, gamma=0.0),
    "focal, gamma 0.5": lambda z, y: losses.focal(z, y, gamma=0.5),
    "focal, gamma 2": lambda z, y: losses.focal(z, y, gamma=2.0),
    "focal, gamma 4, alpha": lambda z, y: losses.focal(z, y, gamma=4.0, alpha=0.25),
}


def test_bce_is_that_of_optax():
    expected = optax.losses.sigmoid_binary_cross_entropy(LOGITS, LABELS)
    np.testing.assert_allclose(losses.bce(LOGITS, LABELS), expected, rtol=1e-5)


def test_mean_bce_is_the_log_loss_of_scikit_learn():
    expected = log_loss(LABELS, expit(LOGITS.astype(np.float64)))
    assert float(losses.bce(LOGITS, LABELS).mean()) == pytest.approx(expected, rel=1e-6)


def test_bce_keeps_the_small_losses_of_confident_right_answers():
    assert float(losses.bce(jnp.array(30.0), jnp.array(1))) == pytest.approx(
        np.exp(-30.0), rel=1e-4
    )


@pytest.mark.parametrize("weight", [0.5, 1.0, 7.5])
def test_weighted_bce_is_that_of_tensorflow(weight: float):
    tf = pytest.importorskip("tensorflow")
    expected = tf.nn.weighted_cross_entropy_with_logits(
        LABELS.astype(np.float32), LOGITS, pos_weight=weight
    ).numpy()
    ours = losses.weighted_bce(LOGITS, LABELS, positive_weight=weight)
    # TensorFlow's softplus keeps fewer digits of small losses.
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=5e-6)
    exact = -LOG_P * np.where(LABELS == 1, weight, 1.0)
    np.testing.assert_allclose(ours, exact, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("alpha", [None, 0.25, 0.9])
def test_focal_is_that_of_optax(gamma: float, alpha: float | None):
    expected = optax.losses.sigmoid_focal_loss(
        LOGITS, LABELS.astype(np.float32), alpha=alpha, gamma=gamma
    )
    ours = losses.focal(LOGITS, LABELS, gamma=gamma, alpha=alpha)
    # 1 - p in float32, as optax has it, is off where p is nearly 1.
    np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("alpha", [None, 0.25])
def test_focal_is_the_formula_in_float64(gamma: float, alpha: float | None):
    expected = (-np.expm1(LOG_P)) ** gamma * -LOG_P
    if alpha is not None:
        expected *= np.where(LABELS == 1, alpha, 1 - alpha)
    ours = losses.focal(LOGITS, LABELS, gamma=gamma, alpha=alpha)
    np.testing.assert_allclose(ours, expected, rtol=2e-5)


@pytest.mark.parametrize("gamma", [1.0, 2.0, 4.0])
def test_focal_is_that_of_keras(gamma: float):
    keras = pytest.importorskip("keras")
    expected = keras.losses.BinaryFocalCrossentropy(
        gamma=gamma,
        alpha=0.25,
        apply_class_balancing=True,
        from_logits=True,
        reduction=None,
    )(LABELS[:, None].astype(np.float32), LOGITS[:, None])
    ours = losses.focal(LOGITS, LABELS, gamma=gamma, alpha=0.25)
    # Keras clips probabilities to [1e-7, 1 - 1e-7].
    np.testing.assert_allclose(ours, np.asarray(expected), rtol=1e-3, atol=1e-6)


def test_focal_with_gamma_0_is_the_cross_entropy():
    np.testing.assert_allclose(
        losses.focal(LOGITS, LABELS, gamma=0.0), losses.bce(LOGITS, LABELS), rtol=1e-6
    )


@pytest.mark.parametrize("gamma", [1.0, 2.0, 4.0])
def test_focal_modulation_comes_from_the_unweighted_probability(gamma: float):
    # Taken from the weighted cross-entropy instead, 1 - exp(-alpha * CE), it would
    # change with alpha.
    plain = losses.focal(LOGITS, LABELS, gamma=gamma)
    for alpha in (0.1, 0.75):
        weighted = losses.focal(LOGITS, LABELS, gamma=gamma, alpha=alpha)
        expected = np.where(LABELS == 1, alpha, 1 - alpha) * plain
        np.testing.assert_allclose(weighted, expected, rtol=1e-6)


@pytest.mark.parametrize("name", EVERY_LOSS)
def test_loss_and_gradient_stay_finite_for_huge_logits(name: str):
    logits = jnp.array([-1e4, -1e4, 1e4, 1e4, 0.0, -100.0, 100.0])
    labels = jnp.array([0, 1, 0, 1, 1, 1, 0])
    value, gradient = jax.value_and_grad(
        lambda z: EVERY_LOSS[name](z, labels).sum(), has_aux=False
    )(logits)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    # A hopeless example still pulls: towards its label.
    assert gradient[1] < 0 < gradient[2]


@pytest.mark.parametrize("name", EVERY_LOSS)
def test_loss_is_float32_per_example_whatever_comes_in(name: str):
    for dtype in (jnp.float32, jnp.bfloat16):
        loss = EVERY_LOSS[name](jnp.asarray(LOGITS, dtype), LABELS)
        assert loss.shape == LOGITS.shape
        assert loss.dtype == jnp.float32


@pytest.mark.parametrize("name", EVERY_LOSS)
def test_logits_of_another_shape_than_the_labels_are_refused(name: str):
    with pytest.raises(ValueError, match=r"\(4, 1\) and labels \(4,\)"):
        EVERY_LOSS[name](jnp.zeros((4, 1)), jnp.zeros(4, jnp.int32))


def test_positive_weight_gives_both_classes_the_same_say():
    labels = np.array([1, 0, 0, 0, 0, 1, 0, 0])
    weight = losses.positive_weight(2, 6)
    assert weight == 3.0
    loss = losses.weighted_bce(np.zeros(8), labels, positive_weight=weight)
    assert loss[labels == 1].sum() == pytest.approx(float(loss[labels == 0].sum()))


def test_make_hard_loss_fills_in_the_numbers():
    made = {
        name: losses.make_hard_loss(
            name, num_positives=10, num_negatives=80, focal_gamma=4.0, focal_alpha=0.3
        )(LOGITS, LABELS)
        for name in ("bce", "weighted_bce", "focal")
    }
    expected = {
        "bce": losses.bce(LOGITS, LABELS),
        "weighted_bce": losses.weighted_bce(LOGITS, LABELS, positive_weight=8.0),
        "focal": losses.focal(LOGITS, LABELS, gamma=4.0, alpha=0.3),
    }
    for name, loss in made.items():
        np.testing.assert_array_equal(loss, expected[name])
