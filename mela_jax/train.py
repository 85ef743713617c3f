"""The one training loop, for teacher and student alike."""

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict
from scipy.special import expit

from mela_jax import checkpoint, optim, parallel, steps
from mela_jax.data.augment import AugmentSettings
from mela_jax.data.input_pipeline import make_eval_batches, make_train_batches
from mela_jax.errors import Stopped, UserError
from mela_jax.evaluation.measure import selection_metrics
from mela_jax.models.cost import count_params
from mela_jax.progress import Progress
from mela_jax.state import TrainState, Variables, create_state

History = list[dict[str, float]]
EvalStep = Callable[[Variables, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Images:
    """The images of one working size, and which of them belong to which split.

    Attributes:
      train: uint8[N, T, T, 3], at the size from which random crops are taken.
      evaluation: uint8[N, S, S, 3], at the size the models see.
      labels: int[N], 1 for melanoma.
      rows: rows of each split, {"train", "val", "test"} -> int[...].
    """

    train: np.ndarray
    evaluation: np.ndarray
    labels: np.ndarray
    rows: dict[str, np.ndarray]

    @property
    def image_size(self) -> int:
        """Side S of the square that the models see, in pixels."""
        return self.evaluation.shape[1]


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What training leaves behind: the chosen variables and how it went."""

    variables: Variables
    history: History
    best_step: int
    seconds: float


def score(
    eval_step: EvalStep,
    variables: Variables,
    images: Images,
    split: str,
    *,
    mesh: parallel.Mesh,
    batch_size: int,
) -> np.ndarray:
    """Return the logits float32[n] of a split's images, in the order of its rows."""
    batches = make_eval_batches(
        images.evaluation,
        images.labels,
        images.rows[split],
        image_size=images.image_size,
        batch_size=batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    return score_batches(eval_step, variables, batches, images.rows[split], mesh=mesh)


def score_batches(
    eval_step: EvalStep,
    variables: Variables,
    batches: Iterable[dict[str, np.ndarray]],
    rows: np.ndarray,
    *,
    mesh: parallel.Mesh,
    render: Callable[[steps.Batch], jax.Array] | None = None,
) -> np.ndarray:
    """Return the logits float32[n] of `rows` int[n], in their order.

    Args:
      eval_step: (variables, images on the devices) -> logits.
      variables: of the network.
      batches: this process's share of batches that hold every row once: "image",
        "index" (the row) and "mask" (0 for filling), as `make_eval_batches`.
      rows: rows of the data set.
      mesh: devices.
      render: makes the images of a batch on the devices, where they are not yet in it.
    """
    position = {int(row): i for i, row in enumerate(rows)}
    logits = np.full(len(rows), np.nan, np.float32)
    for batch in batches:
        on_devices = parallel.shard_batch(mesh, batch)
        views = render(on_devices) if render else on_devices["image"]
        outputs = parallel.gather(eval_step(variables, views))
        index = parallel.gather(on_devices["index"])
        real = parallel.gather(on_devices["mask"]) > 0
        for row, value in zip(index[real], outputs[real], strict=True):
            logits[position[int(row)]] = value
    return logits


def fit(
    *,
    name: str,
    model: nn.Module,
    eval_step: EvalStep,
    variables: Variables,
    stage: ConfigDict,
    objective: steps.Objective,
    frozen: Variables,
    images: Images,
    settings: AugmentSettings,
    augment_on_device: bool,
    directory: Path,
    mesh: parallel.Mesh,
    seed: int,
    target_sensitivity: float,
    eval_batch_size: int,
    log_every_steps: int,
    num_views: int = 0,
    teacher_logits: np.ndarray | None = None,
    qat_epochs: int = 0,
    on_epoch: Callable[[History], None] | None = None,
) -> FitResult:
    """Train a model to the end of its schedule, from its latest checkpoint if any.

    The result does not depend on how often the run was interrupted: the state, the
    position in the data and the losses of the epoch so far are all in the checkpoint.

    Args:
      name: what to call the stage in logs: "teacher", "student", "baseline".
      model: network, whose batch norm averages over the mesh's axis.
      eval_step: (variables, images on the devices) -> logits of the same network.
      variables: where training starts.
      stage: config.teacher or config.student.
      objective: what the logits are scored by.
      frozen: variables handed to the objective; {} without a teacher.
      images: the data.
      settings: augmentation.
      augment_on_device: render the views in the training step, not on the host.
      directory: where checkpoints and scalars go.
      mesh: devices.
      seed: source of order, views and dropout.
      target_sensitivity: for the validation metric specificity_at_target.
      eval_batch_size: images per evaluation batch over all devices.
      log_every_steps: steps between two looks at the loss.
      num_views: views of an image that recur; 0 for a fresh one every epoch.
      teacher_logits: float32[views, N] of every view that training comes by, for an
        objective that takes them from the batch.
      qat_epochs: how many of the last epochs see the rounding of an int8 file; the
        checkpoint is chosen among them where there are any.
      on_epoch: called with the history so far after each epoch, once it is saved; what
        it raises ends the training.

    Raises:
      UserError: when the loss is not finite, or the disk is full.
      Stopped: after SIGTERM or Ctrl-C.
    """
    began = time.monotonic()
    steps_per_epoch = len(images.rows["train"]) // stage.batch_size
    total_steps = stage.epochs * steps_per_epoch
    optimizer = optim.make_optimizer(
        learning_rate=stage.learning_rate,
        total_steps=total_steps,
        warmup_steps=round(stage.warmup_epochs * steps_per_epoch),
        weight_decay=stage.weight_decay,
        clip_norm=stage.clip_norm,
    )
    # Steps before the rounding of an int8 file sets in.
    float_steps = (stage.epochs - qat_epochs) * steps_per_epoch

    def make_step(*, fake_quantize: bool) -> steps.TrainStep:
        step_fn = steps.make_train_step(
            model,
            optimizer,
            objective,
            ema_decay=stage.ema_decay,
            seed=seed,
            axis_name=parallel.BATCH_AXIS,
            fake_quantize=fake_quantize,
        )
        if augment_on_device:
            step_fn = steps.render_views(step_fn, image_size=images.image_size)
        return parallel.map_train_step(step_fn, mesh)

    float_step, rounded_step = (make_step(fake_quantize=f) for f in (False, True))
    state = parallel.replicate(
        mesh, create_state(variables, optimizer, use_ema=stage.ema_decay > 0)
    )
    template = parallel.abstract_replicated(mesh, state)
    checkpoints = checkpoint.Checkpoints(
        directory / "checkpoints", select_by=stage.select_by
    )
    history: History = []
    # Metrics of the steps of the epoch so far.
    done: list[dict[str, float]] = []
    first_step = checkpoints.latest_step() or 0
    if first_step:
        state, before = checkpoints.restore_latest(template)
        history, done = before["history"], before["epoch_so_far"]
        logging.info("%s: goes on from step %d", name, first_step)
    else:
        logging.info("%s: %s parameters", name, f"{count_params(variables):,}")
    batches = make_train_batches(
        images.train,
        images.labels,
        images.rows["train"],
        image_size=images.image_size,
        batch_size=stage.batch_size,
        seed=seed,
        start_step=first_step,
        num_steps=total_steps,
        settings=settings,
        num_views=num_views,
        render=not augment_on_device,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    progress = Progress(
        name, directory / "scalars", first_step=first_step, total_steps=total_steps
    )
    with stop_requests() as stop_requested, progress:
        pending: list[steps.Metrics] = []
        inputs = (steps.step_inputs(batch, teacher_logits) for batch in batches)
        on_devices = parallel.prefetch(mesh, inputs)
        for step, batch in enumerate(on_devices, start=first_step + 1):
            train_step = float_step if step <= float_steps else rounded_step
            # Nothing may cross between host and devices behind our back: the host
            # runs ahead of the devices until it looks at the loss.
            with jax.transfer_guard("disallow"):
                state, metrics = train_step(state, frozen, batch)
            pending.append(metrics)
            ends_epoch = step % steps_per_epoch == 0
            looks = ends_epoch or step % log_every_steps == 0
            # Several processes have to wait for each other to agree.
            asks = looks or jax.process_count() == 1
            stop = asks and parallel.any_process(stop_requested())
            if looks or stop:
                fetched = _fetch(pending, name, step, checkpoints)
                done += fetched
                pending = []
                progress.scalars(step, _mean(fetched))
            if ends_epoch:
                row = {
                    "epoch": step // steps_per_epoch,
                    "step": step,
                    **_mean(done),
                    **_validate(
                        eval_step,
                        state,
                        images,
                        mesh,
                        eval_batch_size,
                        target_sensitivity,
                    ),
                }
                done = []
                history.append(row)
                progress.scalars(
                    step, {k: v for k, v in row.items() if k.startswith("val/")}
                )
                progress.line(_describe(name, row, stage.epochs))
            if ends_epoch or stop:
                checkpoints.save(
                    step,
                    state,
                    {"history": history, "epoch_so_far": done},
                    # A checkpoint from before the rounding is not to be chosen.
                    metrics=_selection(history[-1])
                    if ends_epoch and (step > float_steps or not qat_epochs)
                    else None,
                )
            if stop and step < total_steps:
                raise Stopped(
                    f"{name}: stopped at step {step} of {total_steps} and saved in"
                    f" {checkpoints.directory}; the same command goes on from there"
                )
            if ends_epoch and on_epoch:
                on_epoch(history)
    best_step = checkpoints.best_step()
    assert best_step is not None, "the last epoch always saves its metrics"
    best, _ = checkpoints.restore_best(template)
    checkpoints.close()
    return FitResult(
        variables=best.evaluated,
        history=history,
        best_step=best_step,
        seconds=time.monotonic() - began,
    )


def _fetch(
    pending: Sequence[steps.Metrics],
    name: str,
    step: int,
    checkpoints: checkpoint.Checkpoints,
) -> list[dict[str, float]]:
    """Fetch the metrics of the steps since the last look; stop if one is not finite."""
    host = [
        {key: float(value) for key, value in metrics.items()}
        for metrics in jax.device_get(list(pending))
    ]
    losses = [metrics["loss"] for metrics in host]
    if not all(math.isfinite(loss) for loss in losses):
        first = step - len(losses) + 1
        bad = first + next(i for i, v in enumerate(losses) if not math.isfinite(v))
        good = checkpoints.latest_step()
        kept = (
            f"the last good checkpoint is {checkpoints.directory / str(good)}"
            if good
            else "there is no checkpoint yet"
        )
        raise UserError(
            f"{name}: the loss is not finite at step {bad}; {kept}; lower"
            f" config.{name}.learning_rate or set clip_norm, with a new --workdir"
        )
    return host


def _mean(metrics: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the mean over steps, under the names that the logs use."""
    return {
        f"train/{key}": float(np.mean([m[key] for m in metrics])) for key in metrics[0]
    }


def _validate(
    eval_step: EvalStep,
    state: TrainState,
    images: Images,
    mesh: parallel.Mesh,
    batch_size: int,
    target_sensitivity: float,
) -> dict[str, float]:
    logits = score(
        eval_step, state.evaluated, images, "val", mesh=mesh, batch_size=batch_size
    ).astype(np.float64)
    labels = images.labels[images.rows["val"]]
    # -log p of the label's class, as losses.bce, over the whole split at once.
    loss = np.logaddexp(0.0, np.where(labels == 1, -logits, logits)).mean()
    metrics = selection_metrics(labels, expit(logits), target=target_sensitivity)
    return {"val/loss": float(loss), **{f"val/{k}": v for k, v in metrics.items()}}


def _selection(row: dict[str, float]) -> dict[str, float]:
    return {
        key.removeprefix("val/"): value
        for key, value in row.items()
        if key.startswith("val/")
    }


def _describe(name: str, row: dict[str, float], epochs: int) -> str:
    shown = {k: v for k, v in row.items() if k not in ("epoch", "step")}
    numbers = "  ".join(f"{key} {value:.4f}" for key, value in shown.items())
    return f"{name}: epoch {row['epoch']:.0f}/{epochs}  {numbers}"


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM and Ctrl-C into a flag that the loop reads between two steps."""
    requested = False

    def request(signum: int, frame: object) -> None:
        nonlocal requested
        requested = True

    handlers = {s: signal.signal(s, request) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: requested
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
