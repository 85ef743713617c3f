"""Files of weights: what each array in them is, told by name, class or order.

Keras legacy `.h5` and Keras 3 `.weights.h5` (with h5py), and `.npz` of a PyTorch state
dict (with NumPy), as data only.
"""

import collections
import itertools
import re
import zipfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from mela_jax.models.registry import KerasLayer, KerasWeights, Key, StateDict

# Far above any network here; stops a file that unpacks to fill the memory.
MAX_BYTES = 1 << 30

# Variable -> its name in the file, and its value with the axes in Flax's order.
Sources = dict[Key, tuple[str, np.ndarray]]


class Misfit(Exception):
    """A file that can be read, but is not that of the network: says what differs."""


def refuse(problems: Mapping[str, Collection[str]]) -> None:
    """Raise `Misfit` if any problem has labels: their number and the first three."""
    said = []
    for problem, labels in problems.items():
        if labels:
            more = f" and {len(labels) - 3} more" if len(labels) > 3 else ""
            first = ", ".join(sorted(labels)[:3])
            said.append(f"{len(labels)} {problem} ({first}{more})")
    if said:
        raise Misfit("; ".join(said))


def read_keras(h5: h5py.File, weights: KerasWeights) -> Sources:
    """Name the body's variables in a Keras file.

    Raises:
      Misfit: layers are missing, or have no place in the network.
      ValueError: the file points to another one, unpacks to too much, or holds of a
        layer what Keras's does not have.
    """
    return _match_keras(_read_layers(h5), weights)


def read_state_dict(file: Path, weights: StateDict) -> Sources:
    """Name the body's variables in a .npz of a PyTorch state dict.

    One of an unknown name goes to a place that no network has.

    Raises:
      ValueError: it unpacks to too much.
    """
    return _match_state_dict(_read_npz(file), weights)


class _Stored(NamedTuple):
    """What a file holds of a layer.

    Attributes:
      name: of the layer, in today's spelling.
      place: in a Keras 3 file, the class with its count in the file, such as
        "conv2d_3"; empty in a legacy file.
      datasets: its weights, in order.
    """

    name: str
    place: str
    datasets: list[h5py.Dataset]


def _match_keras(stored: Sequence[_Stored], weights: KerasWeights) -> Sources:
    """Find each body variable's data set: by name, else as Keras itself does.

    Keras goes by the order of the layers in a legacy file, by class and count in a new
    one. That serves names of an older release, and networks whose layers have no names
    of their own.

    Raises:
      Misfit: layers are missing, or have no place in the network.
      ValueError: a layer does not hold what a layer of Keras's does.
    """
    kinds = [layer.kind for layer in weights.layers]
    ignored = {_modern(name) for name in weights.ignored}
    stored = [
        layer
        for layer in stored
        # A matrix belongs to somebody's head, where no body has a dense layer.
        if (layer.datasets[0].ndim != 2 or "dense" in kinds)
        and not ignored & {layer.name, _unnumbered(layer.name)}
    ]
    names = [_modern(layer.name) for layer in weights.layers]
    found = _rename({layer.name: layer.datasets for layer in stored}, names)
    is_named = any(_unnumbered(n) != k for n, k in zip(names, kinds, strict=True))
    if found.keys() != set(names) and not (is_named and found.keys() & set(names)):
        counts = [kinds[:index].count(kind) for index, kind in enumerate(kinds)]
        if all(layer.place for layer in stored):
            found = {layer.place: layer.datasets for layer in stored}
            names = [f"{k}_{n}" if n else k for k, n in zip(kinds, counts, strict=True)]
        elif len(stored) == len(names):
            names = [layer.name for layer in stored]
    refuse(
        {
            "layers are missing": set(names) - found.keys(),
            "layers have no place": found.keys() - set(names),
        }
    )
    sources: Sources = {}
    for name, layer in zip(names, weights.layers, strict=True):
        sources |= _match_layer(name, found[name], layer)
    return sources


# Of a batch norm, by PyTorch's name and in Keras's order.
_NORM_LEAVES: Mapping[str, tuple[str, str]] = {
    "weight": ("params", "scale"),
    "bias": ("params", "bias"),
    "running_mean": ("batch_stats", "mean"),
    "running_var": ("batch_stats", "var"),
}


def _match_layer(
    name: str, datasets: Sequence[h5py.Dataset], layer: KerasLayer
) -> Sources:
    """Read the variables that a layer's data sets fill; Keras fixes their order."""
    leaves = list(_NORM_LEAVES.values())
    if layer.kind == "batch_normalization" and len(datasets) == 3:
        # Without gamma.
        leaves = leaves[1:]
    elif layer.kind in ("layer_normalization", "layer_scale"):
        leaves = leaves[: len(datasets)]
    elif datasets[0].ndim != 1:
        leaves = [("params", "kernel"), ("params", "bias")][: len(datasets)]
    if len(leaves) != len(datasets):
        raise ValueError(
            f"layer {name} holds {len(datasets)} values, not {len(leaves)}"
        )
    sources = {}
    for (collection, leaf), dataset in zip(leaves, datasets, strict=True):
        value = dataset[()]
        if layer.kind == "depthwise_conv2d" and value.ndim == 4:
            # Keras keeps (k, k, channels, multiplier 1), a grouped convolution
            # wants (k, k, 1, channels).
            value = np.swapaxes(value, 2, 3)
        sources[collection, "body", *layer.path, leaf] = f"{name}/{leaf}", value
    return sources


