"""ResNet50 and MobileNetV3 give the numbers of keras.applications."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import keras
import numpy as np
import pytest

from mela_jax.models.cost import count_params
from mela_jax.models.pretrained import load_pretrained
from mela_jax.models.zoo import create_model
from tests.models.networks import (
    assert_outputs,
    assert_same,
    blank_variables,
    blank_with_head,
    jit_apply,
    noise,
    photographs,
    random_normalisation,
)

FAMILIES = {
    "resnet50": keras.applications.ResNet50,
    "mobilenet_v3_small": keras.applications.MobileNetV3Small,
    "mobilenet_v3_large": keras.applications.MobileNetV3Large,
}
# The layers that end each network's strides of 4, 8 and 16.
LAST_LAYERS = {
    "resnet50": ("conv2_block3_out", "conv3_block4_out", "conv4_block6_out"),
    "mobilenet_v3_small": (
        "expanded_conv_project_bn",
        "expanded_conv_2_add",
        "expanded_conv_7_add",
    ),
    "mobilenet_v3_large": (
        "expanded_conv_2_add",
        "expanded_conv_5_add",
        "expanded_conv_11_add",
    ),
}
SIZES = {"resnet50": 64, "mobilenet_v3_small": 96, "mobilenet_v3_large": 96}


@dataclasses.dataclass
class Pair:
    """A randomised Keras network, its files, and the converted one."""

    name: str
    body: keras.Model
    files: list[Path]
    blank: dict[str, Any]
    variables: dict[str, Any]
    apply: Callable[..., Any]

    def reference(self, images: np.ndarray) -> list[Any]:
        """Return Keras's four maps."""
        body = self.body
        if images.shape[1:] != body.input_shape[1:]:
            body = FAMILIES[self.name](
                weights=None, include_top=False, input_shape=images.shape[1:]
            )
            body.set_weights(self.body.get_weights())
        if self.name == "resnet50":
            images = keras.applications.resnet.preprocess_input(images.copy())
        layers = [body.get_layer(layer).output for layer in LAST_LAYERS[self.name]]
        return keras.Model(body.input, [*layers, body.output])(images, training=False)

    def check(self, images: np.ndarray) -> None:
        outputs = self.apply(self.variables, images)
        assert_outputs(outputs, self.blank, self.reference(images))


def randomise(model: keras.Model, rng: np.random.Generator) -> None:
    """Fill every layer, batch-norm statistics included, with its own numbers."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights(random_normalisation(rng, layer.gamma.shape[0]))
        elif weights := layer.get_weights():
            kernel = weights[0]
            fan_in = np.prod(kernel.shape[:2])
            if not isinstance(layer, keras.layers.DepthwiseConv2D):
                fan_in *= kernel.shape[2]
            kernel = rng.normal(0, np.sqrt(2 / fan_in), kernel.shape)
            layer.set_weights(
                [kernel, *(rng.normal(0, 0.2, w.shape) for w in weights[1:])]
            )


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Pair:
    name = request.param
    folder = tmp_path_factory.mktemp(name)
    size = SIZES[name]
    body = FAMILIES[name](weights=None, include_top=False, input_shape=(size, size, 3))
    randomise(body, np.random.default_rng(7))
    files = [folder / "legacy.h5", folder / "body.weights.h5"]
    body.save(files[0])
    body.save_weights(files[1])
    model = create_model(name, num_logits=3)
    blank = blank_with_head(model)
    variables = load_pretrained(name, blank, init=files[1])
    return Pair(name, body, files, blank, variables, jit_apply(model))


def test_both_keras_files_give_the_same_variables(pair):
    legacy = load_pretrained(pair.name, pair.blank, init=pair.files[0])
    assert jax.tree.structure(legacy) == jax.tree.structure(pair.blank)
    for one, other in zip(
        jax.tree.leaves(legacy), jax.tree.leaves(pair.variables), strict=True
    ):
        np.testing.assert_array_equal(one, other)
        assert np.isfinite(one).all()
    head = pair.blank["params"]["head"]
    num_params = pair.body.count_params() + count_params(head)
    assert count_params(legacy) == num_params


def test_noise(pair):
    pair.check(noise(SIZES[pair.name]))


def test_real_images(pair, shared):
    pair.check(photographs(shared, SIZES[pair.name]))


def test_odd_sizes(pair, shared):
    # Keras pads odd and even extents differently before a stride of 2. The large
    # MobileNetV3 has the small one's layers, so its compilation is spared.
    sizes = {"resnet50": 65, "mobilenet_v3_small": 225}
    if pair.name in sizes:
        pair.check(photographs(shared, sizes[pair.name], num=2))


def test_imagenet_weights_of_the_small_mobilenet(shared):
    name = "mobilenet_v3_small"
    file = shared / "weights" / f"{name}_imagenet.weights.h5"
    if not file.is_file():
        pytest.skip(f"no pretrained weights: {file} is absent")
    body = FAMILIES[name](weights=None, include_top=False, input_shape=(96, 96, 3))
    body.load_weights(file)
    model = create_model(name)
    variables = load_pretrained(name, blank_variables(model), init=file)
    images = noise(96)
    outputs = jit_apply(model)(variables, images)
    assert_same(outputs.maps["stride_32"], body(images, training=False))
