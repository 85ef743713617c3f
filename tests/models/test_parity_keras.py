"""Networks of keras.applications give their numbers, from both kinds of their files."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import keras
import numpy as np
import pytest

from mela_jax.models.cost import count_params
from mela_jax.models.pretrained import KERAS_URL, load_pretrained
from mela_jax.models.zoo import MODELS, create_model
from tests.models.networks import (
    assert_same,
    blank_variables,
    blank_with_head,
    jit_apply,
    noise,
    photographs,
    random_normalisation,
)

apps = keras.applications


@dataclasses.dataclass(frozen=True)
class Case:
    """How Keras makes a network, and what is compared.

    Attributes:
      make: the function of keras.applications.
      ends: the map's name -> the layer whose output it is, or, after "into ", whose
        input it is.
      size: side of the images, in pixels; small, for what costs is the compilation.
      odd: another one, 0 where a network of the same layers has one.
      preprocess: what Keras leaves to the caller.
      options: of `make`.
    """

    make: Callable[..., keras.Model]
    ends: Mapping[str, str]
    size: int = 64
    odd: int = 0
    preprocess: Callable[[Any], Any] | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def build(self, size: int) -> keras.Model:
        return self.make(
            weights=None,
            include_top=False,
            input_shape=(size, size, 3),
            **self.options,
        )


def strides(*names: str) -> dict[str, str]:
    """Name the layers that end the strides of 4, 8 and 16."""
    return dict(zip(("stride_4", "stride_8", "stride_16"), names, strict=True))


V3_SMALL = strides(
    "expanded_conv_project_bn", "expanded_conv_2_add", "expanded_conv_7_add"
)
V3_LARGE = strides("expanded_conv_2_add", "expanded_conv_5_add", "expanded_conv_11_add")
CASES = {
    "resnet50": Case(
        apps.ResNet50,
        strides("conv2_block3_out", "conv3_block4_out", "conv4_block6_out"),
        odd=65,
        preprocess=apps.resnet.preprocess_input,
    ),
    "resnet101": Case(
        apps.ResNet101,
        strides("conv2_block3_out", "conv3_block4_out", "conv4_block23_out"),
        size=32,
        preprocess=apps.resnet.preprocess_input,
    ),
    "resnet152_v2": Case(
        apps.ResNet152V2,
        strides("conv2_block2_out", "conv3_block7_out", "conv4_block35_out"),
        size=35,
        preprocess=apps.resnet_v2.preprocess_input,
    ),
    "mobilenet_v3_small": Case(apps.MobileNetV3Small, V3_SMALL, size=96, odd=225),
    "mobilenet_v3_large": Case(apps.MobileNetV3Large, V3_LARGE, size=96),
    "mobilenet_v3_small_075": Case(
        apps.MobileNetV3Small, V3_SMALL, options={"alpha": 0.75}
    ),
    "mobilenet_v3_small_minimalistic": Case(
        apps.MobileNetV3Small, V3_SMALL, odd=75, options={"minimalistic": True}
    ),
    "mobilenet_v3_large_minimalistic": Case(
        apps.MobileNetV3Large, V3_LARGE, options={"minimalistic": True}
    ),
    "mobilenet_v2": Case(
        apps.MobileNetV2,
        strides("block_2_add", "block_5_add", "block_12_add"),
        odd=75,
        preprocess=apps.mobilenet_v2.preprocess_input,
    ),
    "mobilenet": Case(
        apps.MobileNet,
        strides("conv_pw_3_relu", "conv_pw_5_relu", "conv_pw_11_relu"),
        odd=75,
        preprocess=apps.mobilenet.preprocess_input,
    ),
    "efficientnet_b0": Case(
        apps.EfficientNetB0,
        strides("block2b_add", "block3b_add", "block5c_add"),
        odd=75,
    ),
    "efficientnet_b3": Case(
        apps.EfficientNetB3, strides("block2c_add", "block3c_add", "block5e_add"), 32
    ),
    "vgg16": Case(
        apps.VGG16,
        strides("block3_conv3", "block4_conv3", "block5_conv3"),
        odd=75,
        preprocess=apps.vgg16.preprocess_input,
    ),
    "inception_v3": Case(
        apps.InceptionV3,
        {"stride_8": "mixed2", "stride_16": "mixed7"},
        size=76,
        odd=107,
        preprocess=apps.inception_v3.preprocess_input,
    ),
    "densenet121": Case(
        apps.DenseNet121,
        strides("conv2_block6_concat", "conv3_block12_concat", "conv4_block24_concat"),
        size=32,
        odd=75,
        preprocess=apps.densenet.preprocess_input,
    ),
    "convnext_base": Case(
        apps.ConvNeXtBase,
        strides(*(f"into convnext_base_downsampling_block_{n}" for n in range(3))),
        size=32,
        odd=75,
        options={"name": "convnext_base"},
    ),
}
# These have Keras's layers with other numbers of them, and a case above.
ALIKE = ("efficientnet_b2", "efficientnet_b4")


@dataclasses.dataclass
class Pair:
    """A randomised Keras network, its files, and the converted one."""

    name: str
    case: Case
    body: keras.Model
    files: list[Path]
    blank: dict[str, Any]
    variables: dict[str, Any]
    apply: Callable[..., Any]

    def check(self, images: np.ndarray) -> None:
        """Compare every map, the features and the logits with Keras's."""
        body = self.body
        if images.shape[1:] != body.input_shape[1:]:
            body = self.case.build(images.shape[1])
            body.set_weights(self.body.get_weights())
            for layer in body.layers:
                if isinstance(layer, keras.layers.Normalization):
                    layer.finalize_state()
        ends = {"last": body.output}
        for name, layer in self.case.ends.items():
            into = layer.removeprefix("into ")
            found = body.get_layer(into)
            ends[name] = found.output if into == layer else found.input
        given = images.copy()
        if self.case.preprocess:
            given = self.case.preprocess(given)
        expected = keras.Model(body.input, ends)(given, training=False)
        outputs = self.apply(self.variables, images)
        assert set(outputs.maps) == set(expected)
        for name, value in expected.items():
            assert_same(outputs.maps[name], value)
        head = self.blank["params"]["head"]["logits"]
        features = np.mean(expected["last"], axis=(1, 2))
        assert_same(outputs.features, features)
        assert_same(outputs.logits, features @ head["kernel"] + head["bias"])