def _read_layers(h5: h5py.File) -> list[_Stored]:
    """List a file's layers that hold weights, each with its data sets in order.

    A legacy file's layers come in the order of the Keras network.

    Raises:
      ValueError: the file points to another one.
    """
    if isinstance(h5.get("model_weights", getlink=True), h5py.ExternalLink):
        raise ValueError("model_weights points to another file")
    root = h5.get("model_weights", h5)
    datasets = _own_datasets(root)
    if names := _text_attribute(root, "layer_names"):
        return [
            _Stored(_modern(name), "", [datasets[f"{layer}/{w}"] for w in weights])
            for layer in names
            for name, weights in _split(
                layer, _text_attribute(root[layer], "weight_names")
            ).items()
        ]
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
    layers = []
    for group, by_index in groups.items():
        # Some layers keep their values at their top, others in "vars" below it.
        place = group.removesuffix("/vars").split("/")[-1]
        # Keras before 3.4 did not note the layer's own name, only class and count.
        attribute = root[group].attrs.get("name")
        name = place if attribute is None else _text(attribute)
        values = [by_index[i] for i in sorted(by_index)]
        layers.append(_Stored(_modern(name), place, values))
    return layers


def _split(layer: str, weights: Sequence[str]) -> dict[str, list[str]]:
    """Group the weights of a layer by layer: a Sequential one has those of several."""
    owners = [weight.rpartition("/")[0].split("/")[-1] for weight in weights]
    if len(set(owners)) < 2:
        return {layer: list(weights)} if weights else {}
    split: dict[str, list[str]] = {}
    for owner, weight in zip(owners, weights, strict=True):
        split.setdefault(owner, []).append(weight)
    return split


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
    _limit_size(dataset.nbytes for dataset in found.values())
    return found


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _text_attribute(group: h5py.Group, name: str) -> list[str]:
    """Read a list of strings, which Keras cuts into name0, name1 ... when long."""
    chunks = (f"{name}{number}" for number in itertools.count())
    whole = [name] if name in group.attrs else []
    names = whole or itertools.takewhile(group.attrs.__contains__, chunks)
    return [_text(value) for part in names for value in group.attrs[part]]


def _modern(layer: str) -> str:
    """Spell a layer's name as Keras 3 does: Conv/BatchNorm becomes conv_bn."""
    return layer.replace("/BatchNorm", "_bn").replace("/", "_").lower()


def _rename(
    found: Mapping[str, list[h5py.Dataset]], names: Collection[str]
) -> dict[str, list[h5py.Dataset]]:
    """Take the number from a layer's name where it is the only one of that name.

    Keras numbers layers that were given no name by what else was built before.
    """
    bases = collections.Counter(_unnumbered(name) for name in found.keys() - set(names))
    return {
        base if bases[base := _unnumbered(name)] == 1 and base in names else name: of
        for name, of in found.items()
    }


def _unnumbered(layer: str) -> str:
    """Return the name of a layer without the number that tells it from its like."""
    return re.sub(r"_\d+$", "", layer)


def _limit_size(sizes: Iterable[int]) -> None:
    if sum(sizes) > MAX_BYTES:
        raise ValueError(f"it unpacks to more than {MAX_BYTES} bytes")


def _read_npz(file: Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(file) as archive:
        _limit_size(item.file_size for item in archive.infolist())
    with np.load(file, allow_pickle=False) as archive:
        return dict(archive)


# PyTorch's name of a matrix or vector that is no batch norm's, and its leaf here.
_TORCH_LEAVES: Mapping[str, tuple[str, str]] = {
    **_NORM_LEAVES,
    "in_proj_weight": ("params", "kernel"),
    "in_proj_bias": ("params", "bias"),
    "class_token": ("params", "token"),
    "pos_embedding": ("params", "positions"),
}


def _match_state_dict(arrays: Mapping[str, np.ndarray], weights: StateDict) -> Sources:
    """Name the variable that each array of a PyTorch state dict fills."""
    sources: Sources = {}
    for name, value in arrays.items():
        if name.startswith(weights.ignored) or name.endswith(".num_batches_tracked"):
            continue
        module, _, torch_leaf = name.rpartition(".")
        path = weights.path(module)
        key: Key = ("unknown", name)
        if path is not None and torch_leaf in _TORCH_LEAVES:
            collection, leaf = _TORCH_LEAVES[torch_leaf]
            if torch_leaf.endswith("weight") and value.ndim in (2, 4):
                leaf = "kernel"
                # OIHW -> HWIO; a depthwise (C, 1, k, k) -> (k, k, 1, C) likewise.
                axes = (2, 3, 1, 0) if value.ndim == 4 else (1, 0)
                value = np.transpose(value, axes)
            key = (collection, "body", *path, leaf)
        sources[key] = name, value
    return sources
