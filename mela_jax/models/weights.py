"""Where a network's pretrained weights come from, and how a file maps onto its body.

Only descriptions, which stand beside the network in its family's file;
`mela_jax.models.pretrained` reads files by them.
"""

import dataclasses
from collections.abc import Callable

# A path of names: of a module inside a body, or of a variable among the variables.
Key = tuple[str, ...]

KERAS_URL = "https://storage.googleapis.com/tensorflow/keras-applications"


@dataclasses.dataclass(frozen=True)
class Download:
    """A file that keras.applications downloads for `weights="imagenet"`, no top."""

    url: str
    md5: str


@dataclasses.dataclass(frozen=True)
class KerasLayer:
    """A Keras layer with weights and the module of the body that it fills.

    Attributes:
      name: the layer's name in keras.applications.
      kind: the snake-case class name that Keras 3 numbers its groups by.
      path: the module's path inside the body.
    """

    name: str
    kind: str
    path: Key


@dataclasses.dataclass(frozen=True)
class KerasWeights:
    """Weights of a network of keras.applications, in an HDF5 file.

    Attributes:
      layers: the layers with weights that fill the body, in Keras's order.
      ignored: names of layers with weights that have no place in the body, such as
        the convolutions of the head. Dense layers need not be named.
      download: the file for `init="imagenet"`, or None where there is none.
    """

    layers: tuple[KerasLayer, ...]
    ignored: frozenset[str] = frozenset()
    download: Download | None = None


@dataclasses.dataclass(frozen=True)
class StateDict:
    """Weights of a PyTorch network, its state dict kept in a .npz file.

    Attributes:
      package: the pip package whose state dict it is.
      path: maps the dotted name of a PyTorch module to the path of the module inside
        the body that it fills, or to None where there is none.
      ignored: beginnings of the names that have no place in the body: the head's.
    """

    package: str
    path: Callable[[str], Key | None]
    ignored: tuple[str, ...] = ()


def conv_and_norm(conv: str, norm: str, path: Key) -> tuple[KerasLayer, ...]:
    """Describe a Keras convolution and its batch norm.

    Args:
      conv: Keras's name of the convolution.
      norm: Keras's name of the batch norm.
      path: of the two modules, which are called `<path>_conv` and `<path>_bn`.
    """
    *modules, stem = path
    return (
        KerasLayer(conv, "conv2d", (*modules, f"{stem}_conv")),
        KerasLayer(norm, "batch_normalization", (*modules, f"{stem}_bn")),
    )


def depthwise_and_norm(conv: str, norm: str, path: Key) -> tuple[KerasLayer, ...]:
    """Describe a Keras depthwise convolution and its batch norm.

    Args:
      conv: Keras's name of the convolution.
      norm: Keras's name of the batch norm.
      path: of the convolution; the batch norm is called `<path>_bn`.
    """
    *modules, stem = path
    return (
        KerasLayer(conv, "depthwise_conv2d", path),
        KerasLayer(norm, "batch_normalization", (*modules, f"{stem}_bn")),
    )
