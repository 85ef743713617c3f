"""What every network of this project returns."""

from typing import NamedTuple

import jax

# The map that a network's head reads: the last one.
LAST_MAP = "stride_32"


class Outputs(NamedTuple):
    """The views of a network's answer that losses and distillation use.

    Attributes:
      logits: float32[B, K]; how melanoma is read out, `mela_jax.labels` says.
      features: float32[B, F], the vector that enters the logits layer's dropout.
      maps: name -> [B, h, w, C] in the compute dtype: "stride_4", "stride_8",
        "stride_16" and "stride_32", each what the last block at that fraction of the
        image's size returns (h = ceil(H / 4) and so on), as far as the network has
        them. "stride_32" is always there: it is what the head reads, after the last
        activation.
    """

    logits: jax.Array
    features: jax.Array
    maps: dict[str, jax.Array]
