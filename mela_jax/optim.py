"""The optimizer: AdamW, cosine schedule with warm-up, gradient clipping."""

from typing import Any

import jax
import optax


def make_schedule(
    *, learning_rate: float, total_steps: int, warmup_steps: int
) -> optax.Schedule:
    """Return step -> learning rate: linear warm-up from 0, then half a cosine to 0."""
    # A warm-up as long as the run would leave the cosine no step.
    warmup_steps = min(warmup_steps, total_steps - 1)
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup_steps else learning_rate,
        peak_value=learning_rate,
        warmup_steps=warmup_steps,
        decay_steps=total_steps,
    )


def decays(params: Any) -> Any:
    """Mark the parameters that weight decay applies to: kernels, not biases or scales.

    Batch norm's scale and bias and every layer's bias are vectors; shrinking them
    regularises nothing.
    """
    return jax.tree.map(lambda p: p.ndim > 1, params)


def make_optimizer(
    *,
    learning_rate: float,
    total_steps: int,
    warmup_steps: int,
    weight_decay: float,
    clip_norm: float,
) -> optax.GradientTransformation:
    """Return AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) behind a norm clip.

    Args:
      learning_rate: peak of the schedule.
      total_steps: steps of the whole run.
      warmup_steps: steps of the linear warm-up.
      weight_decay: decoupled decay of kernels.
      clip_norm: largest global norm of the gradient; 0 for no clipping.
    """
    schedule = make_schedule(
        learning_rate=learning_rate, total_steps=total_steps, warmup_steps=warmup_steps
    )
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    return optax.chain(
        clip, optax.adamw(schedule, weight_decay=weight_decay, mask=decays)
    )
