"""A network that compiles in a second, and a training run with it.

Shared by the tests of the training step and by the processes that they start.
"""

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
from mela_jax.distill.terms import Seen, Term, init_aux, make_hard_term, make_terms
from mela_jax.images import Images
from mela_jax.labels import LabelSpace
from mela_jax.models.head import Classifier, Head
from mela_jax.models.normalization import BatchNorm
from mela_jax.models.outputs import LAST_MAP
from mela_jax.plan import Context, Stage
from mela_jax.saved_models import Model, initial_variables, make_scorer
from mela_jax.state import TrainState, Variables, create_state
from mela_jax.tasks import make_validate, shapes_seen
from mela_jax.teacher_cache import cached_logits

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
    return jax.device_get(initial_variables(model, IMAGE_SIZE, seed))


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


def context(
    mesh: parallel.Mesh, workdir: Path, *, pictures: Images | None = None, **fields: Any
) -> Context:
    """Return what a run in a folder works with; `fields` are of its configuration."""
    config = mela_config.default()
    config.update({"eval_batch_size": 8, **fields})
    config.data.cache_dir = str(workdir)
    return Context(config, workdir, [], pictures or images(), mesh)


def kept_logits(
    mesh: parallel.Mesh,
    directory: Path,
    *,
    teacher: Model | None = None,
    pictures: Images | None = None,
    views: Views = VIEWS,
    num_views: int = 2,
    seed: int = 4,
    batch_size: int = 8,
) -> np.ndarray:
    """Return a teacher's logits of some views of the images, kept in a folder."""
    if teacher is None:
        net = network(axis_name=parallel.BATCH_AXIS)
        variables = parallel.replicate(mesh, initial(net, seed=11))
        teacher = Model(net, make_scorer(net, mesh), variables, DESCRIPTION)
    run = context(mesh, directory, pictures=pictures, eval_batch_size=batch_size)
    return cached_logits(teacher, run, views, num_views=num_views, seed=seed)


def share_of(
    whole: dict[str, np.ndarray], *, process: int, of: int
) -> dict[str, np.ndarray]:
    """Return the rows of a batch that one of `of` processes feeds to its devices."""
    return {
        key: np.split(value, of)[process]  # consecutive rows, in order
        for key, value in whole.items()
    }


def hard_loss(*, counts: tuple[int, ...] = (30, 10), **fields: Any) -> losses.LabelLoss:
    """Return the cross-entropy of one logit, or what fields of a stage make of it."""
    settings = mela_config.default().student
    settings.update(fields)
    return losses.make_hard_loss(settings, counts=np.array(counts), melanoma=1)


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


def shapes_of(student: nn.Module, *teachers: nn.Module) -> Seen:
    """Return the shapes of what terms will see."""
    return shapes_seen(student, teachers, IMAGE_SIZE)


def distill_terms(
    shapes: Seen,
    *,
    alpha: float = 0.5,
    hard: losses.LabelLoss | None = None,
    **weights: float,
) -> tuple[Term, ...]:
    """Return the terms of learning from labels and teachers."""
    distill = mela_config.default().distill
    distill.update({"alpha": alpha, "temperature": TEMPERATURE, "weights": weights})
    return make_terms(
        hard or hard_loss(), distill, num_teachers=len(shapes.teachers), shapes=shapes
    )


def make_run(
    mesh: parallel.Mesh,
    model: Classifier,
    terms: tuple[Term, ...],
    teachers: Teachers | None = None,
    *,
    shapes: Seen | None = None,
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
    state = create_state(
        initial(model, seed=SEED),
        optimizer,
        use_ema=ema_decay > 0,
        aux=init_aux(terms, shapes, jax.random.key(SEED)) if shapes else {},
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
    workdir: Path,
    *,
    pictures: Images | None = None,
    model: Classifier | None = None,
    terms: tuple[Term, ...] | None = None,
    taught_by: Teachers | None = None,
    views: Views = VIEWS,
    seed: int = 0,
    log_every_steps: int = 1,
    **changes: float,
) -> train.FitResult:
    """Train the network on noise; `changes` are fields of config.student."""
    run = context(mesh, workdir, pictures=pictures, log_every_steps=log_every_steps)
    settings = run.config.student
    settings.update({"epochs": 1, "batch_size": 16, "warmup_epochs": 0.0, **changes})
    model = model or network(axis_name=parallel.BATCH_AXIS)
    task = train.Task(
        stage=Stage("student", "student", settings, seed, views),
        network=model,
        variables=initial(model, seed=0),
        terms=terms or hard_terms(),
        teachers=taught_by or Teachers(),
        validate=make_validate(make_scorer(model, mesh), run),
    )
    return train.fit(task, run)
