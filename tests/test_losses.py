"""Hard losses against optax, scikit-learn, Keras, TensorFlow and float64 formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import expit, log_expit, log_softmax
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_class_weight

from mela_jax import losses
from mela_jax.errors import UserError
from tests import tiny

LOGITS = np.concatenate([np.linspace(-12, 12, 49), [-0.01, 0.01]]).astype(np.float32)
LOGITS = np.concatenate([LOGITS, LOGITS])
LABELS = np.repeat(np.array([0, 1], np.int32), len(LOGITS) // 2)
# What the loss is made of, in float64: the log-probability of the label's class.
LOG_P = log_expit(np.where(LABELS == 1, LOGITS, -LOGITS).astype(np.float64))

# Of seven classes: random logits and labels.
RNG = np.random.default_rng(0)
LOGITS_7 = RNG.normal(0, 3, (40, 7)).astype(np.float32)
LABELS_7 = RNG.integers(0, 7, 40).astype(np.int32)
WEIGHTS_7 = (4.375, 2.783, 1.302, 12.441, 1.286, 0.213, 10.075)


def bce(logits, labels, *, weight=None):
    """Return the loss of one logit, float[B], of which the positives' is weighted."""
    weights = None if weight is None else (1.0, weight)
    return losses.cross_entropy(jnp.asarray(logits)[:, None], labels, weights=weights)


def focal(logits, labels, *, gamma, alpha=None):
    """Return the focal loss of one logit, float[B]."""
    weights = None if alpha is None else (1 - alpha, alpha)
    return losses.focal(
        jnp.asarray(logits)[:, None], labels, gamma=gamma, weights=weights
    )


EVERY_LOSS = {
    "cross-entropy": lambda z, y: losses.cross_entropy(z, y),
    "weighted": lambda z, y: losses.cross_entropy(
        z, y, weights=WEIGHTS_7[: max(2, z.shape[-1])]
    ),
    "smoothed": lambda z, y: losses.cross_entropy(z, y, smoothing=0.1),
    "focal, gamma 0": lambda z, y: losses.focal(z, y, gamma=0.0),
    "focal, gamma 0.5": lambda z, y: losses.focal(z, y, gamma=0.5),
    "focal, gamma 2": lambda z, y: losses.focal(z, y, gamma=2.0),
    "focal, gamma 4, weighted": lambda z, y: losses.focal(
        z, y, gamma=4.0, weights=WEIGHTS_7[: max(2, z.shape[-1])]
    ),
}


def test_bce_is_that_of_optax():
    expected = optax.losses.sigmoid_binary_cross_entropy(LOGITS, LABELS)
    np.testing.assert_allclose(bce(LOGITS, LABELS), expected, rtol=1e-5)


def test_mean_bce_is_the_log_loss_of_scikit_learn():
    expected = log_loss(LABELS, expit(LOGITS.astype(np.float64)))
    assert float(bce(LOGITS, LABELS).mean()) == pytest.approx(expected, rel=1e-6)


def test_bce_keeps_the_small_losses_of_confident_right_answers():
    assert float(bce(jnp.array([30.0]), jnp.array([1]))[0]) == pytest.approx(
        np.exp(-30.0), rel=1e-4
    )


@pytest.mark.parametrize("weight", [0.5, 1.0, 7.5])
def test_weighted_bce_is_that_of_tensorflow(weight: float):
    tf = pytest.importorskip("tensorflow")
    expected = tf.nn.weighted_cross_entropy_with_logits(
        LABELS.astype(np.float32), LOGITS, pos_weight=weight
    ).numpy()
    ours = bce(LOGITS, LABELS, weight=weight)
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
    ours = focal(LOGITS, LABELS, gamma=gamma, alpha=alpha)
    # 1 - p in float32, as optax has it, is off where p is nearly 1.
    np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("alpha", [None, 0.25])
def test_focal_is_the_formula_in_float64(gamma: float, alpha: float | None):
    expected = (-np.expm1(LOG_P)) ** gamma * -LOG_P
    if alpha is not None:
        expected *= np.where(LABELS == 1, alpha, 1 - alpha)
    ours = focal(LOGITS, LABELS, gamma=gamma, alpha=alpha)
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
    ours = focal(LOGITS, LABELS, gamma=gamma, alpha=0.25)
    # Keras clips probabilities to [1e-7, 1 - 1e-7].
    np.testing.assert_allclose(ours, np.asarray(expected), rtol=1e-3, atol=1e-6)


def test_focal_with_gamma_0_is_the_cross_entropy():
    np.testing.assert_allclose(
        focal(LOGITS, LABELS, gamma=0.0), bce(LOGITS, LABELS), rtol=1e-6
    )