def randomise(layer: Any, rng: np.random.Generator) -> None:
    """Fill a layer and those inside it, batch-norm statistics included."""
    if hasattr(layer, "layers"):
        for inner in layer.layers:
            randomise(inner, rng)
    elif isinstance(layer, keras.layers.BatchNormalization):
        values = random_normalisation(rng, layer.beta.shape[0])
        layer.set_weights(values if layer.scale else values[1:])
    elif isinstance(layer, keras.layers.Normalization):
        if layer.get_weights():
            # As the published EfficientNets end up: see the family's file.
            variance = np.square([0.229, 0.224, 0.225])
            mean = np.asarray([0.485, 0.456, 0.406])
            layer.set_weights([mean, variance, np.zeros(())])
            layer.finalize_state()
    elif len(weights := layer.get_weights()) and weights[0].ndim == 1:
        # A layer normalisation, or ConvNeXt's scale.
        shape = weights[0].shape
        values = [rng.uniform(0.6, 1.4, shape), rng.normal(0, 0.2, shape)]
        layer.set_weights(values[: len(weights)])
    elif weights:
        kernel = weights[0]
        fan_in = np.prod(kernel.shape[:-1])
        if isinstance(layer, keras.layers.DepthwiseConv2D):
            fan_in = np.prod(kernel.shape[:2])
        kernel = rng.normal(0, np.sqrt(2 / fan_in), kernel.shape)
        layer.set_weights([kernel, *(rng.normal(0, 0.2, w.shape) for w in weights[1:])])


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Pair:
    name = request.param
    case = CASES[name]
    folder = tmp_path_factory.mktemp(name)
    body = case.build(case.size)
    randomise(body, np.random.default_rng(7))
    files = [folder / "legacy.h5", folder / "body.weights.h5"]
    body.save(files[0])
    body.save_weights(files[1])
    model = create_model(name, num_logits=3)
    blank = blank_with_head(model)
    variables = load_pretrained(name, blank, init=files[1])
    return Pair(name, case, body, files, blank, variables, jit_apply(model))


def test_both_keras_files_give_the_same_variables(pair):
    legacy = load_pretrained(pair.name, pair.blank, init=pair.files[0])
    assert jax.tree.structure(legacy) == jax.tree.structure(pair.blank)
    for one, other in zip(
        jax.tree.leaves(legacy), jax.tree.leaves(pair.variables), strict=True
    ):
        np.testing.assert_array_equal(one, other)
        assert np.isfinite(one).all()


