"""Several backbones side by side, whose pooled features are joined.

A teacher in the manner of Islam et al. 2024 (arXiv:2406.17051), of whom only the three
backbones are published; the layers that join them are ours.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mela_jax.models.families import convnext, resnet_v2, vit
from mela_jax.models.outputs import LAST_MAP
from mela_jax.models.registry import Network


class Fused(nn.Module):
    """A body: backbones, each with its own scaling of the image, and dense layers.

    Attributes:
      makers: constructors of the backbones' bodies, by name.
      widths: of the dense layers with ReLU on the joined features.
    """

    makers: tuple[tuple[str, Callable[..., nn.Module]], ...]
    widths: tuple[int, ...]
    dtype: Any = jnp.float32
    bn_axis_name: str | None = None

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """Map float RGB [B, H, W, 3] in [0, 255] to one place: [B, 1, 1, F]."""
        features = []
        for name, make in self.makers:
            body = make(dtype=self.dtype, bn_axis_name=self.bn_axis_name, name=name)
            last = body(image, train=train)[LAST_MAP]
            features.append(jnp.mean(last.astype(jnp.float32), axis=(1, 2)))
        x = jnp.concatenate(features, axis=-1).astype(self.dtype)
        for index, width in enumerate(self.widths):
            dense = nn.Dense(width, dtype=self.dtype, name=f"joined_{index}")
            x = jax.nn.relu(dense(x))
        return {LAST_MAP: x[:, None, None]}


_BACKBONES = {
    "resnet152_v2": resnet_v2.NETWORKS,
    "convnext_base": convnext.NETWORKS,
    "vit_b16": vit.NETWORKS,
}
NETWORKS = {
    "fused_islam": Network(
        functools.partial(
            Fused,
            tuple((name, of[name].make_body) for name, of in _BACKBONES.items()),
            (1024, 256),
        ),
        smallest=32,
        multiple_of=vit.PATCH,
    )
}
