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
from mela_jax import losses, optim, parallel, steps
from mela_jax.data.augment import AugmentSettings
from mela_jax.models.head import Classifier, Head
from mela_jax.models.normalization import BatchNorm
from mela_jax.state import TrainState, Variables, create_state
from mela_jax.teacher_cache import cached_logits
from mela_jax.train import Images

IMAGE_SIZE = 8
BATCH_SIZE = 16
TEMPERATURE = 2.0
SEED = 3
SETTINGS = AugmentSettings(**mela_config.default().augment.to_dict())
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

    bn_axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        """Map [B, H, W, 3] in [0, 255] to [B, H / 2, W / 2, 6]."""
        x = image.astype(jnp.float32) / 127.5 - 1.0
        x = nn.Conv(6, (3, 3), strides=2, use_bias=False, dtype=self.dtype)(x)
        x = BatchNorm(
            use_running_average=not train,
            momentum=0.9,
            axis_name=self.bn_axis_name,
            dtype=self.dtype,
        )(x)
        return jax.nn.relu(x)


def network(
    *, axis_name: str | None, dropout: float = 0.0, dtype: Any = jnp.float32
) -> Classifier:
    """Return the network, whose batch is spread over the axis `axis_name`, if any."""
    return Classifier(
        body=Body(bn_axis_name=axis_name, dtype=dtype),
        head=Head(dropout=dropout, batch_axis_name=axis_name),
    )


def initial(model: nn.Module, *, seed: int) -> Variables:
    """Return random variables on the host."""
    image = jnp.zeros((1, IMAGE_SIZE, IMAGE_SIZE, 3), jnp.float32)
    init = jax.jit(lambda key: model.init(key, image, train=False))
    return jax.device_get(init(jax.random.key(seed)))


def batch(step: int) -> dict[str, np.ndarray]:
    """Return the whole batch of a step, over all devices and processes."""
    rng = np.random.default_rng([7, step])
    shape = (BATCH_SIZE, IMAGE_SIZE, IMAGE_SIZE, 3)
    return {
        "image": rng.uniform(0, 255, shape).astype(np.float32),
        "label": rng.integers(0, 2, BATCH_SIZE).astype(np.int32),
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
        "settings": SETTINGS,
        "augment_on_device": False,
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


def hard_objective() -> steps.Objective:
    """Return the objective of learning from labels alone."""
    return steps.make_hard_objective(losses.bce)


def distill_objective(teacher: nn.Module | None, *, alpha: float) -> steps.Objective:
    """Return the objective of learning from labels and a teacher, or its logits."""
    return steps.make_distill_objective(
        losses.bce,
        teacher=teacher,
        alpha=alpha,
        temperature=TEMPERATURE,
        axis_name=parallel.BATCH_AXIS,
    )


def make_run(
    mesh: parallel.Mesh,
    model: nn.Module,
    objective: steps.Objective,
    *,
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
        objective,
        ema_decay=ema_decay,
        seed=SEED,
        axis_name=parallel.BATCH_AXIS,
    )
    if render:
        step = steps.render_views(step, image_size=IMAGE_SIZE)
    state = create_state(initial(model, seed=SEED), optimizer, use_ema=ema_decay > 0)
    return parallel.replicate(mesh, state), parallel.map_train_step(step, mesh)


def distil(
    mesh: parallel.Mesh, *, num_steps: int, process: int = 0, processes: int = 1
) -> tuple[list[dict[str, float]], Variables]:
    """Distil a student with dropout; return each step's metrics and the variables."""
    axis = parallel.BATCH_AXIS
    teacher = network(axis_name=axis)
    frozen = parallel.replicate(mesh, initial(teacher, seed=11))
    state, train_step = make_run(
        mesh,
        network(axis_name=axis, dropout=0.5),
        distill_objective(teacher, alpha=0.5),
    )
    history = []
    for step in range(num_steps):
        rows = share_of(batch(step), process=process, of=processes)
        state, metrics = train_step(state, frozen, parallel.shard_batch(mesh, rows))
        history.append({k: float(v) for k, v in jax.device_get(metrics).items()})
    return history, jax.device_get(state.variables)
