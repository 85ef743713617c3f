"""What an int8 file of a network has in eight bits, and what it keeps in float.

The one description for both that need it: `export.quantize`, which makes such files,
and `mela_jax.models.fake_quant`, which trains with their rounding.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import flax.linen as nn

# The stem and the first block see few channels of wide range: few weights, no slower
# in float, and most of the error of an int8 file otherwise. An 8-bit logit has too few
# values to place a threshold on.
_EVERYWHERE = ("body/stem_", "body/block_00", "head")

Activation = Literal["relu", "hard_sigmoid", "other"]


@dataclasses.dataclass(frozen=True)
class Rounding:
    """Where a network is rounded in training, besides what enters a convolution.

    Attributes:
      enters: whether what enters a module is rounded although the module is no
        convolution: the addition at the end of a block, the gate after a ReLU, and the
        head where the last map comes from a ReLU.
      activation_after: what follows on a module that ends a convolution (its batch
        norm, or the convolution itself where it has a bias): "relu", for a ReLU or a
        ReLU6, and "hard_sigmoid" are part of the convolution, so that the rounding
        comes after them; "other" stands for a float operation, an addition or nothing.
    """

    enters: Callable[[nn.Module], bool]
    activation_after: Callable[[nn.Module], Activation]


@dataclasses.dataclass(frozen=True)
class Int8:
    """How a network becomes an int8 file.

    Attributes:
      float_parts: parts that stay float besides those of every network: the stem
        ("body/stem_..."), the first block ("body/block_00") and the head.
      rounding: where quantization-aware training rounds; None where the network cannot
        be trained so.
    """

    float_parts: tuple[str, ...] = ()
    rounding: Rounding | None = None


def float_parts(network: nn.Module) -> tuple[str, ...]:
    """Return the parts of a network that stay float in an int8 file.

    Args:
      network: a `Classifier`.

    Returns:
      The beginnings of their paths in the network, such as "body/block_00" and "head".
    """
    return (*_EVERYWHERE, *network.int8.float_parts)
