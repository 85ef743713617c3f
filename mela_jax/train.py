"""The one training loop, for whatever model learns by whatever terms."""

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from mela_jax import checkpoint, optim, parallel, steps
from mela_jax.data.input_pipeline import make_eval_batches, make_train_batches
from mela_jax.distill.teachers import Teachers
from mela_jax.distill.terms import Term
from mela_jax.errors import Stopped, UserError
from mela_jax.models.head import Classifier
from mela_jax.plan import Context, Stage
from mela_jax.progress import Progress
from mela_jax.state import Variables, create_state

History = list[dict[str, float]]
EvalStep = Callable[[Variables, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Task:
    """What is to be learnt, and by what: all that `fit` knows of a method.

    Attributes:
      stage: whose model it is, and how long and fast it learns.
      network: the one that learns; its batch norm averages over the mesh's axis.
      variables: where its training starts.
      terms: what is minimised is their weighted sum.
      teachers: what the terms compare with.
      validate: variables of the network -> validation metrics by name.
      aux: first variables of the terms' auxiliary modules, by term's name.
      row_weights: float[n] of the training rows, for a weighted sampler; None for every
        row once an epoch.
    """

    stage: Stage
    network: Classifier
    variables: Variables
    terms: Sequence[Term]
    teachers: Teachers
    validate: Callable[[Variables], dict[str, float]]
    aux: Mapping[str, Variables] = dataclasses.field(default_factory=dict)
    row_weights: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What training leaves behind: the chosen variables and how it went."""

    variables: Variables
    history: History
    best_step: int
    seconds: float


def fit(
    task: Task, context: Context, *, on_epoch: Callable[[History], None] | None = None
) -> FitResult:
    """Train a model to its last epoch, from its latest checkpoint if there is any.

    The result does not depend on how often the run was interrupted: the state, the
    position in the data and the losses of the epoch so far are all in the checkpoint.

    `on_epoch` is called with the history so far after each epoch, once it is saved;
    what it raises ends the training.

    Raises:
      UserError: the loss is not finite, or the disk is full.
      Stopped: after SIGTERM or Ctrl-C.
    """
    began = time.monotonic()
    images, mesh, config = context.images, context.mesh, context.config
    stage, name, settings = task.stage, task.stage.name, task.stage.settings
    directory = context.workdir / name
    images_per_step = settings.batch_size // stage.views.per_image
    steps_per_epoch = len(images.rows["train"]) // images_per_step
    total_steps = settings.epochs * steps_per_epoch
    # Steps before the rounding of an int8 file sets in.
    float_steps = (settings.epochs - stage.qat_epochs) * steps_per_epoch
    optimizer = optim.make_optimizer(
        learning_rate=settings.learning_rate,
        total_steps=total_steps,
        warmup_steps=round(settings.warmup_epochs * steps_per_epoch),
        weight_decay=settings.weight_decay,
        clip_norm=settings.clip_norm,
        optimizer=settings.optimizer,
        schedule=settings.schedule,
    )

    def make_step(*, fake_quantize: bool) -> steps.TrainStep:
        step = steps.make_train_step(
            task.network,
            optimizer,
            task.terms,
            task.teachers,
            ema_decay=settings.ema_decay,
            seed=stage.seed,
            axis_name=parallel.BATCH_AXIS,
            fake_quantize=fake_quantize,
        )
        if stage.views.on_device:
            step = steps.render_views(step, image_size=images.image_size)
        return parallel.map_train_step(step, mesh)

    float_step = make_step(fake_quantize=False)
    rounded_step = make_step(fake_quantize=stage.qat_epochs > 0)
    state = parallel.replicate(
        mesh,
        create_state(
            task.variables, optimizer, use_ema=settings.ema_decay > 0, aux=task.aux
        ),
    )
    template = parallel.abstract_replicated(mesh, state)
    checkpoints = checkpoint.open_checkpoints(
        directory / "checkpoints", select_by=settings.select_by
    )
    history: History = []
    # Metrics of its steps.
    epoch_so_far: list[dict[str, float]] = []
    first_step = checkpoints.latest_step() or 0
    if first_step:
        state, saved = checkpoint.restore_state(checkpoints, first_step, template)
        history, epoch_so_far = saved["history"], saved["epoch_so_far"]
        logging.info("%s: goes on from step %d", name, first_step)
    batches = make_train_batches(
        images.train,
        images.labels,
        images.rows["train"],
        views=stage.views,
        image_size=images.image_size,
        batch_size=settings.batch_size,
        seed=stage.seed,
        start_step=first_step,
        num_steps=total_steps,
        row_weights=task.row_weights,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    progress = Progress(
        name,
        directory / "scalars",
        first_step=first_step,
        total_steps=total_steps,
        profile_steps=config.profile_steps,
    )
    if not first_step:
        progress.parameters(task.variables)
    with stop_requests() as stop_requested, contextlib.closing(batches), progress:
        pending: list[steps.Metrics] = []
        inputs = (task.teachers.inputs(batch) for batch in batches)
        on_devices = parallel.prefetch(mesh, inputs)
        frozen = task.teachers.frozen
        for step, batch in enumerate(on_devices, start=first_step + 1):
            train_step = float_step if step <= float_steps else rounded_step
            # No hidden transfer: the host runs ahead of the devices until it looks at
            # the loss.
            with jax.transfer_guard("disallow"):
                state, metrics = train_step(state, frozen, batch)
            progress.step(step)
            pending.append(metrics)
            ends_epoch = step % steps_per_epoch == 0
            looks = ends_epoch or step % config.log_every_steps == 0
            # Several processes have to wait for each other to agree.
            asks = looks or jax.process_count() == 1
            stop = asks and parallel.any_process(bool(stop_requested()))
            if looks or stop:
                fetched = _fetch(pending, stage, step, checkpoints)
                epoch_so_far += fetched
                pending = []
                progress.scalars(step, _mean(fetched))
            selection = None
            if ends_epoch:
                validated = task.validate(state.evaluated)
                found = {f"val/{key}": value for key, value in validated.items()}
                epoch = step // steps_per_epoch
                train = _mean(epoch_so_far)
                history.append({"epoch": epoch, "step": step, **train, **found})
                epoch_so_far = []
                progress.scalars(step, found)
                progress.line(_describe(name, history[-1], settings))
                # A checkpoint from before the rounding is not to be chosen.
                if step > float_steps or not stage.qat_epochs:
                    selection = validated
            if ends_epoch or stop:
                saved = {"history": history, "epoch_so_far": epoch_so_far}
                checkpoint.save_state(
                    checkpoints, step, state, saved, metrics=selection
                )
            if stop and step < total_steps:
                raise Stopped(
                    f"{name}: stopped at step {step} of {total_steps} and saved in"
                    f" {checkpoints.directory}; the same command goes on from there",
                    stop_requested() or signal.SIGTERM,
                )
            if ends_epoch and on_epoch:
                on_epoch(history)
    best_step = checkpoints.best_step()
    assert best_step is not None, "the last epoch always saves its metrics"
    best, _ = checkpoint.restore_state(checkpoints, best_step, template)
    checkpoints.close()
    seconds = time.monotonic() - began
    return FitResult(best.evaluated, history, best_step, seconds)


def _fetch(
    pending: Sequence[steps.Metrics], stage: Stage, step: int, checkpoints: Any
) -> list[dict[str, float]]:
    """Fetch the metrics of the steps since the last look; stop if one is not finite."""
    host = [
        {key: float(value) for key, value in metrics.items()}
        for metrics in jax.device_get(list(pending))
    ]
    for number, metrics in enumerate(host, start=step - len(host) + 1):
        if math.isfinite(metrics["loss"]):
            continue
        good = checkpoints.latest_step()
        kept = (
            f"the last good checkpoint is {checkpoints.directory / str(good)}"
            if good
            else "there is no checkpoint yet"
        )
        raise UserError(
            f"{stage.name}: the loss is not finite at step {number}; {kept}; lower"
            f" config.{stage.field}.learning_rate or set clip_norm, with a new"
            " --workdir"
        )
    return host


def _mean(metrics: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the mean over steps, under the names that the logs use."""
    return {
        f"train/{key}": float(np.mean([m[key] for m in metrics])) for key in metrics[0]
    }


def _describe(name: str, row: dict[str, float], settings: ConfigDict) -> str:
    """Return the line of an epoch; the event files have all that was measured."""
    shown = ("train/loss", "val/loss", f"val/{settings.select_by}")
    numbers = "  ".join(f"{key} {row[key]:.4f}" for key in shown)
    return f"{name}: epoch {row['epoch']:.0f}/{settings.epochs}  {numbers}"


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], int]]:
    """Turn SIGTERM and Ctrl-C into a number that a loop reads between two steps.

    0 as long as nothing has come, then the number of the signal.
    """
    requested = 0

    def request(signum: int, frame: object) -> None:
        nonlocal requested
        requested = signum

    handlers = {s: signal.signal(s, request) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: requested
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)


