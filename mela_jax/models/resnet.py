"""ResNet50, number for number that of keras.applications.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016
(arXiv:1512.03385). As in Keras: a bottleneck's stride is on its first 1x1
convolution, every convolution has a bias although batch norm follows, epsilon is
1.001e-5, and images are BGR minus the means of ImageNet ("caffe" style).
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mela_jax.models.convolution import max_pool, pointwise_conv
from mela_jax.models.normalization import BatchNorm
from mela_jax.models.registry import Network
from mela_jax.models.weights import (
    KERAS_URL,
    Download,
    KerasLayer,
    KerasWeights,
    conv_and_norm,
)

BN_EPSILON = 1.001e-5
BN_MOMENTUM = 0.99
BGR_MEANS = (103.939, 116.779, 123.68)
STAGE_BLOCKS = (3, 4, 6, 3)
STAGE_FILTERS = (64, 128, 256, 512)


class Conv(nn.Module):
    """A convolution whose bias is not trained; parameters as in `nn.Conv`.

    The batch norm that follows subtracts the bias again, so that its gradient is zero:
    computing it would cost a pass over the output.

    Attributes:
      filters: channels out.
      kernel_size: side of the square window.
      strides: step of the window.
      padding: zeros on every side.
      dtype: dtype of the computation; the parameters stay float32.
    """

    filters: int
    kernel_size: int = 1
    strides: int = 1
    padding: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map float[B, H, W, C] to float[B, H', W', filters]."""
        k = self.kernel_size
        kernel = self.param(
            "kernel",
            nn.initializers.glorot_uniform(),
            (k, k, x.shape[-1], self.filters),
            jnp.float32,
        ).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.filters,), jnp.float32)
        x = x.astype(self.dtype)
        if k == 1:
            y = pointwise_conv(x, kernel, strides=self.strides)
        else:
            y = jax.lax.conv_general_dilated(
                x,
                kernel,
                (self.strides, self.strides),
                ((self.padding, self.padding),) * 2,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        return y + jax.lax.stop_gradient(bias).astype(self.dtype)


class Bottleneck(nn.Module):
    """Reduce, filter, restore to 4 x filters; add the (projected) input.

    Attributes:
      filters: channels inside the bottleneck.
      strides: of the first convolution and of the projection.
      project: project the input with a 1x1 convolution instead of adding it as is.
      dtype: compute dtype.
      bn_axis_name: mapped axis over which batch statistics are averaged, or None.
    """

    filters: int
    strides: int
    project: bool
    dtype: Any
    bn_axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map [B, h, w, C] to [B, ceil(h/s), ceil(w/s), 4 * filters]."""
        conv = functools.partial(Conv, dtype=self.dtype)
        norm = functools.partial(
            BatchNorm,
            use_running_average=not train,
            epsilon=BN_EPSILON,
            momentum=BN_MOMENTUM,
            axis_name=self.bn_axis_name,
            dtype=self.dtype,
        )
        shortcut = x
        if self.project:
            shortcut = conv(4 * self.filters, strides=self.strides, name="conv_0")(x)
            shortcut = norm(name="bn_0")(shortcut)
        x = conv(self.filters, strides=self.strides, name="conv_1")(x)
        x = jax.nn.relu(norm(name="bn_1")(x))
        x = conv(self.filters, kernel_size=3, padding=1, name="conv_2")(x)
        x = jax.nn.relu(norm(name="bn_2")(x))
        x = norm(name="bn_3")(conv(4 * self.filters, name="conv_3")(x))
        return jax.nn.relu(x + shortcut)


class ResNet50(nn.Module):
    """The body: image to a feature map of 2048 channels at 1/32 of the size.

    Attributes:
      dtype: compute dtype; parameters and statistics stay float32.
      bn_axis_name: mapped axis over which batch statistics are averaged, or None.
    """

    dtype: Any = jnp.float32
    bn_axis_name: str | None = None

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """Map float RGB [B, H, W, 3] in [0, 255] to maps; the last has C = 2048.

        There is one map a stage: what its last block returns, after the ReLU.
        """
        x = image.astype(jnp.float32)[..., ::-1] - jnp.asarray(BGR_MEANS, jnp.float32)
        x = Conv(
            64, kernel_size=7, strides=2, padding=3, dtype=self.dtype, name="stem_conv"
        )(x)
        x = BatchNorm(
            use_running_average=not train,
            epsilon=BN_EPSILON,
            momentum=BN_MOMENTUM,
            axis_name=self.bn_axis_name,
            dtype=self.dtype,
            name="stem_bn",
        )(x)
        # Keras pads with zeros, max_pool with -inf; after a ReLU that is the same.
        x = max_pool(jax.nn.relu(x), window=3, strides=2, padding=1)
        maps = {}
        for stage, num_blocks in enumerate(STAGE_BLOCKS):
            for block in range(num_blocks):
                x = Bottleneck(
                    STAGE_FILTERS[stage],
                    strides=2 if stage > 0 and block == 0 else 1,
                    project=block == 0,
                    dtype=self.dtype,
                    bn_axis_name=self.bn_axis_name,
                    name=f"stage_{stage + 1}_block_{block + 1}",
                )(x, train=train)
            maps[f"stride_{4 * 2**stage}"] = x
        return maps


def _keras_layers() -> tuple[KerasLayer, ...]:
    """List the layers with weights of Keras's ResNet50, in Keras's order."""
    layers = conv_and_norm("conv1_conv", "conv1_bn", ("stem",))
    for stage, num_blocks in enumerate(STAGE_BLOCKS, start=1):
        for block in range(1, num_blocks + 1):
            prefix = f"conv{stage + 1}_block{block}"
            module = f"stage_{stage}_block_{block}"
            # Keras orders layers by depth, not by creation: the projection comes
            # beside the last convolution, and both convolutions before both norms.
            last = (0, 3) if block == 1 else (3,)
            order = [("conv", 1), ("bn", 1), ("conv", 2), ("bn", 2)]
            order += [("conv", i) for i in last] + [("bn", i) for i in last]
            layers += tuple(
                KerasLayer(
                    f"{prefix}_{i}_{part}",
                    "conv2d" if part == "conv" else "batch_normalization",
                    (module, f"{part}_{i}"),
                )
                for part, i in order
            )
    return layers


NETWORKS = {
    "resnet50": Network(
        ResNet50,
        weights=KerasWeights(
            _keras_layers(),
            download=Download(
                f"{KERAS_URL}/resnet/"
                "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
                "4d473c1dd8becc155b73f8504c6f6626",
            ),
        ),
    )
}
