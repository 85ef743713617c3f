"""Hard losses against optax, scikit-learn and formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import log_expit, log_softmax
from sklearn.utils.class_weight import compute_class_weight

from mela_jax import config, losses
from mela_jax.errors import UserError
from tests import tiny

RNG = np.random.default_rng(0)
Z = np.concatenate([np.linspace(-12, 12, 49), [-0.01, 0.01]]).astype(np.float32)
# Classes -> logits, labels, and weights of classes that might be.
CASES = {
    1: (np.tile(Z, 2)[:, None], np.repeat([0, 1], len(Z)).astype(np.int32), (0.7, 2.5)),
    7: (
        RNG.normal(0, 3, (40, 7)).astype(np.float32),
        RNG.integers(0, 7, 40).astype(np.int32),
        (4.375, 2.783, 1.302, 12.441, 1.286, 0.213, 10.075),
    ),
}
EVERY_LOSS = {
    "cross-entropy": lambda z, y, w: losses.cross_entropy(z, y),
    "weighted": lambda z, y, w: losses.cross_entropy(z, y, weights=w),
    "smoothed": lambda z, y, w: losses.cross_entropy(z, y, smoothing=0.1),
    "focal, gamma 0": lambda z, y, w: losses.focal(z, y, gamma=0.0),
    "focal, gamma 0.5": lambda z, y, w: losses.focal(z, y, gamma=0.5),
    "focal, gamma 2": lambda z, y, w: losses.focal(z, y, gamma=2.0),
    "focal, gamma 4, weighted": lambda z, y, w: losses.focal(
        z, y, gamma=4.0, weights=w
    ),
    "margins": lambda z, y, w: losses.ldam(
        z, y, counts=range(1, len(w) + 1), margin=0.5, scale=2.0, weights=w
    ),
}


def log_probabilities(z: np.ndarray) -> np.ndarray:
    """Return log p float64[B, C], of two classes for one logit."""
    z = z.astype(np.float64)
    if z.shape[1] > 1:
        return log_softmax(z, axis=1)
    return log_expit(np.hstack([-z, z]))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("classes", CASES)
def test_cross_entropy_is_its_formula_in_float64(classes: int, weighted: bool):
    """A class's weight multiplies its part of the target, as in PyTorch."""
    z, y, w = CASES[classes]
    log_p = log_probabilities(z)
    w = np.array(w) if weighted else np.ones(log_p.shape[1])
    for smoothing in (0.0, 0.2):
        target = smoothing / log_p.shape[1] + (1 - smoothing) * np.eye(log_p.shape[1])
        ours = losses.cross_entropy(
            z, y, weights=tuple(w) if weighted else None, smoothing=smoothing
        )
        expected = -(w * target[y] * log_p).sum(axis=1)
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("classes", CASES)
def test_focal_is_its_formula_in_float64(classes: int, weighted: bool, gamma: float):
    """Its modulation comes from the unweighted probability."""
    z, y, w = CASES[classes]
    log_p = log_probabilities(z)[range(len(y)), y]
    expected = (-np.expm1(log_p)) ** gamma * -log_p
    if weighted:
        expected *= np.array(w)[y]
    ours = losses.focal(z, y, gamma=gamma, weights=w if weighted else None)
    np.testing.assert_allclose(ours, expected, rtol=5e-5)


def test_losses_are_those_of_optax():
    z, y, _ = CASES[1]
    np.testing.assert_allclose(
        losses.cross_entropy(z, y),
        optax.losses.sigmoid_binary_cross_entropy(z[:, 0], y),
        rtol=1e-5,
    )
    for alpha in (None, 0.25, 0.9):
        # 1 - p in float32, as optax has it, is off where p is nearly 1.
        np.testing.assert_allclose(
            losses.focal(z, y, gamma=2.0, weights=alpha and (1 - alpha, alpha)),
            optax.losses.sigmoid_focal_loss(z[:, 0], y * 1.0, alpha=alpha, gamma=2.0),
            rtol=1e-3,
            atol=1e-7,
        )
    z, y, _ = CASES[7]
    targets = optax.losses.smooth_labels(jax.nn.one_hot(y, 7), 0.2)
    np.testing.assert_allclose(
        losses.cross_entropy(z, y, smoothing=0.2),
        optax.losses.softmax_cross_entropy(z, targets),
        rtol=1e-5,
    )


def test_losses_by_hand():
    sure = losses.cross_entropy(jnp.array([[30.0]]), jnp.array([1]))
    assert float(sure[0]) == pytest.approx(np.exp(-30.0), rel=1e-4)
    half = losses.focal(
        jnp.zeros((1, 2)), jnp.array([0]), gamma=2.0, weights=(4.0, 1.0)
    )
    assert float(half[0]) == pytest.approx(0.693147, abs=1e-6)
    logits, label = jnp.array([[2.0, 0, 0, 0, 0, 0, 0]]), jnp.array([0])
    for smoothing, expected in ((0.0, 0.594438), (0.1, 0.765866)):
        found = losses.cross_entropy(logits, label, smoothing=smoothing)
        assert float(found[0]) == pytest.approx(expected, abs=1e-6)


