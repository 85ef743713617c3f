"""Optimizers and schedules: gradient clipping, then an optimizer of optax."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import optax


def make_schedule(
    *, learning_rate: float, total_steps: int, warmup_steps: int, kind: str = "cosine"
) -> optax.Schedule:
    """Return step -> learning rate: a linear warm-up from 0, then by kind.

    "cosine" is half a cosine to 0, "constant" stays at the rate.
    """
    # A warm-up as long as the run would leave the cosine no step.
    warmup_steps = min(warmup_steps, total_steps - 1)
    start = 0.0 if warmup_steps else learning_rate
    if kind == "constant":
        return optax.linear_schedule(start, learning_rate, max(warmup_steps, 1))
    return optax.warmup_cosine_decay_schedule(
        init_value=start,
        peak_value=learning_rate,
        warmup_steps=warmup_steps,
        decay_steps=total_steps,
    )


def _adamw(schedule: optax.Schedule, weight_decay: float) -> Any:
    """Return AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101).

    Weight decay shrinks kernels alone: biases and batch norm's scales are vectors, and
    shrinking those regularises nothing.
    """
    return optax.adamw(
        schedule,
        weight_decay=weight_decay,
        mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
    )


def _coupled(make: Callable[..., Any], schedule: Any, weight_decay: float) -> Any:
    """Return an optimizer whose weight decay is a part of the gradient of all."""
    return optax.chain(optax.add_decayed_weights(weight_decay), make(schedule))


# Name in the configuration -> (schedule, weight decay) -> the optimizer. Adadelta's
# numbers are those of Keras.
OPTIMIZERS: Mapping[str, Callable[[optax.Schedule, float], Any]] = {
    "adamw": _adamw,
    "adam": partial(_coupled, optax.adam),
    "sgd": partial(_coupled, partial(optax.sgd, momentum=0.9)),
    "adadelta": partial(_coupled, partial(optax.adadelta, rho=0.95, eps=1e-7)),
}


def make_optimizer(
    *,
    learning_rate: float,
    total_steps: int,
    warmup_steps: int,
    weight_decay: float,
    clip_norm: float,
    optimizer: str = "adamw",
    schedule: str = "cosine",
) -> optax.GradientTransformation:
    """Return an optimizer of `OPTIMIZERS` behind a norm clip.

    `clip_norm` is the largest global norm of the gradient, 0 for no clipping; the other
    arguments are those of `make_schedule` and of the optimizer.
    """
    rate = make_schedule(
        learning_rate=learning_rate,
        total_steps=total_steps,
        warmup_steps=warmup_steps,
        kind=schedule,
    )
    return optax.chain(
        optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
        OPTIMIZERS[optimizer](rate, weight_decay),
    )
