"""The optimizer: AdamW, cosine schedule with warm-up, gradient clipping."""

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


def make_optimizer(
    *,
    learning_rate: float,
    total_steps: int,
    warmup_steps: int,
    weight_decay: float,
    clip_norm: float,
) -> optax.GradientTransformation:
    """Return AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) behind a norm clip.

    `clip_norm` is the largest global norm of the gradient, 0 for no clipping. Weight
    decay shrinks kernels alone: biases and batch norm's scales are vectors, and
    shrinking those regularises nothing.
    """
    schedule = make_schedule(
        learning_rate=learning_rate, total_steps=total_steps, warmup_steps=warmup_steps
    )
    return optax.chain(
        optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
        optax.adamw(
            schedule,
            weight_decay=weight_decay,
            mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        ),
    )