def test_margins_by_hand():
    zeros, rare = jnp.zeros((1, 2)), jnp.array([1])

    def loss(margin: float, scale: float) -> float:
        options = {"counts": (16, 1), "margin": margin, "scale": scale}
        return float(losses.ldam(zeros, rare, **options)[0])

    assert loss(0.5, 30.0) == pytest.approx(15.0, abs=1e-5)
    assert loss(0.8, 10.0) == pytest.approx(8.000335, abs=1e-5)
    common = losses.ldam(zeros, jnp.array([0]), counts=(16, 1), margin=0.5, scale=1.0)
    assert float(common[0]) == pytest.approx(np.log1p(np.exp(0.25)), rel=1e-6)


@pytest.mark.parametrize("classes", CASES)
def test_without_a_margin_it_is_the_cross_entropy(classes: int):
    z, y, w = CASES[classes]
    found = losses.ldam(z, y, counts=range(1, len(w) + 1), margin=0.0, scale=1.0)
    np.testing.assert_allclose(found, losses.cross_entropy(z, y), rtol=1e-5, atol=1e-6)


def test_margins_need_an_image_of_every_class():
    settings = config.default().student
    settings.update({"loss": "ldam"})
    with pytest.raises(UserError, match="1 of the 3 classes have no training image"):
        losses.make_hard_loss(settings, counts=np.array([3, 0, 2]), melanoma=0)


def test_focal_and_margins_are_averaged():
    settings = config.default().student
    settings.update({"loss": "focal_ldam"})
    z, y, _ = CASES[7]
    loss = losses.make_hard_loss(settings, counts=HAM_COUNTS, melanoma=4)
    one = losses.focal(z, y, gamma=2.0)
    other = losses.ldam(z, y, counts=HAM_COUNTS, margin=0.5, scale=30.0)
    np.testing.assert_allclose(loss(z, y), (one + other) / 2, rtol=1e-6)


@pytest.mark.parametrize("name", ["smoothed", "focal, gamma 4, weighted", "margins"])
def test_one_logit_is_two_classes_of_which_one_has_the_logit_0(name: str):
    z, y, w = CASES[1]
    pair = np.hstack([np.zeros_like(z), z])
    one, two = (EVERY_LOSS[name](logits, y, w) for logits in (z, pair))
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("classes", CASES)
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
        lambda z: EVERY_LOSS[name](z, labels, CASES[classes][2]).sum()
    )(logits)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    # A hopeless example still pulls: towards its label.
    hopeless = 1 if classes == 1 else 5
    assert float(gradient[hopeless, 0]) < 0


@pytest.mark.parametrize("name", EVERY_LOSS)
def test_loss_is_float32_per_example_and_shapes_must_fit(name: str):
    for z, y, w in CASES.values():
        for dtype in (jnp.float32, jnp.bfloat16):
            loss = EVERY_LOSS[name](jnp.asarray(z, dtype), y, w)
            assert (loss.shape, loss.dtype) == (y.shape, jnp.float32)
    for shape in ((4,), (4, 1, 1), (3, 1), (1, 1)):
        with pytest.raises(ValueError, match=r"\[B, K\] and \[B\]"):
            EVERY_LOSS[name](jnp.zeros(shape), jnp.zeros(4, jnp.int32), (1.0, 1.0))


# Weights of classes

HAM_COUNTS = np.array([327, 514, 1099, 115, 1113, 6705, 142])


def weights(kind: str = "balanced", *, multiplier: float = 1.0, counts=HAM_COUNTS):
    return losses.class_weights(kind, counts, melanoma=4, multiplier=multiplier)


def test_balanced_weights_are_those_of_scikit_learn():
    labels = np.repeat(np.arange(7), HAM_COUNTS)
    expected = compute_class_weight("balanced", classes=np.arange(7), y=labels)
    np.testing.assert_allclose(weights(), expected)
    np.testing.assert_allclose(weights(), CASES[7][2], atol=1e-3)


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


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, lambda z, y: losses.cross_entropy(z, y)),
        (
            {"class_weights": "balanced"},
            lambda z, y: losses.cross_entropy(z, y, weights=(80 / 120, 80 / 40)),
        ),
        (
            {"label_smoothing": 0.1},
            lambda z, y: losses.cross_entropy(z, y, smoothing=0.1),
        ),
        (
            {"loss": "focal", "focal_gamma": 4.0, "focal_alpha": 0.3},
            lambda z, y: losses.focal(z, y, gamma=4.0, weights=(0.7, 0.3)),
        ),
    ],
)
def test_the_loss_of_a_stage_has_its_numbers(fields, expected):
    z, y, _ = CASES[1]
    loss = tiny.hard_loss(counts=(60, 20), **fields)
    np.testing.assert_allclose(loss(z, y), expected(z, y), rtol=1e-6)


def test_both_normalisations_of_a_weighted_batch():
    """Of z = 0, y = (0, 1), weights 1 : 3: ln 2 by PyTorch, 2 ln 2 as a plain mean."""
    z, y = jnp.zeros((2, 2)), jnp.array([0, 1])
    plain, by_weight = (
        tiny.hard_loss(counts=(60, 20), class_weights=kind)
        for kind in ("balanced", "balanced_batch")
    )
    # The plain mean of w l is 1.386294 with weights 1 and 3; the mean of these is 1
    # over the training images, of which three in four are of class 0: a factor of 2/3.
    assert float(plain(z, y).mean()) == pytest.approx(1.386294 * 2 / 3, abs=1e-6)
    assert float(by_weight(z, y).mean()) == pytest.approx(0.693147, abs=1e-6)
    assert by_weight.by_weight and not plain.by_weight
