"""What an int8 file of a network has in eight bits, and what it keeps in float.

The one description for `export.quantize`, which makes such files, and for
`mela_jax.models.fake_quant`, which trains with their rounding.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn

# The stem and the first block see few channels of wide range: few weights, no slower
# in float, and most of the error of an int8 file otherwise. An 8-bit logit has too few
# values to place a threshold on.
_EVERYWHERE = ("body/stem_", "body/block_00", "head")

# Convolutions inside modules of this name have 8-bit weights, and round what enters
# them over the range of the one image: the means of channels that they take reach so
# far for some images that one range for all would leave the others a few values.
DYNAMIC = "squeeze_excite"


class Rounding(NamedTuple):
    """Where a network is rounded in training, besides what enters a convolution.

    Attributes:
      enters: whether what enters a module is rounded although the module is no
        convolution: the addition at the end of a block, the gate after a ReLU, and the
        head where the last map comes from a ReLU.
      relu_after: whether a ReLU or ReLU6 is part of the convolution which a module ends
        (its batch norm, or the convolution itself where it has a bias), so that the
        rounding comes after it.
    """

    enters: Callable[[nn.Module], bool]
    relu_after: Callable[[nn.Module], bool]


class Int8(NamedTuple):
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
    """Return the beginnings of the paths of what stays float, such as "head".

    `network` is a `Classifier`.
    """
    return (*_EVERYWHERE, *network.int8.float_parts)
