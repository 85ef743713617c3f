"""ViT-B/16, number for number that of torchvision.

Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021 (arXiv:2010.11929).
What the head reads is the class token, a map of one place.
"""

import functools
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mela_jax.models.layers import Conv, layer_norm, scale_to_imagenet
from mela_jax.models.outputs import LAST_MAP
from mela_jax.models.registry import Key, Network, StateDict

PATCH = 16


class EncoderBlock(nn.Module):
    """Attend to all tokens, then widen and narrow each; add the input to both."""

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map tokens [B, N, D] to the same shape."""
        width = x.shape[-1]
        dense = functools.partial(nn.Dense, dtype=self.dtype)
        y = layer_norm(self.dtype, name="norm_1")(x)
        parts = jnp.split(dense(3 * width, name="query_key_value")(y), 3, axis=-1)
        query, key, value = (
            p.reshape(*p.shape[:2], self.heads, width // self.heads) for p in parts
        )
        y = jax.nn.dot_product_attention(query, key, value).reshape(x.shape)
        x = x + dense(width, name="out")(y)
        y = layer_norm(self.dtype, name="norm_2")(x)
        y = dense(4 * width, name="widen")(y)
        # Flax approximates by default.
        return x + dense(width, name="narrow")(jax.nn.gelu(y, approximate=False))


class VisionTransformer(nn.Module):
    """A body: image to the class token, [B, 1, 1, D].

    Its positions are learnt for one size of image. It has no batch statistics, so
    `bn_axis_name` does nothing.
    """

    depth: int
    width: int
    heads: int
    dtype: Any = jnp.float32
    bn_axis_name: str | None = None

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """Map float RGB [B, H, W, 3] in [0, 255], multiples of 16 pixels, to maps."""
        x = Conv(
            self.width,
            (PATCH, PATCH),
            strides=PATCH,
            padding="VALID",
            use_bias=True,
            dtype=self.dtype,
            name="stem_conv",
        )(scale_to_imagenet(image.astype(jnp.float32)))
        batch, rows, columns, width = x.shape
        token = self.param("token", nn.initializers.zeros, (1, 1, width), jnp.float32)
        start = nn.initializers.normal(0.02)
        shape = (1, rows * columns + 1, width)
        positions = self.param("positions", start, shape, jnp.float32)
        token = jnp.broadcast_to(token.astype(self.dtype), (batch, 1, width))
        x = jnp.concatenate([token, x.reshape(batch, rows * columns, width)], axis=1)
        x = x + positions.astype(self.dtype)
        for block in range(self.depth):
            x = EncoderBlock(self.heads, self.dtype, name=f"encoder_{block:02d}")(x)
        x = layer_norm(self.dtype, name="top_norm")(x)
        patches = x[:, 1:].reshape(batch, rows, columns, width)
        return {"stride_16": patches, LAST_MAP: x[:, None, :1]}


_TORCH_BLOCK = re.compile(r"encoder\.layers\.encoder_layer_(\d+)\.(.+)")
_TORCH_PARTS = {
    "ln_1": "norm_1",
    "self_attention": "query_key_value",
    "self_attention.out_proj": "out",
    "ln_2": "norm_2",
    "mlp.0": "widen",
    "mlp.3": "narrow",
    # As torchvision's first release had them.
    "mlp.linear_1": "widen",
    "mlp.linear_2": "narrow",
}
_TORCH_ENDS: dict[str, Key] = {
    "": (),
    "conv_proj": ("stem_conv",),
    "encoder": (),
    "encoder.ln": ("top_norm",),
}


def _torch_path(name: str) -> Key | None:
    """Translate the name of a torchvision module."""
    if found := _TORCH_BLOCK.fullmatch(name):
        part = _TORCH_PARTS.get(found[2])
        return None if part is None else (f"encoder_{int(found[1]):02d}", part)
    return _TORCH_ENDS.get(name)


NETWORKS = {
    "vit_b16": Network(
        functools.partial(VisionTransformer, depth=12, width=768, heads=12),
        weights=StateDict(
            "torchvision.models.vit_b_16", _torch_path, ignored=("heads.",)
        ),
        smallest=PATCH,
        multiple_of=PATCH,
    )
}
