"""Hints: the student's last map, through a regressor, is to equal the teacher's.

Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015 (arXiv:1412.6550), as used
beside SSD-KD: a 1x1 convolution with bias, batch norm and ReLU on the last map.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mela_jax.models.layers import Conv
from mela_jax.models.normalization import BatchNorm


class Regressor(nn.Module):
    """Map the student's map to as many `channels` as the teacher's has.

    It is trained with the student and belongs to no model. Batch statistics are
    averaged over the mapped axis `bn_axis_name`, if any.
    """

    channels: int
    bn_axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map float[B, h, w, C] to float32[B, h, w, channels]."""
        x = Conv(self.channels, use_bias=True, fixed_bias=True, name="conv")(x)
        x = BatchNorm(
            use_running_average=not train, axis_name=self.bn_axis_name, name="bn"
        )(x)
        return jax.nn.relu(x)


def hint_loss(regressed: jax.Array, teacher: jax.Array) -> jax.Array:
    """Return the mean squared difference, float32[B], of two maps float[B, h, w, C].

    No gradient flows into the teacher's.

    Raises:
      ValueError: the maps differ in shape.
    """
    if regressed.shape != teacher.shape:
        raise ValueError(f"maps {regressed.shape} and {teacher.shape} differ in shape")
    target = jax.lax.stop_gradient(teacher).astype(jnp.float32)
    return jnp.square(regressed.astype(jnp.float32) - target).mean(axis=(1, 2, 3))
