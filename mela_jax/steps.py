"""Training and evaluation steps: pure functions, as one device sees them."""

from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from mela_jax.data.augment_on_device import augment_batch
from mela_jax.distill.logits import binary_kd, total_loss
from mela_jax.losses import HardLoss
from mela_jax.models.fake_quant import make_fake_quantized
from mela_jax.models.outputs import Outputs
from mela_jax.state import TrainState, Variables

Metrics = dict[str, jax.Array]
Batch = dict[str, jax.Array]
# (student logits float[B], batch, frozen variables) -> (loss float[], metrics)
Objective = Callable[[jax.Array, Batch, Variables], tuple[jax.Array, Metrics]]
TrainStep = Callable[[TrainState, Variables, Batch], tuple[TrainState, Metrics]]


def forward(network: nn.Module, variables: Variables, images: jax.Array) -> Outputs:
    """Run a network in evaluation mode on float[b, S, S, 3]."""
    return cast(Outputs, network.apply(variables, images, train=False))


def step_inputs(
    batch: dict[str, np.ndarray], teacher_logits: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Return what a step needs of a batch on the host, before it goes to the devices.

    Args:
      batch: as `make_train_batches` gives it, rendered or not; "index" int32[B], the
        row, and "view" int32[B] are left out.
      teacher_logits: float32[views, N] of every view that training comes by. Those of
        the batch are added as "teacher_logits" float32[B].
    """
    inputs = {k: v for k, v in batch.items() if k not in ("index", "view")}
    if teacher_logits is not None:
        inputs["teacher_logits"] = teacher_logits[batch["view"], batch["index"]]
    return inputs


def make_hard_objective(hard_loss: HardLoss) -> Objective:
    """Return the objective of a model that learns from labels alone."""

    def objective(
        logits: jax.Array, batch: Batch, frozen: Variables
    ) -> tuple[jax.Array, Metrics]:
        del frozen
        loss = hard_loss(logits, batch["label"]).mean()
        return loss, {"hard_loss": loss}

    return objective


def make_distill_objective(
    hard_loss: HardLoss,
    *,
    teacher: nn.Module | None,
    alpha: float,
    temperature: float,
    axis_name: str,
) -> Objective:
    """Return the objective of a student that learns from labels and from a teacher.

    The teacher runs in evaluation mode, with the frozen variables handed to the step,
    on the very array of augmented images that the student saw. Where `teacher` is None
    it did so before, and the batch holds its logits as "teacher_logits" float32[b].

    Its metrics hold `soft_gradient_share`: the norm of the soft term's gradient by the
    logits over the sum of both terms' norms, each with its weight. Near 0, the teacher
    has no say, whatever the configuration claims.
    """

    def objective(
        logits: jax.Array, batch: Batch, frozen: Variables
    ) -> tuple[jax.Array, Metrics]:
        if teacher is None:
            targets = batch["teacher_logits"]
        else:
            targets = forward(teacher, frozen, batch["image"]).logits

        def hard_term(z: jax.Array) -> jax.Array:
            return total_loss(hard_loss(z, batch["label"]), 0.0, alpha=alpha).mean()

        def soft_term(z: jax.Array) -> jax.Array:
            soft = binary_kd(z, targets, temperature=temperature)
            return total_loss(0.0, soft, alpha=alpha).mean()

        norms = [
            jnp.sqrt(jax.lax.pmean(jnp.sum(jax.grad(term)(logits) ** 2), axis_name))
            for term in (hard_term, soft_term)
        ]
        hard, soft = hard_term(logits), soft_term(logits)
        return hard + soft, {
            "hard_loss": hard,
            "soft_loss": soft,
            # Both gradients can be exactly zero where a loss is saturated.
            "soft_gradient_share": norms[1] / jnp.maximum(sum(norms), 1e-30),
        }

    return objective


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    *,
    ema_decay: float,
    seed: int,
    axis_name: str,
    fake_quantize: bool = False,
) -> TrainStep:
    """Return step(state, frozen, batch) -> (state, metrics) for teacher or student.

    Args:
      model: network whose `apply` gives `Outputs`.
      optimizer: optax transformation.
      objective: what the logits are scored by; only the model is differentiated.
      ema_decay: decay of the moving average of the variables; unused without one.
      seed: source of the dropout masks, with the step's number.
      axis_name: mesh axis over which gradients and metrics are averaged.
      fake_quantize: let the model feel the rounding of an int8 file.

    The batch holds "image" float32[b, S, S, 3] in [0, 255] and "label" int32[b], this
    device's rows. The metrics are float32[], the same on every device.
    """
    apply = make_fake_quantized(model) if fake_quantize else model.apply

    def step(
        state: TrainState, frozen: Variables, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        dropout_key = jax.random.fold_in(jax.random.key(seed), state.step)

        def loss_fn(params: Any) -> tuple[jax.Array, tuple[Metrics, Any]]:
            outputs, updates = apply(
                {**state.variables, "params": params},
                batch["image"],
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": dropout_key},
            )
            loss, metrics = objective(outputs.logits, batch, frozen)
            return loss, (metrics, updates)

        (loss, (metrics, updates)), gradients = jax.value_and_grad(
            loss_fn, has_aux=True
        )(state.variables["params"])
        gradients = jax.lax.pmean(gradients, axis_name)
        metrics = jax.lax.pmean({"loss": loss, **metrics}, axis_name)
        metrics["gradient_norm"] = optax.global_norm(gradients)
        changes, opt_state = optimizer.update(
            gradients, state.opt_state, state.variables["params"]
        )
        variables = {
            "params": optax.apply_updates(state.variables["params"], changes),
            **jax.lax.pmean(updates, axis_name),
        }
        new_state = TrainState(
            step=state.step + 1,
            variables=variables,
            opt_state=opt_state,
            ema=_moving_average(state, variables, ema_decay),
        )
        return new_state, metrics

    return step


def make_render(*, image_size: int) -> Callable[[Batch], jax.Array]:
    """Return render(batch) -> its views float32[b, image_size, image_size, 3].

    The batch holds "image" uint8[b, T, T, 3] and, as `draw_views` gives them,
    "transform" float32[b, 2, 3] and "colour" float32[b, 3, 4].
    """

    def render(batch: Batch) -> jax.Array:
        return augment_batch(
            batch["image"], batch["transform"], batch["colour"], size=image_size
        )

    return render


def render_views(step: TrainStep, *, image_size: int) -> TrainStep:
    """Return a step that first renders its views, on the device.

    Its batch is that of `make_render`; `step` finds the views in "image".
    """
    render = make_render(image_size=image_size)

    def rendering(
        state: TrainState, frozen: Variables, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        return step(state, frozen, {**batch, "image": render(batch)})

    return rendering


def make_eval_step(model: nn.Module) -> Callable[[Variables, jax.Array], jax.Array]:
    """Return step(variables, images float[b, S, S, 3]) -> logits float32[b]."""

    def step(variables: Variables, images: jax.Array) -> jax.Array:
        return forward(model, variables, images.astype(jnp.float32)).logits

    return step


def _moving_average(
    state: TrainState, variables: Variables, decay: float
) -> Variables | None:
    if state.ema is None:
        return None
    # Early on a long memory would be of the random start: let it grow with the steps,
    # as tf.train.ExponentialMovingAverage does with num_updates.
    done = state.step.astype(jnp.float32)
    decay_now = jnp.minimum(decay, (1.0 + done) / (10.0 + done))
    return jax.tree.map(
        lambda average, new: average + (1.0 - decay_now) * (new - average),
        state.ema,
        variables,
    )