def test_counts_are_keras_s(pair):
    assert_counts(pair.name, pair.body)


@pytest.mark.parametrize("name", ALIKE)
def test_counts_of_those_that_only_differ_in_numbers(name):
    make = getattr(apps, name.replace("efficientnet_b", "EfficientNetB"))
    body = make(weights=None, include_top=False, input_shape=(32, 32, 3))
    assert_counts(name, body)
    assert_order(name, body)


def assert_counts(name: str, body: keras.Model) -> None:
    ours = blank_variables(create_model(name))
    # Keras counts the means, deviations and the count of EfficientNet's input.
    constants = 7 if name.startswith("efficientnet") else 0
    bodies = [tree.get("body", {}) for tree in (ours["params"], ours)]
    bodies[1] = ours.get("batch_stats", {})
    assert count_params({"all": bodies}) == body.count_params() - constants
    trained = sum(int(np.prod(w.shape)) for w in body.trainable_weights)
    assert count_params(bodies[0]) == trained


def test_layers_are_in_keras_s_order(pair):
    # Keras loads a file of other names by position, and so does `load_pretrained`.
    assert_order(pair.name, pair.body)


def assert_order(name: str, body: keras.Model) -> None:
    def spread(layers: Any) -> Any:
        for layer in layers:
            yield from spread(layer.layers) if hasattr(layer, "layers") else [layer]

    weighty = [
        layer
        for layer in spread(body.layers)
        if layer.weights and not isinstance(layer, keras.layers.Normalization)
    ]
    listed = MODELS[name].weights.layers
    if name == "inception_v3":
        # Its layers are numbered by all that Keras has built before.
        first = min(number_of(layer.name) for layer in weighty if "conv" in layer.name)
        found = [number_of(layer.name) - first for layer in weighty]
        assert [number_of(layer.name) for layer in listed] == found
    else:
        names = [layer.name for layer in listed]
        found = [layer.name for layer in weighty]
        # The last of ConvNeXt has no name either.
        assert names[:-1] == found[:-1]
        assert found[-1].startswith(names[-1])


def number_of(name: str) -> int:
    """Return the number at the end of a layer's name, 0 for the first."""
    last = name.split("_")[-1]
    return int(last) if last.isdecimal() else 0


class Asked(Exception):
    """Keras would now download a file."""


@pytest.mark.parametrize("name", [*CASES, *ALIKE])
def test_imagenet_file_is_keras_s(name, monkeypatch):
    asked = {}

    def get_file(file: str, url: str, *, file_hash: Any = None, **_: Any) -> None:
        asked.update(url=url, digest=file_hash)
        raise Asked

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", get_file)
    case = CASES.get(name, CASES["efficientnet_b0"])
    make = case.make
    if name in ALIKE:
        make = getattr(apps, name.replace("efficientnet_b", "EfficientNetB"))
    with pytest.raises(Asked):
        make(
            weights="imagenet",
            include_top=False,
            input_shape=(224, 224, 3),
            **case.options,
        )
    weights = MODELS[name].weights
    assert asked == {"url": f"{KERAS_URL}/{weights.path}", "digest": weights.digest}


def test_noise(pair):
    pair.check(noise(pair.case.size))


def test_real_images(pair, shared):
    pair.check(photographs(shared, pair.case.size))


def test_odd_sizes(pair, shared):
    # Keras pads odd and even extents differently before a stride of 2.
    if pair.case.odd:
        pair.check(photographs(shared, pair.case.odd, num=2))


@pytest.mark.parametrize(
    "name", ["mobilenet_v3_small", "mobilenet_v3_large_minimalistic", "mobilenet_v2"]
)
def test_imagenet_weights_at_hand(name, shared):
    file = shared / "weights" / f"{name}_imagenet.weights.h5"
    if not file.is_file():
        pytest.skip(f"no pretrained weights: {file} is absent")
    case = CASES[name]
    body = case.build(case.size)
    body.load_weights(file)
    model = create_model(name)
    variables = load_pretrained(name, blank_variables(model), init=file)
    images = noise(case.size)
    outputs = jit_apply(model)(variables, images)
    given = case.preprocess(images.copy()) if case.preprocess else images
    assert_same(outputs.maps["last"], body(given, training=False))
