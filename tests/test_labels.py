"""Classes: how melanoma is read out, and which label an image gets."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, softmax

from mela_jax.data.records import Record
from mela_jax.errors import UserError
from mela_jax.labels import HAM7, LabelSpace, class_labels, make_label_space

SEVEN = LabelSpace(HAM7, HAM7.index("mel"))
RNG = np.random.default_rng(0)


def record(dx: str, *, label: int | None = None) -> Record:
    melanoma = int(dx == "mel") if label is None else label
    return Record(f"image of {dx}", "lesion", melanoma, "path", dx=dx)


@pytest.mark.parametrize("asarray", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_the_sigmoid_of_the_log_odds_is_the_softmax_share(asarray):
    z = RNG.normal(0, 5, (50, 7)).astype(np.float32)
    found = SEVEN.log_odds(asarray(z))
    assert type(found) is type(asarray(z))
    assert found.shape == (50,)
    np.testing.assert_allclose(
        expit(np.asarray(found, np.float64)), softmax(z, axis=1)[:, 4], rtol=1e-4
    )
    np.testing.assert_allclose(SEVEN.log_odds(asarray(z + 40.0)), found, atol=1e-4)
    extremes = RNG.choice([-1e4, 0.0, 1e4], (200, 7))
    assert np.isfinite(SEVEN.log_odds(asarray(extremes))).all()
    pair = LabelSpace(("nv", "mel"), 1)
    for a in (-3.0, 0.0, 2.5):
        assert float(pair.log_odds(asarray([0.0, a]))) == a


def test_the_gradient_of_the_log_odds_is_finite_and_that_of_the_formula():
    z = jnp.asarray(RNG.choice([-1e4, -1.0, 0.0, 1e4], (50, 7)), jnp.float32)
    gradient = jax.vmap(jax.grad(SEVEN.log_odds))(z)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[:, 4], 1.0)
    others = np.delete(np.asarray(gradient), 4, axis=1)
    expected = -softmax(np.delete(np.asarray(z, np.float64), 4, axis=1), axis=1)
    np.testing.assert_allclose(others, expected, atol=1e-6)


def test_one_logit_is_the_log_odds():
    z = RNG.normal(0, 3, (5, 1))
    np.testing.assert_array_equal(LabelSpace().log_odds(z), z[:, 0])
    np.testing.assert_array_equal(LabelSpace().probabilities(z), expit(z))
    assert LabelSpace().is_binary and not SEVEN.is_binary
    with pytest.raises(ValueError):
        LabelSpace().log_odds(np.zeros((3, 7)))


@hypothesis.given(
    z=st.lists(st.floats(-1e4, 1e4, width=32), min_size=7, max_size=7),
    melanoma=st.integers(0, 6),
)
def test_probabilities_add_up_and_melanomas_is_that_of_its_log_odds(z, melanoma):
    classes = LabelSpace(HAM7, melanoma)
    logits = np.array([z], np.float32)
    found = classes.probabilities(logits)
    assert found.dtype == np.float64
    assert found.sum() == pytest.approx(1, rel=1e-12)
    assert (found >= 0).all()
    expected = expit(classes.log_odds(logits.astype(np.float64)))
    assert found[0, melanoma] == expected[0]
    np.testing.assert_allclose(found[0], softmax(logits[0].astype(float)), atol=1e-12)


def test_labels_are_indices_and_melanoma_is_found_among_them():
    records = [record(dx) for dx in ("nv", "mel", "akiec")]
    labels = class_labels(SEVEN, records)
    assert labels.tolist() == [5, 4, 0]
    assert SEVEN.is_melanoma(labels).tolist() == [False, True, False]
    binary = class_labels(LabelSpace(), records)
    assert binary.tolist() == [0, 1, 0]
    assert LabelSpace().is_melanoma(binary).tolist() == [False, True, False]


def test_label_spaces_of_the_configuration():
    records = [record(dx) for dx in ("nv", "mel", "bkl", "nv", "")]
    assert make_label_space("melanoma", records, melanoma="mel") == LabelSpace()
    assert make_label_space("ham7", records, melanoma="mel") == SEVEN
    of_data = make_label_space("diagnoses", records, melanoma="mel")
    assert of_data == LabelSpace(("bkl", "mel", "nv"), 1)


@pytest.mark.parametrize(
    ("kind", "melanoma", "dx"),
    [
        ("ham7", "melanoma", ("mel", "nv")),
        ("diagnoses", "MEL", ("mel", "nv")),
        ("diagnoses", "mel", ("mel", "mel")),
        ("diagnoses", "mel", ("", "")),
    ],
)
def test_a_melanoma_that_is_no_diagnosis_is_refused(kind, melanoma, dx):
    with pytest.raises(UserError, match="config.melanoma") as caught:
        make_label_space(kind, [record(each) for each in dx], melanoma=melanoma)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("bad", "wanted"),
    [
        (record("scc"), "'scc'"),
        (record(""), "''"),
        (record("mel", label=0), "not melanoma"),
        (record("nv", label=1), "says melanoma"),
    ],
)
def test_a_diagnosis_that_is_unknown_or_contradicted_is_refused(bad, wanted):
    with pytest.raises(UserError, match=wanted) as caught:
        class_labels(SEVEN, [record("nv"), bad])
    assert bad.image_id in str(caught.value)
