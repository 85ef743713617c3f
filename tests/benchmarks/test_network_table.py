"""The files whose latency the table tells compute what the network does."""

import numpy as np
import pytest

from benchmarks import network_table
from mela_jax.models.zoo import MODELS, create_model
from mela_jax.tflite import PhoneModel
from tests.models.networks import jit_apply

SIZE = 64


@pytest.mark.parametrize("name", ["tiny_student", "dsnet", "mobilenet_v3_large_gate"])
def test_the_files_of_a_student_answer_as_the_network(name):
    files = network_table.make_files(name, SIZE)
    assert list(files) == ["float32", "float16", "weight_int8", "int8"]
    model = create_model(name, pool=network_table.POOLS.get(name, "avg"))
    variables = network_table.draw_variables(model, SIZE)
    images = np.random.default_rng(1).integers(0, 256, (6, SIZE, SIZE, 3), np.uint8)
    expected = jit_apply(model)(variables, images.astype(np.float32)).logits[:, 0]
    worst = {}
    for mode, content in files.items():
        found = PhoneModel(content, source=mode).score(images)[0]
        worst[mode] = np.abs(found - expected).max() / np.std(expected)
    assert worst["float32"] < 1e-3
    assert worst["float16"] < 0.05
    assert max(worst["weight_int8"], worst["int8"]) < 1


def test_every_network_has_its_sizes():
    assert set(network_table.STUDENTS) <= set(MODELS)
    params, flops = network_table.size_of("tiny_student")
    assert params == 343_616
    assert flops == pytest.approx(2 * 175e6, rel=0.01)
