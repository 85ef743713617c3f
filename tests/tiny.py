"""A network that compiles in a second, and a training run with it.

Shared by the tests of the training step and by the processes that they start.
"""

import dataclasses
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mela_jax import config as mela_config
from mela_jax import losses, optim, parallel, steps, train
from mela_jax.data.views import AugmentSettings, Views
from mela_jax.distill.teachers import Teacher, Teachers
from mela_jax.distill.terms import (
    Shapes,
    Soft,
    Term,
    init_aux,
    make_hard_term,
    make_terms,
)
from mela_jax.images import Images
from mela_jax.labels import LabelSpace
from mela_jax.models.head import Classifier, Head
from mela_jax.models.normalization import BatchNorm
from mela_jax.models.outputs import LAST_MAP
from mela_jax.state import TrainState, Variables, create_state
from mela_jax.tasks import answer_shapes, make_validate
from mela_jax.teacher_cache import cached_logits
from mela_jax.train import FitResult, Schedule, Task

IMAGE_SIZE = 8
BATCH_SIZE = 16
TEMPERATURE = 2.0
SEED = 3
SETTINGS = AugmentSettings(**mela_config.default().augment.to_dict())
VIEWS = Views(SETTINGS)
THREE = LabelSpace(("bkl", "mel", "nv"), melanoma=1)
# As in a teacher's model.json; the last is nothing that its logits depend on.
DESCRIPTION = {
    "model": "tiny",
    "pool": "avg",
    "hidden": 0,
    "compute_dtype": "float32",
    "history": "long",
}


class Body(nn.Module):
    """One convolution with the batch norm that is averaged over the devices.

    The convolution has no bias: batch norm takes its gradient away but for rounding,
    and Adam would make a whole step of the rounding.
    """

    channels: int = 6
    bn_axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """Map [B, H, W, 3] in [0, 255] to [B, H / 2, W / 2, channels]."""
        x = image.astype(jnp.float32) / 127.5 - 1.0
        x = nn.Conv(self.channels, (3, 3), strides=2, use_bias=False, dtype=self.dtype)(
            x
        )
        x = BatchNorm(
            use_running_average=not train,
            momentum=0.9,
            axis_name=self.bn_axis_name,
            dtype=self.dtype,
        )(x)
        return {LAST_MAP: jax.nn.relu(x)}


def network(
    *,
    axis_name: str | None,
    dropout: float = 0.0,
    dtype: Any = jnp.float32,
    num_logits: int = 1,
    channels: int = 6,
) -> Classifier:
    """Return the network, whose batch is spread over the axis `axis_name`, if any."""
    return Classifier(
        body=Body(channels, bn_axis_name=axis_name, dtype=dtype),
        head=Head(num_logits=num_logits, dropout=dropout, batch_axis_name=axis_name),
    )


def initial(model: nn.Module, *, seed: int) -> Variables:
    """Return random variables on the host."""
    image = jnp.zeros((1, IMAGE_SIZE, IMAGE_SIZE, 3), jnp.float32)
    init = jax.jit(lambda key: model.init(key, image, train=False))
    return jax.device_get(init(jax.random.key(seed)))


