"""The networks by name."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mela_jax.errors import UserError
from mela_jax.models import mobilenet_v3
from mela_jax.models.efficientnet_lite import EfficientNetLite
from mela_jax.models.head import Classifier, Head, Pool
from mela_jax.models.mobilenet_v3 import MobileNetV3
from mela_jax.models.resnet import ResNet50

# Name -> constructor of a body, to be called with dtype and bn_axis_name.
MODELS: Mapping[str, Callable[..., nn.Module]] = {
    "resnet50": ResNet50,
    "mobilenet_v3_small": functools.partial(MobileNetV3, mobilenet_v3.SMALL),
    "mobilenet_v3_large": functools.partial(MobileNetV3, mobilenet_v3.LARGE),
    "efficientnet_lite0": functools.partial(EfficientNetLite, width=1.0, depth=1.0),
    "efficientnet_lite2": functools.partial(EfficientNetLite, width=1.1, depth=1.2),
}


def create_model(
    name: str,
    *,
    num_logits: int = 1,
    pool: Pool = "avg",
    hidden: int = 0,
    dropout: float = 0.0,
    dtype: Any = jnp.float32,
    bn_axis_name: str | None = None,
) -> Classifier:
    """Make a network: `model.apply(variables, image, train=...)` gives `Outputs`.

    Args:
      name: a key of `MODELS`.
      num_logits: K, the number of logits: 1, or the number of classes.
      pool: "avg" or "max" pooling over the whole feature map.
      hidden: width of an optional Dense + hard-swish layer before the logits, or 0.
      dropout: probability of zeroing a feature in training, in [0, 1).
      dtype: compute dtype of the body; parameters, statistics and logits are float32.
      bn_axis_name: mapped axis over which batch statistics are averaged, or None.

    Returns:
      A module taking float RGB [B, H, W, 3] in [0, 255]; it normalises for itself.

    Raises:
      UserError: if the name or the pooling is unknown, or a number out of range.
    """
    if name not in MODELS:
        raise UserError(f"unknown model {name!r}: choose one of {', '.join(MODELS)}")
    if pool not in ("avg", "max"):
        raise UserError(f"unknown pooling {pool!r} of {name}: choose avg or max")
    if hidden < 0:
        raise UserError(f"hidden={hidden} of {name}: give a width, or 0 for none")
    if not 0.0 <= dropout < 1.0:
        raise UserError(f"dropout={dropout} of {name}: give a number in [0, 1)")
    return Classifier(
        body=MODELS[name](dtype=dtype, bn_axis_name=bn_axis_name),
        head=Head(
            num_logits=num_logits,
            pool=pool,
            hidden=hidden,
            dropout=dropout,
            batch_axis_name=bn_axis_name,
        ),
    )
