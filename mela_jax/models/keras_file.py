"""Keras's HDF5 files of weights, read as data only, with h5py.

Keras legacy `.h5` (what keras.applications downloads; also `model.save("x.h5")`) and
Keras 3 `.weights.h5` (`model.save_weights`).
"""

import re
from collections.abc import Sequence
from typing import Any

import h5py

from mela_jax.models.stored import Misfit, Source, first_few
from mela_jax.models.weights import KerasLayer, KerasWeights, Key


def match_keras(h5: h5py.File, weights: KerasWeights) -> dict[Key, Source]:
    """Find each body variable's data set: by name, else by class, else by order.

    Args:
      h5: the open file.
      weights: the network's layers.

    Returns:
      Path of a variable, such as ("params", "body", "stem_conv", "kernel") -> source.

    Raises:
      Misfit: layers are missing, or have no place in the network.
      ValueError: the file points to another one, or a layer is no layer of Keras's.
    """
    # No body here has a dense layer, so a matrix belongs to somebody's head.
    ignored = {_modern(name) for name in weights.ignored}
    stored = {
        name: datasets
        for name, datasets in _read_layers(h5).items()
        if name not in ignored and len(datasets[0].shape) != 2
    }
    by_name = {_modern(layer.name): layer for layer in weights.layers}
    by_class: dict[str, KerasLayer] = {}
    counts: dict[str, int] = {}
    for layer in weights.layers:
        count = counts.setdefault(layer.kind, 0)
        by_class[f"{layer.kind}_{count}" if count else layer.kind] = layer
        counts[layer.kind] += 1
    if stored.keys() & by_name.keys():
        layers = by_name
    elif stored.keys() & by_class.keys():
        layers = by_class
    else:
        # Names of an older release: Keras itself loads such files by position.
        layers = dict(zip(stored, weights.layers, strict=False))
    if missing := layers.keys() - stored.keys():
        raise Misfit(f"{len(missing)} layers are missing ({first_few(missing)})")
    if extra := stored.keys() - layers.keys():
        raise Misfit(f"{len(extra)} layers have no place ({first_few(extra)})")
    sources: dict[Key, Source] = {}
    for name, datasets in stored.items():
        sources |= _sources(name, datasets, layers[name])
    return sources


def _sources(
    name: str, datasets: Sequence[h5py.Dataset], layer: KerasLayer
) -> dict[Key, Source]:
    """Name the variables that a layer's data sets fill; Keras fixes their order."""
    params: Key = ("params", "body", *layer.path)
    stats: Key = ("batch_stats", "body", *layer.path)
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
        raise ValueError(f"layer {name} holds {len(datasets)} values, not {len(keys)}")
    sources = {}
    for key, dataset in zip(keys, datasets, strict=True):
        axes = tuple(range(len(dataset.shape)))
        if layer.kind == "depthwise_conv2d" and len(axes) == 4:
            # Keras keeps (k, k, channels, multiplier 1), a grouped convolution
            # wants (k, k, 1, channels).
            axes = (0, 1, 3, 2)
        sources[key] = Source(f"{name}/{key[-1]}", dataset, axes)
    return sources


def _read_layers(h5: h5py.File) -> dict[str, list[h5py.Dataset]]:
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