def batch(step: int, *, classes: int = 2, views: int = 1) -> dict[str, np.ndarray]:
    """Return the whole batch of a step, over all devices and processes."""
    rng = np.random.default_rng([7, step])
    shape = (BATCH_SIZE, IMAGE_SIZE, IMAGE_SIZE, 3)
    return {
        "image": rng.uniform(0, 255, shape).astype(np.float32),
        "label": rng.integers(0, classes, BATCH_SIZE // views).astype(np.int32),
    }


def images(*, size: int = IMAGE_SIZE) -> Images:
    """Return 48 pictures of noise: 37 to train on, 8 of validation."""
    rng = np.random.default_rng(5)
    return Images(
        train=rng.integers(0, 256, (48, 12, 12, 3), np.uint8),
        evaluation=rng.integers(0, 256, (48, size, size, 3), np.uint8),
        labels=np.arange(48, dtype=np.int32) % 2,
        rows={"train": np.arange(3, 40), "val": np.arange(40, 48)},
    )


def kept_logits(mesh: parallel.Mesh, directory: Path, **changes: Any) -> np.ndarray:
    """Return a teacher's logits of two views of the images, kept in a folder."""
    teacher = network(axis_name=parallel.BATCH_AXIS)
    options: dict[str, Any] = {
        "eval_step": parallel.map_eval_step(steps.make_eval_step(teacher), mesh),
        "variables": parallel.replicate(mesh, initial(teacher, seed=11)),
        "description": DESCRIPTION,
        "images": images(),
        "views": VIEWS,
        "seed": 4,
        "num_views": 2,
        "mesh": mesh,
        "batch_size": 8,
        "directory": directory,
    }
    return cached_logits(**options | changes)


def share_of(
    whole: dict[str, np.ndarray], *, process: int, of: int
) -> dict[str, np.ndarray]:
    """Return the rows of a batch that one of `of` processes feeds to its devices."""
    return {
        key: np.split(value, of)[process]  # consecutive rows, in order
        for key, value in whole.items()
    }


def hard_loss(**changes: Any) -> losses.LabelLoss:
    """Return the cross-entropy of one logit, or what the changes make of it."""
    options: dict[str, Any] = {
        "name": "cross_entropy",
        "counts": np.array([30, 10]),
        "melanoma": 1,
        "weighting": "none",
        "melanoma_weight": 1.0,
        "label_smoothing": 0.0,
        "focal_gamma": 2.0,
        "focal_alpha": None,
    }
    options |= changes
    return losses.make_hard_loss(options.pop("name"), **options)


def hard_terms() -> tuple[Term, ...]:
    """Return the terms of learning from labels alone."""
    return (make_hard_term(hard_loss()),)


def teachers(mesh: parallel.Mesh, *networks: nn.Module, seed: int = 11) -> Teachers:
    """Return teachers that run in every step, of random variables."""
    return Teachers(
        [
            Teacher(network, parallel.replicate(mesh, initial(network, seed=seed + i)))
            for i, network in enumerate(networks)
        ]
    )


def shapes_of(student: nn.Module, *teachers: nn.Module) -> Shapes:
    """Return the shapes of what networks answer."""
    answers = [
        answer_shapes(
            each, jax.eval_shape(lambda e=each: initial(e, seed=0)), IMAGE_SIZE
        )
        for each in (student, *teachers)
    ]
    return Shapes(answers[0], tuple(answers[1:]), parallel.BATCH_AXIS)


def distill_terms(
    shapes: Shapes,
    *,
    alpha: float = 0.5,
    hard: losses.LabelLoss | None = None,
    **weights: float,
) -> tuple[Term, ...]:
    """Return the terms of learning from labels and teachers."""
    number = len(shapes.teachers)
    everything = {"logits": 1.0, "hint": 0.0, "distance": 0.0, "angle": 0.0}
    return make_terms(
        hard or hard_loss(),
        alpha=alpha,
        weights=everything | weights,
        soft=Soft(TEMPERATURE, (1 / number,) * number, "probabilities"),
        shapes=shapes,
    )


def make_run(
    mesh: parallel.Mesh,
    model: Classifier,
    terms: tuple[Term, ...],
    teachers: Teachers | None = None,
    *,
    shapes: Shapes | None = None,
    ema_decay: float = 0.0,
    learning_rate: float = 1e-2,
    total_steps: int = 10,
    render: bool = False,
) -> tuple[TrainState, Any]:
    """Return the state before the first step, and the step over the mesh's devices."""
    optimizer = optim.make_optimizer(
        learning_rate=learning_rate,
        total_steps=total_steps,
        warmup_steps=0,
        weight_decay=1e-4,
        clip_norm=1.0,
    )
    step = steps.make_train_step(
        model,
        optimizer,
        terms,
        teachers or Teachers(),
        ema_decay=ema_decay,
        seed=SEED,
        axis_name=parallel.BATCH_AXIS,
    )
    if render:
        step = steps.render_views(step, image_size=IMAGE_SIZE)
    one = {
        "image": np.zeros((1, IMAGE_SIZE, IMAGE_SIZE, 3), np.float32),
        "label": np.zeros(1, np.int32),
    }
    state = create_state(
        initial(model, seed=SEED),
        optimizer,
        use_ema=ema_decay > 0,
        aux=init_aux(terms, shapes, one, jax.random.key(SEED)) if shapes else {},
    )
    return parallel.replicate(mesh, state), parallel.map_train_step(step, mesh)


def distil(
    mesh: parallel.Mesh, *, num_steps: int, process: int = 0, processes: int = 1
) -> tuple[list[dict[str, float]], Variables]:
    """Distil a student with dropout; return each step's metrics and the variables."""
    axis = parallel.BATCH_AXIS
    teacher, student = network(axis_name=axis), network(axis_name=axis, dropout=0.5)
    taught_by = teachers(mesh, teacher)
    state, train_step = make_run(
        mesh, student, distill_terms(shapes_of(student, teacher)), taught_by
    )
    history = []
    for step in range(num_steps):
        rows = share_of(batch(step), process=process, of=processes)
        state, metrics = train_step(
            state, taught_by.frozen, parallel.shard_batch(mesh, rows)
        )
        history.append({k: float(v) for k, v in jax.device_get(metrics).items()})
    return history, jax.device_get(state.variables)


def fit(
    mesh: parallel.Mesh,
    directory: Path,
    *,
    pictures: Images | None = None,
    model: Classifier | None = None,
    terms: tuple[Term, ...] | None = None,
    taught_by: Teachers | None = None,
    views: Views = VIEWS,
    seed: int = 0,
    log_every_steps: int = 1,
    **changes: float,
) -> FitResult:
    """Train the network on noise; `changes` are fields of the schedule."""
    config = mela_config.default()
    config.eval_batch_size = 8
    stage = config.student
    stage.update({"epochs": 1, "batch_size": 16, "warmup_epochs": 0.0, **changes})
    pictures = pictures or images()
    model = model or network(axis_name=parallel.BATCH_AXIS)
    eval_step = parallel.map_eval_step(steps.make_eval_step(model), mesh)
    task = Task(
        name="student",
        network=model,
        variables=initial(model, seed=0),
        terms=terms or hard_terms(),
        teachers=taught_by or Teachers(),
        views=views,
        validate=make_validate(eval_step, config, pictures, mesh),
    )
    fields = {field.name for field in dataclasses.fields(Schedule)}
    schedule = Schedule(
        **{name: value for name, value in stage.items() if name in fields},
        seed=seed,
        log_every_steps=log_every_steps,
    )
    schedule = dataclasses.replace(schedule, qat_epochs=0)
    return train.fit(task, pictures, schedule, directory=directory, mesh=mesh)