@pytest.mark.parametrize("gamma", [1.0, 2.0, 4.0])
def test_focal_modulation_comes_from_the_unweighted_probability(gamma: float):
    # Taken from the weighted cross-entropy instead, 1 - exp(-alpha * CE), it would
    # change with alpha.
    plain = focal(LOGITS, LABELS, gamma=gamma)
    for alpha in (0.1, 0.75):
        weighted = focal(LOGITS, LABELS, gamma=gamma, alpha=alpha)
        expected = np.where(LABELS == 1, alpha, 1 - alpha) * plain
        np.testing.assert_allclose(weighted, expected, rtol=1e-6)


@pytest.mark.parametrize("classes", [1, 7])
@pytest.mark.parametrize("name", EVERY_LOSS)
def test_loss_and_gradient_stay_finite_for_huge_logits(name: str, classes: int):
    extremes = jnp.array([-1e4, 1e4, 0.0, -100.0, 100.0])
    if classes == 1:
        logits = jnp.repeat(extremes, 2)[:, None]
        labels = jnp.tile(jnp.array([0, 1]), 5)
    else:
        # Every pair of extremes for the label and for one other class.
        pairs = jnp.stack([a.ravel() for a in jnp.meshgrid(extremes, extremes)], axis=1)
        logits = jnp.pad(pairs, ((0, 0), (0, 5)))
        labels = jnp.zeros(len(logits), jnp.int32)
    value, gradient = jax.value_and_grad(
        lambda z: EVERY_LOSS[name](z, labels).sum(), has_aux=False
    )(logits)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    # A hopeless example still pulls: towards its label.
    hopeless = 1 if classes == 1 else 1 * 5 + 0
    assert float(gradient[hopeless, 0]) < 0


@pytest.mark.parametrize("name", EVERY_LOSS)
def test_loss_is_float32_per_example_whatever_comes_in(name: str):
    for dtype in (jnp.float32, jnp.bfloat16):
        for z, y in ((LOGITS[:, None], LABELS), (LOGITS_7, LABELS_7)):
            loss = EVERY_LOSS[name](jnp.asarray(z, dtype), y)
            assert loss.shape == y.shape
            assert loss.dtype == jnp.float32


@pytest.mark.parametrize("name", EVERY_LOSS)
@pytest.mark.parametrize("shape", [(4,), (4, 1, 1), (3, 1), (1, 1)], ids=str)
def test_logits_that_are_not_a_row_for_each_label_are_refused(name: str, shape):
    with pytest.raises(ValueError, match=r"\[B, K\] and \[B\]"):
        EVERY_LOSS[name](jnp.zeros(shape), jnp.zeros(4, jnp.int32))


# Several classes


def test_cross_entropy_of_several_classes_is_that_of_optax_and_scipy():
    ours = losses.cross_entropy(LOGITS_7, LABELS_7)
    theirs = optax.losses.softmax_cross_entropy_with_integer_labels(LOGITS_7, LABELS_7)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    exact = -log_softmax(LOGITS_7.astype(np.float64), axis=1)[range(40), LABELS_7]
    np.testing.assert_allclose(ours, exact, rtol=1e-5, atol=1e-6)


def test_label_smoothing_by_hand_and_by_optax():
    logits, label = jnp.array([[2.0, 0, 0, 0, 0, 0, 0]]), jnp.array([0])
    plain = losses.cross_entropy(logits, label)
    smoothed = losses.cross_entropy(logits, label, smoothing=0.1)
    assert float(plain[0]) == pytest.approx(0.594438, abs=1e-6)
    assert float(smoothed[0]) == pytest.approx(0.765866, abs=1e-6)
    for smoothing in (0.0, 0.1, 0.9):
        uniform = losses.cross_entropy(jnp.ones((1, 7)), label, smoothing=smoothing)
        assert float(uniform[0]) == pytest.approx(np.log(7), rel=1e-6)
    targets = optax.losses.smooth_labels(jax.nn.one_hot(LABELS_7, 7), 0.2)
    np.testing.assert_allclose(
        losses.cross_entropy(LOGITS_7, LABELS_7, smoothing=0.2),
        optax.losses.softmax_cross_entropy(LOGITS_7, targets),
        rtol=1e-5,
    )


