"""What this project has to know of a network, besides how it computes.

Only descriptions, which stand beside the network in its family's file; `zoo` collects
them, and `pretrained` reads files by them.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn

from mela_jax.models.eight_bits import Int8

# A path of names: of a module inside a body, or of a variable among the variables.
Key = tuple[str, ...]


class KerasLayer(NamedTuple):
    """A Keras layer with weights and the module of the body that it fills."""

    # In keras.applications.
    name: str
    # The snake-case class name that Keras 3 numbers its groups by.
    kind: str
    # Inside the body.
    path: Key


@dataclasses.dataclass(frozen=True)
class KerasWeights:
    """Weights of a network of keras.applications, in an HDF5 file.

    Attributes:
      layers: the layers with weights that fill the body, in Keras's order.
      path: where below `pretrained.KERAS_URL` the file for `init="imagenet"`, without
        top, lies.
      digest: MD5 or SHA-256 of that file, as published in keras.applications; None
        where none is.
      ignored: names of layers with weights that have no place in the body, such as
        the convolutions of the head. Dense layers need not be named, unless the body
        has some.
      new_parts: beginnings of the names of modules of the body that are in no file and
        start at random.
    """

    layers: tuple[KerasLayer, ...]
    path: str
    digest: str | None
    ignored: frozenset[str] = frozenset()
    new_parts: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class StateDict:
    """Weights of a PyTorch network, its state dict kept in a .npz file.

    Attributes:
      source: whose state dict it is, for people.
      path: maps the dotted name of a PyTorch module to the path of the module inside
        the body that it fills, or to None where there is none.
      ignored: beginnings of the names that have no place in the body: the head's.
    """

    source: str
    path: Callable[[str], Key | None]
    ignored: tuple[str, ...] = ()
    new_parts: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Network:
    """One entry of `zoo.MODELS`; it stands in the file of its family.

    Attributes:
      make_body: constructor of the body, to be called with dtype and bn_axis_name.
      weights: where pretrained weights come from, and how they fill the body; None
        where there are none.
      int8: what an int8 file keeps in float, and how training rounds.
      smallest: side in pixels of the smallest image.
      multiple_of: what the side must be a multiple of.
    """

    make_body: Callable[..., nn.Module]
    weights: KerasWeights | StateDict | None = None
    int8: Int8 = Int8()
    smallest: int = 1
    multiple_of: int = 1

    @property
    def trains_rounded(self) -> bool:
        """Whether quantization-aware training knows this network."""
        return self.int8.rounding is not None

    def takes(self, image_size: int) -> bool:
        """Say whether the network can see images of this side, in pixels."""
        return image_size >= self.smallest and image_size % self.multiple_of == 0
