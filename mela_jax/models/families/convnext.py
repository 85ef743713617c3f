"""ConvNeXt-Base, number for number that of keras.applications.

Liu et al., "A ConvNet for the 2020s", CVPR 2022 (arXiv:2201.03545). As in Keras without
a top, a layer normalisation of every place ends the last map; the paper's network
normalises after pooling.
"""

import functools
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mela_jax.models.layers import Conv, layer_norm, scale_to_imagenet
from mela_jax.models.outputs import LAST_MAP
from mela_jax.models.registry import KerasLayer, KerasWeights, Network

DEPTHS = (3, 3, 27, 3)
WIDTHS = (128, 256, 512, 1024)
LAYER_SCALE = 1e-6


class ConvNeXtBlock(nn.Module):
    """Filter each channel, widen and narrow each place, scale, add the input."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [B, h, w, C] to the same shape."""
        filters = x.shape[-1]
        y = Conv(
            filters,
            (7, 7),
            feature_group_count=filters,
            use_bias=True,
            dtype=self.dtype,
            name="depthwise",
        )(x)
        y = layer_norm(self.dtype, name="norm")(y)
        y = nn.Dense(4 * filters, dtype=self.dtype, name="widen")(y)
        # Flax approximates by default.
        y = jax.nn.gelu(y, approximate=False)
        y = nn.Dense(filters, dtype=self.dtype, name="narrow")(y)
        start = nn.initializers.constant(LAYER_SCALE)
        scale = self.param("scale", start, (filters,), jnp.float32)
        return x + y * scale.astype(self.dtype)


class ConvNeXt(nn.Module):
    """The body: image to a map of 1024 channels at 1/32 of the size.

    It has no batch statistics, so `bn_axis_name` does nothing.
    """

    dtype: Any = jnp.float32
    bn_axis_name: str | None = None

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """Map float RGB [B, H, W, 3] in [0, 255] to a map of each stage's end."""
        x = scale_to_imagenet(image.astype(jnp.float32))
        maps = {}
        for stage, (depth, width) in enumerate(zip(DEPTHS, WIDTHS, strict=True)):
            name = f"down_{stage}" if stage else "stem"
            k = 2 if stage else 4
            if stage:
                x = layer_norm(self.dtype, name=f"{name}_norm")(x)
            x = Conv(
                width,
                (k, k),
                strides=k,
                padding="VALID",
                use_bias=True,
                dtype=self.dtype,
                name=f"{name}_conv",
            )(x)
            if not stage:
                x = layer_norm(self.dtype, name=f"{name}_norm")(x)
            for block in range(depth):
                name = f"stage_{stage}_block_{block:02d}"
                x = ConvNeXtBlock(self.dtype, name=name)(x)
            maps[f"stride_{4 * 2**stage}"] = x
        del maps["stride_32"]
        return {**maps, LAST_MAP: layer_norm(self.dtype, name="top_norm")(x)}


def _keras_layers() -> Iterator[KerasLayer]:
    """Yield the layers with weights of Keras's ConvNeXt-Base, in Keras's order."""
    base = "convnext_base"
    for stage, depth in enumerate(DEPTHS):
        if stage:
            name, path = f"downsampling_layernorm_{stage - 1}", f"down_{stage}_norm"
            yield KerasLayer(f"{base}_{name}", "layer_normalization", (path,))
            name, path = f"downsampling_conv_{stage - 1}", f"down_{stage}_conv"
            yield KerasLayer(f"{base}_{name}", "conv2d", (path,))
        else:
            yield KerasLayer(f"{base}_stem_conv", "conv2d", ("stem_conv",))
            yield KerasLayer(
                f"{base}_stem_layernorm", "layer_normalization", ("stem_norm",)
            )
        for block in range(depth):
            prefix = f"{base}_stage_{stage}_block_{block}"
            block_path = (f"stage_{stage}_block_{block:02d}",)
            for name, kind, module in (
                ("depthwise_conv", "conv2d", "depthwise"),
                ("layernorm", "layer_normalization", "norm"),
                ("pointwise_conv_1", "dense", "widen"),
                ("pointwise_conv_2", "dense", "narrow"),
            ):
                yield KerasLayer(f"{prefix}_{name}", kind, (*block_path, module))
            yield KerasLayer(f"{prefix}_layer_scale", "layer_scale", block_path)
    yield KerasLayer("layer_normalization", "layer_normalization", ("top_norm",))


NETWORKS = {
    "convnext_base": Network(
        functools.partial(ConvNeXt),
        weights=KerasWeights(
            tuple(_keras_layers()),
            "tensorflow/keras-applications/convnext/convnext_base_notop.h5",
            "40a20c5548a5e9202f69735ecc06c990e6b7c9d2de39f0361e27baeb24cb7c45",
            ignored=frozenset(
                {"convnext_base_head_layernorm", "convnext_base_head_dense"}
            ),
        ),
    )
}