def test_smoothing_weighs_each_class_by_its_own_weight():
    """As PyTorch does: sum over classes of weight, target and -log p."""
    log_p = log_softmax(LOGITS_7.astype(np.float64), axis=1)
    target = 0.8 * np.eye(7)[LABELS_7] + 0.2 / 7
    expected = -(np.array(WEIGHTS_7) * target * log_p).sum(axis=1)
    ours = losses.cross_entropy(LOGITS_7, LABELS_7, weights=WEIGHTS_7, smoothing=0.2)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "loss",
    [
        lambda z, y: losses.cross_entropy(z, y, weights=(0.7, 2.5), smoothing=0.1),
        lambda z, y: losses.focal(z, y, gamma=2.0, weights=(0.7, 2.5)),
    ],
)
def test_one_logit_is_two_classes_of_which_one_has_the_logit_0(loss):
    pair = np.stack([np.zeros_like(LOGITS), LOGITS], axis=1)
    np.testing.assert_allclose(
        loss(LOGITS[:, None], LABELS), loss(pair, LABELS), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_focal_of_several_classes_is_its_formula(gamma: float):
    log_p = log_softmax(LOGITS_7.astype(np.float64), axis=1)[range(40), LABELS_7]
    weight = np.array(WEIGHTS_7)[LABELS_7]
    expected = weight * (-np.expm1(log_p)) ** gamma * -log_p
    ours = losses.focal(LOGITS_7, LABELS_7, gamma=gamma, weights=WEIGHTS_7)
    np.testing.assert_allclose(ours, expected, rtol=5e-5)


def test_focal_by_hand():
    half = losses.focal(
        jnp.zeros((1, 2)), jnp.array([0]), gamma=2.0, weights=(4.0, 1.0)
    )
    assert float(half[0]) == pytest.approx(0.693147, abs=1e-6)


# Weights of classes

HAM_COUNTS = np.array([327, 514, 1099, 115, 1113, 6705, 142])


def weights(kind: str = "balanced", *, multiplier: float = 1.0, counts=HAM_COUNTS):
    return losses.class_weights(kind, counts, melanoma=4, multiplier=multiplier)


def test_balanced_weights_are_those_of_scikit_learn():
    labels = np.repeat(np.arange(7), HAM_COUNTS)
    expected = compute_class_weight("balanced", classes=np.arange(7), y=labels)
    np.testing.assert_allclose(weights(), expected)
    np.testing.assert_allclose(weights(), WEIGHTS_7, atol=1e-3)


@pytest.mark.parametrize("kind", ["none", "balanced", "balanced_batch"])
@pytest.mark.parametrize("multiplier", [0.5, 3.0])
def test_the_multiplier_is_melanomas_and_the_mean_over_images_is_1(
    kind: str, multiplier: float
):
    plain = np.array(weights(kind) or np.ones(7))
    ours = np.array(weights(kind, multiplier=multiplier))
    ratios = ours / plain
    np.testing.assert_allclose(ratios / ratios[0], [1, 1, 1, 1, multiplier, 1, 1])
    assert (ours * HAM_COUNTS).sum() / HAM_COUNTS.sum() == pytest.approx(1)


def test_the_published_hand_case_of_three_classes():
    """Counts 6, 3, 1, the last doubled: 0.2, 0.4, 2.4 when their own mean is 1."""
    ours = np.array(
        losses.class_weights(
            "balanced", np.array([6, 3, 1]), melanoma=2, multiplier=2.0
        )
    )
    np.testing.assert_allclose(ours / ours.mean(), [0.2, 0.4, 2.4])


def test_no_weights_are_none_and_a_class_without_images_cannot_be_balanced():
    assert weights("none") is None
    with pytest.raises(UserError, match="1 of the 3 classes"):
        weights(counts=np.array([3, 0, 4]), multiplier=1.0)


def hard_loss(**fields):
    """Return a loss of two classes with 60 and 20 images."""
    return tiny.hard_loss(counts=(60, 20), **fields)


def test_make_hard_loss_fills_in_the_numbers():
    z = LOGITS[:, None]
    found = {
        "plain": hard_loss(),
        "balanced": hard_loss(class_weights="balanced"),
        "smoothed": hard_loss(label_smoothing=0.1),
        "focal": hard_loss(loss="focal", focal_gamma=4.0, focal_alpha=0.3),
    }
    expected = {
        "plain": losses.cross_entropy(z, LABELS),
        "balanced": losses.cross_entropy(z, LABELS, weights=(80 / 120, 80 / 40)),
        "smoothed": losses.cross_entropy(z, LABELS, smoothing=0.1),
        "focal": losses.focal(z, LABELS, gamma=4.0, weights=(0.7, 0.3)),
    }
    for name, loss in found.items():
        np.testing.assert_allclose(loss(z, LABELS), expected[name], rtol=1e-6)


def test_both_normalisations_of_a_weighted_batch():
    """Of z = 0, y = (0, 1), weights 1 : 3: ln 2 by PyTorch, 2 ln 2 as a plain mean."""
    z, y = jnp.zeros((2, 2)), jnp.array([0, 1])
    plain = hard_loss(class_weights="balanced")
    by_weight = hard_loss(class_weights="balanced_batch")
    # The plain mean of w l is 1.386294 with weights 1 and 3; the mean of these is 1
    # over the training images, of which three in four are of class 0: a factor of 2/3.
    assert float(plain(z, y).mean()) == pytest.approx(1.386294 * 2 / 3, abs=1e-6)
    assert float(by_weight(z, y).mean()) == pytest.approx(0.693147, abs=1e-6)
    assert by_weight.by_weight and not plain.by_weight
