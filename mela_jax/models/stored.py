"""A network's variables as they lie in a file, unread."""

import dataclasses
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np


class Stored(Protocol):
    """An array, or an HDF5 data set that has not been read yet."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    def dtype(self) -> np.dtype:
        """Its type."""

    def __getitem__(self, index: tuple[()]) -> Any:
        """Read it."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Where one variable's value comes from.

    Attributes:
      label: its name in the file, for messages.
      array: the stored value.
      axes: the permutation that brings the stored axes into Flax's order.
    """

    label: str
    array: Stored
    axes: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape in Flax's order."""
        return tuple(self.array.shape[axis] for axis in self.axes)

    def read(self) -> np.ndarray:
        """Return the value, float32, in Flax's order."""
        return np.transpose(np.asarray(self.array[()], np.float32), self.axes)


class Misfit(Exception):
    """A file that can be read, but is not that of the network: says what differs."""


def first_few(labels: Iterable[str]) -> str:
    """Name the first three of some labels, and say how many more there are."""
    ordered = sorted(labels)
    more = f" and {len(ordered) - 3} more" if len(ordered) > 3 else ""
    return ", ".join(ordered[:3]) + more
