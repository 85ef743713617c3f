"""What a training step reads and replaces."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

Variables = dict[str, Any]


@flax.struct.dataclass
class TrainState:
    """Everything that changes during training, and nothing else.

    Attributes:
      step: int32[], steps done.
      variables: {"params", "batch_stats"} of the model, float32.
      opt_state: state of the optimizer.
      ema: moving average of `variables`, the model that is evaluated; None without.
    """

    step: jax.Array
    variables: Variables
    opt_state: optax.OptState
    ema: Variables | None

    @property
    def evaluated(self) -> Variables:
        """The variables that validation scores and that become the model."""
        return self.variables if self.ema is None else self.ema


def create_state(
    variables: Variables, optimizer: optax.GradientTransformation, *, use_ema: bool
) -> TrainState:
    """Return the state before the first step."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        variables=variables,
        opt_state=optimizer.init(variables["params"]),
        # A copy: the step donates its state, and one buffer cannot be given twice.
        ema=jax.tree.map(jnp.copy, variables) if use_ema else None,
    )
