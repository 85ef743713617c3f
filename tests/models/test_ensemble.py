"""An ensemble answers as the average of its members, and exports as one file."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, log_softmax, logit, softmax

from export import conversion
from mela_jax.models.ensemble import Ensemble, average_logits, join_variables
from mela_jax.models.families.plain import Layer, PlainNet
from mela_jax.models.head import Classifier, Head
from mela_jax.models.layers import scale_to_one
from mela_jax.tflite import PhoneModel
from tests.models.networks import noise

SIZE = 32


def member() -> Classifier:
    body = PlainNet((Layer(8, 2), Layer(12, 2)), scale_to_one)
    return Classifier(body=body, head=Head())


@pytest.fixture(scope="module")
def members() -> list[dict]:
    image = jnp.zeros((1, SIZE, SIZE, 3))
    init = jax.jit(lambda key: member().init(key, image, train=False))
    return [init(jax.random.key(seed)) for seed in range(3)]


@pytest.mark.parametrize("num_logits", [1, 4])
def test_averages(num_logits):
    logits = np.random.default_rng(0).normal(0, 3, (5, 7, num_logits))
    np.testing.assert_allclose(
        average_logits(logits, "logits"), logits.mean(0), rtol=1e-5
    )
    found = average_logits(logits, "probabilities")
    if num_logits == 1:
        np.testing.assert_allclose(found, logit(expit(logits).mean(0)), rtol=1e-4)
    else:
        np.testing.assert_allclose(
            log_softmax(found, -1), np.log(softmax(logits, -1).mean(0)), rtol=1e-4
        )


def test_probabilities_of_extreme_logits_stay_finite():
    logits = jnp.asarray([[[1e4]], [[-1e4]]])
    assert average_logits(logits, "probabilities") == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_copies_of_a_network_are_the_network(average, members):
    images = noise(SIZE)
    ensemble = Ensemble(tuple(member() for _ in range(3)), average)
    found = ensemble.apply(join_variables([members[0]] * 3), images)
    alone = member().apply(members[0], images, train=False)
    np.testing.assert_allclose(found.logits, alone.logits, rtol=1e-5, atol=1e-6)


def test_one_file_answers_as_the_members_do_on_average(members):
    images = noise(SIZE).astype(np.uint8)
    ensemble = Ensemble(tuple(member() for _ in range(3)))
    content = conversion.convert(
        ensemble,
        join_variables(members),
        image_size=SIZE,
        input_dtype="float32",
        activation_map=False,
    )
    alone = [member().apply(v, images.astype(np.float32), train=False) for v in members]
    expected = np.mean([each.logits[:, 0] for each in alone], axis=0)
    found = PhoneModel(content, source="the ensemble").score(images)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_network_given_twice_is_refused():
    with pytest.raises(ValueError, match="of its own"):
        Ensemble((member(),) * 2)


def test_it_does_not_train(members):
    with pytest.raises(ValueError, match="finished networks"):
        Ensemble((member(),)).apply(
            join_variables(members[:1]), noise(SIZE), train=True
        )
