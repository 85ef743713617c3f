"""The networks by name."""

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from mela_jax.errors import UserError
from mela_jax.models import families
from mela_jax.models.head import POOLS, Classifier, Head, Pool
from mela_jax.models.registry import Network


def _collect() -> dict[str, Network]:
    """Gather the entries of every file in `families`, in the order of the files."""
    networks: dict[str, Network] = {}
    for file in pkgutil.iter_modules(families.__path__, f"{families.__name__}."):
        networks |= importlib.import_module(file.name).NETWORKS
    return networks


MODELS: Mapping[str, Network] = _collect()


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

    It takes float RGB [B, H, W, 3] in [0, 255] and normalises for itself.

    Args:
      name: a key of `MODELS`.
      num_logits: K, the number of logits: 1, or the number of classes.
      pool: as in `Head`.
      hidden: as in `Head`.
      dropout: as in `Head`.
      dtype: compute dtype of the body; parameters, statistics and logits are float32.
      bn_axis_name: mapped axis over which batch statistics are averaged, or None.

    Raises:
      UserError: if the name or the pooling is unknown, or a number out of range.
    """
    if name not in MODELS:
        raise UserError(f"unknown model {name!r}: choose one of {', '.join(MODELS)}")
    if pool not in POOLS:
        raise UserError(
            f"unknown pooling {pool!r} of {name}: choose one of {', '.join(POOLS)}"
        )
    if hidden < 0:
        raise UserError(f"hidden={hidden} of {name}: give a width, or 0 for none")
    if not 0.0 <= dropout < 1.0:
        raise UserError(f"dropout={dropout} of {name}: give a number in [0, 1)")
    return Classifier(
        body=MODELS[name].make_body(dtype=dtype, bn_axis_name=bn_axis_name),
        head=Head(
            num_logits=num_logits,
            pool=pool,
            hidden=hidden,
            dropout=dropout,
            batch_axis_name=bn_axis_name,
        ),
        int8=MODELS[name].int8,
    )
