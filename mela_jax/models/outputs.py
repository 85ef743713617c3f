"""What every network of this project returns."""

from typing import NamedTuple

import jax


class Outputs(NamedTuple):
    """The three views of a network's answer that losses and distillation use.

    Attributes:
      logits: float32 [B], the log-odds of melanoma; P(melanoma) is its sigmoid.
      features: float32 [B, F], the vector that enters the logits layer's dropout.
      feature_map: [B, h, w, C] in the compute dtype, the body's output before pooling.
    """

    logits: jax.Array
    features: jax.Array
    feature_map: jax.Array
