"""Pretrained weights: which file a network starts from, and whether it fits.

Three layouts are read (`weight_files`):

- Keras legacy `.h5` (what keras.applications downloads; also `model.save("x.h5")`);
- Keras 3 `.weights.h5` (`model.save_weights`);
- `.npz` of a PyTorch state dict.

A network's entry in its family's file says which of them it takes, and how the names
map onto the body's. A file is accepted only if its body and the network's match one to
one, every shape included. A classification head in the file is ignored.
"""

import hashlib
import http.client
import os
import urllib.request
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from mela_jax.atomic import write_atomically
from mela_jax.errors import UserError
from mela_jax.models.registry import KerasWeights, Key, StateDict
from mela_jax.models.weight_files import (
    Misfit,
    Sources,
    read_keras,
    read_state_dict,
    refuse,
)
from mela_jax.models.zoo import MODELS

DOWNLOAD_TIMEOUT_S = 30
KERAS_URL = "https://storage.googleapis.com"

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


def load_pretrained(
    name: str, variables: Mapping[str, Any], *, init: str | os.PathLike[str]
) -> dict[str, Any]:
    """Return the variables with the body's, all float32, replaced by pretrained ones.

    Args:
      name: the model's name, a key of `zoo.MODELS`.
      variables: {"params": {"body", "head"}, "batch_stats": {"body"}} as initialised;
        they are never changed.
      init: "imagenet" (keras.applications' own file, downloaded where it is not
        cached), or the path of a file: a Keras `.h5` or `.weights.h5`, or a `.npz`
        where the network's weights are a PyTorch `StateDict`.

    Raises:
      UserError: if the file cannot be had or read, or does not fit the network exactly.
    """
    weights = _weights_of(name)
    file = find_imagenet_file(name) if init == "imagenet" else Path(init)
    if not file.is_file():
        raise UserError(
            f"no weights for {name}: there is no file {file}; give init='imagenet', "
            "init='random', or the path of a Keras .h5 or of a .npz file"
        )
    flat = traverse_util.flatten_dict(dict(variables))
    body = {
        key: leaf
        for key, leaf in flat.items()
        if key[1] == "body" and not key[2].startswith(weights.new_parts)
    }
    try:
        values = _check(body, _read(name, file))
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


def _weights_of(name: str) -> KerasWeights | StateDict:
    weights = MODELS[name].weights
    if weights is None:
        raise UserError(
            f"there are no pretrained weights for {name}: give init='random'"
        )
    return weights


def find_imagenet_file(name: str) -> Path:
    """Return keras.applications' file for a model, downloading it where needed.

    The file is kept where Keras keeps it (`$KERAS_HOME/models`, by default
    `~/.keras/models`) and its digest, where keras.applications publishes one, is
    verified.

    Raises:
      UserError: if there is none for this model, or it cannot be downloaded.
    """
    weights = _weights_of(name)
    if isinstance(weights, StateDict):
        raise UserError(
            f"init='imagenet' has no download for {name}: give init=<path of "
            f"{name}_imagenet.npz>, an archive of the state dict of "
            f"{weights.source}, or init='random'"
        )
    url = f"{KERAS_URL}/{weights.path}"
    home = os.environ.get("KERAS_HOME", os.path.join("~", ".keras"))
    file = Path(home).expanduser() / "models" / url.rsplit("/", 1)[1]
    if file.is_file() and _is_intact(file.read_bytes(), weights.digest):
        return file
    try:
        with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT_S) as response:
            content = response.read()
        if not _is_intact(content, weights.digest):
            raise OSError("what arrived has another digest than the published file")
        write_atomically(file, content)
    except (OSError, http.client.HTTPException, UserError) as error:
        raise UserError(
            f"no ImageNet weights for {name}: cannot download {url} "
            f"({error}); put that file at {file}, or give init=<path of a Keras .h5 "
            "file>, or init='random'"
        ) from error
    return file


def _is_intact(content: bytes, digest: str | None) -> bool:
    """Compare with an MD5 or, if it is longer, a SHA-256; without one all is well."""
    if digest is None:
        return True
    algorithm = "md5" if len(digest) == 32 else "sha256"
    return hashlib.new(algorithm, content, usedforsecurity=False).hexdigest() == digest


def _read(name: str, file: Path) -> Sources:
    """Read a file of weights and name the body's variables in it."""
    weights = _weights_of(name)
    if h5py.is_hdf5(file):
        if not isinstance(weights, KerasWeights):
            raise UserError(f"{name} takes a .npz file, but {file} is HDF5")
        with h5py.File(file, "r") as h5:
            return read_keras(h5, weights)
    if zipfile.is_zipfile(file):
        if not isinstance(weights, StateDict):
            raise UserError(
                f"{name} takes a Keras .h5 or .weights.h5 file, but {file} is a "
                "zip archive (for a .keras file: load it in Keras and call "
                "save_weights)"
            )
        return read_state_dict(file, weights)
    raise UserError(
        f"cannot read weights for {name}: {file} is neither HDF5 nor .npz; "
        "it may be truncated, fetch it again"
    )


def _check(body: Mapping[Key, Any], sources: Sources) -> dict[Key, jax.Array]:
    """Return the values, float32, if they are just what the body takes."""
    shared = [(*source, body[k]) for k, source in sources.items() if k in body]
    refuse(
        {
            "values are missing": ["/".join(k) for k in body.keys() - sources.keys()],
            "values have no place": [
                sources[k][0] for k in sources.keys() - body.keys()
            ],
            "shapes differ": [
                f"{label} {value.shape} for {leaf.shape}"
                for label, value, leaf in shared
                if value.shape != leaf.shape
            ],
            "values are not floats": [
                f"{label} {value.dtype}"
                for label, value, _ in shared
                if value.dtype.kind != "f"
            ],
            "hold NaN or infinity": [
                label
                for label, value, _ in shared
                if value.dtype.kind == "f" and not np.isfinite(value).all()
            ],
        }
    )
    return {k: jnp.asarray(value, jnp.float32) for k, (_, value) in sources.items()}
