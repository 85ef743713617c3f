"""What a training step reads and replaces."""

import dataclasses
from collections.abc import Mapping
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
      aux: the same of each auxiliary module, by its term's name; they are trained along
        and belong to no model.
      opt_state: state of the optimizer.
      ema: moving average of `variables`, the model that is evaluated; None without.
    """

    step: jax.Array
    variables: Variables
    aux: dict[str, Variables]
    opt_state: optax.OptState
    ema: Variables | None

    @property
    def evaluated(self) -> Variables:
        """The variables that validation scores and that become the model."""
        return self.variables if self.ema is None else self.ema

    @property
    def trained(self) -> Any:
        """What the optimizer changes: the parameters of model and auxiliary modules."""
        return {
            "network": self.variables["params"],
            "aux": {name: each["params"] for name, each in self.aux.items()},
        }


def create_state(
    variables: Variables,
    optimizer: optax.GradientTransformation,
    *,
    use_ema: bool,
    aux: Mapping[str, Variables] | None = None,
) -> TrainState:
    """Return the state before the first step."""
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        variables=variables,
        aux=dict(aux or {}),
        opt_state=(),
        # A copy: the step donates its state, and one buffer cannot be given twice.
        ema=jax.tree.map(jnp.copy, variables) if use_ema else None,
    )
    return dataclasses.replace(state, opt_state=optimizer.init(state.trained))