def score(
    eval_step: EvalStep, variables: Variables, context: Context, split: str
) -> np.ndarray:
    """Return the logits float32[n, K] of a split's images, in the order of its rows."""
    images, rows = context.images, context.images.rows[split]
    batches = make_eval_batches(
        images.evaluation,
        images.labels,
        rows,
        image_size=images.image_size,
        batch_size=context.config.eval_batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    return score_batches(eval_step, variables, batches, rows, mesh=context.mesh)


def score_batches(
    eval_step: EvalStep,
    variables: Variables,
    batches: Iterable[dict[str, np.ndarray]],
    rows: np.ndarray,
    *,
    mesh: parallel.Mesh,
    render: Callable[[steps.Batch], jax.Array] | None = None,
) -> np.ndarray:
    """Return the logits float32[n, K] of `rows` int[n] of the data set, in their order.

    Each process's `batches` are its share of batches that hold every row once: "image",
    "index" (the row) and "mask" (0 for filling), as `make_eval_batches` gives them.
    `render` makes the images of a batch on the devices, where they are not yet in it.
    """
    position = {int(row): i for i, row in enumerate(rows)}
    logits = np.empty((len(rows), 0), np.float32)
    for batch in batches:
        on_devices = parallel.shard_batch(mesh, batch)
        views = render(on_devices) if render else on_devices["image"]
        outputs = parallel.gather(eval_step(variables, views))
        index = parallel.gather(on_devices["index"])
        real = parallel.gather(on_devices["mask"]) > 0
        if not logits.size:
            logits = np.full((len(rows), outputs.shape[1]), np.nan, np.float32)
        logits[[position[int(row)] for row in index[real]]] = outputs[real]
    return logits
