"""What every network of this project returns."""

from typing import NamedTuple

import jax

# The map that a network's head reads: the last one.
LAST_MAP = "last"


class Outputs(NamedTuple):
    """The views of a network's answer that losses and distillation use.

    Attributes:
      logits: float32[B, K]; how melanoma is read out, `mela_jax.labels` says.
      features: float32[B, F], the vector that enters the logits layer's dropout.
      maps: name -> [B, h, w, C] in the compute dtype. "last" is always there: what the
        head reads, after the last activation, in most networks at 1/32 of the image's
        size. "stride_4", "stride_8" and "stride_16" are what the last block at about
        that fraction of the size returns, as far as the network has them.
        "attention" [B, h, w, 1] is the gate of a network that has one over its last
        map.
    """

    logits: jax.Array
    features: jax.Array
    maps: dict[str, jax.Array]
