"""Several finished networks as one: it can be scored and exported as any other."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from mela_jax.models.head import Classifier
from mela_jax.models.outputs import LAST_MAP, Outputs

Average = Literal["logits", "probabilities"]


class Ensemble(nn.Module):
    """Networks that tell the same classes apart, and the average of their answers.

    Attributes:
      networks: the members, each an object of its own.
      average: "logits", or "probabilities": the logits are then those of the mean
        probability of each class.
    """

    networks: tuple[Classifier, ...]
    average: Average = "logits"

    def __post_init__(self) -> None:
        """Refuse a network that is given twice: Flax would share its variables."""
        if len(set(map(id, self.networks))) < len(self.networks):
            raise ValueError("each member must be an object of its own")
        super().__post_init__()

    def __call__(self, image: jax.Array, *, train: bool = False) -> Outputs:
        """Return the `Outputs` of float [B, H, W, 3], RGB in [0, 255].

        Features and last maps are those of all members, one after the other; the last
        maps must have the same size.

        Raises:
          ValueError: in training, for which there is nothing to learn together.
        """
        if train:
            raise ValueError("an ensemble is made of finished networks")
        outputs = [network(image, train=False) for network in self.networks]
        logits = jnp.stack([each.logits for each in outputs])
        return Outputs(
            logits=average_logits(logits, self.average),
            features=jnp.concatenate([each.features for each in outputs], axis=-1),
            maps={
                LAST_MAP: jnp.concatenate([e.maps[LAST_MAP] for e in outputs], axis=-1)
            },
        )


def average_logits(logits: jax.Array, average: Average) -> jax.Array:
    """Average the logits float32[M, B, K] of M members: float32[B, K].

    With K = 1 there are two classes all the same.
    """
    if average == "logits":
        return jnp.mean(logits, axis=0)
    if logits.shape[-1] > 1:
        return _log_mean_exp(jax.nn.log_softmax(logits, axis=-1))
    positive = _log_mean_exp(jax.nn.log_sigmoid(logits))
    return positive - _log_mean_exp(jax.nn.log_sigmoid(-logits))


def _log_mean_exp(x: jax.Array) -> jax.Array:
    return jax.nn.logsumexp(x, axis=0) - jnp.log(x.shape[0])


def join_variables(members: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the variables of an `Ensemble` from those of its members, in order."""
    joined: dict[str, dict[str, Any]] = {}
    for index, variables in enumerate(members):
        for collection, tree in variables.items():
            joined.setdefault(collection, {})[f"networks_{index}"] = tree
    return joined
