"""The classification head, and the network made of a body and a head."""

from collections.abc import Callable, Mapping
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from mela_jax.models.dropout import keep_mask
from mela_jax.models.eight_bits import Int8
from mela_jax.models.outputs import LAST_MAP, Outputs

Pool = Literal["avg", "max", "flatten"]
POOLS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "avg": lambda x: jnp.mean(x, axis=(1, 2)),
    "max": lambda x: jnp.max(x, axis=(1, 2)),
    "flatten": lambda x: x.reshape(x.shape[0], -1),
}


class Head(nn.Module):
    """Pool a feature map over space and turn it into K logits per image.

    Everything here is float32 whatever the body computes in: a bfloat16 logit has
    eight bits, too few to place a threshold on.

    Attributes:
      num_logits: K, the number of logits.
      pool: "avg" or "max", over the whole height and width, or "flatten": every place
        of the map a feature, which fixes the image's size.
      hidden: width of an optional Dense + hard-swish layer before the logits;
        0 for none, which is the light head.
      dropout: probability, in [0, 1), that a feature is zeroed in training.
      batch_axis_name: mapped axis over which the batch is spread, or None.
    """

    num_logits: int = 1
    pool: Pool = "avg"
    hidden: int = 0
    dropout: float = 0.0
    batch_axis_name: str | None = None

    @nn.compact
    def __call__(
        self, feature_map: jax.Array, *, train: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Map [B, h, w, C] to logits float32[B, K] and features float32[B, F].

        In training the dropout mask is drawn from the rng named "dropout".
        """
        x = feature_map.astype(jnp.float32)
        features = POOLS[self.pool](x)
        if self.hidden:
            features = jax.nn.hard_swish(nn.Dense(self.hidden, name="hidden")(features))
        dropped = features
        if train and self.dropout:
            keep = keep_mask(
                self.make_rng("dropout"),
                features.shape,
                1.0 - self.dropout,
                self.batch_axis_name,
            )
            dropped = jnp.where(keep, features / (1.0 - self.dropout), 0.0)
        return nn.Dense(self.num_logits, name="logits")(dropped), features


class Classifier(nn.Module):
    """Score an image with a family's body and the common head.

    Variables are grouped as `{"params": {"body", "head"}, "batch_stats": {"body"}}`,
    so that pretrained weights fill the body and leave the head alone.

    Attributes:
      body: maps (image, train) to the maps of `Outputs` and normalises the image
        itself.
      head: maps the last of them to logits.
      int8: what an int8 file of the network keeps in float, and how training rounds.
    """

    body: nn.Module
    head: Head
    int8: Int8 = Int8()

    def __call__(self, image: jax.Array, *, train: bool) -> Outputs:
        """Return the `Outputs` of float [B, H, W, 3], RGB in [0, 255], any size.

        Training uses the batch's own statistics in batch norm (the collection
        "batch_stats" must be mutable) and dropout (rng "dropout").
        """
        # Not by the methods below: Flax writes a method's name into its layers' names,
        # by which the export knows what an int8 file keeps in float.
        maps = self.body(image, train=train)
        logits, features = self.head(maps[LAST_MAP], train=train)
        return Outputs(logits=logits, features=features, maps=maps)

    def extract(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """Return the maps of a batch: what the body makes of it."""
        return self.body(image, train=train)

    def classify(self, maps: dict[str, jax.Array], *, train: bool) -> Outputs:
        """Return what the head makes of the maps, and the maps."""
        logits, features = self.head(maps[LAST_MAP], train=train)
        return Outputs(logits=logits, features=features, maps=maps)
