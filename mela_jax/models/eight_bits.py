"""Which parts of a network an int8 file keeps in float.

The one list for both that need it: `export.quantize`, which makes such files, and
`mela_jax.models.fake_quant`, which trains with their rounding.
"""

import flax.linen as nn

from mela_jax.models import mobilenet_v3

# The stem and the first block see few channels of wide range: few weights, no slower
# in float, and most of the error of an int8 file otherwise. An 8-bit logit has too few
# values to place a threshold on.
_EVERYWHERE = ("body/stem_", "body/block_00", "head")
# Up to this many channels a depthwise convolution between two hard-swishes, which are
# float in any case, is no slower in float, and saves two conversions.
_NARROW = 120


def float_parts(network: nn.Module) -> tuple[str, ...]:
    """Return the parts of a network that stay float in an int8 file.

    Args:
      network: a `Classifier`.

    Returns:
      The beginnings of their paths in the network, such as "body/block_00" and "head".
    """
    body = network.body
    if not isinstance(body, mobilenet_v3.MobileNetV3):
        return _EVERYWHERE
    narrow = [
        f"body/block_{index:02d}/depthwise"
        for index, block in enumerate(body.blocks)
        if block.hard_swish and _width(body.blocks, index) <= _NARROW
    ]
    return (*_EVERYWHERE, *narrow)


def _width(blocks: tuple[mobilenet_v3.Block, ...], index: int) -> int:
    """Return the channels of a block's depthwise convolution."""
    before = blocks[index - 1].filters if index else mobilenet_v3.STEM_FILTERS
    return mobilenet_v3.round_filters(before * blocks[index].expansion)
