"""What this project has to know of a network, besides how it computes."""

import dataclasses
from collections.abc import Callable

import flax.linen as nn

from mela_jax.models.eight_bits import Int8
from mela_jax.models.weights import KerasWeights, StateDict


@dataclasses.dataclass(frozen=True)
class Network:
    """One entry of `zoo.MODELS`; it stands in the file of its family.

    Attributes:
      make_body: constructor of the body, to be called with dtype and bn_axis_name.
      weights: where pretrained weights come from, and how they fill the body.
      int8: what an int8 file keeps in float, and how training rounds.
    """

    make_body: Callable[..., nn.Module]
    weights: KerasWeights | StateDict
    int8: Int8 = Int8()

    @property
    def trains_rounded(self) -> bool:
        """Whether quantization-aware training knows this network."""
        return self.int8.rounding is not None
