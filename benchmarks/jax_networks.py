"""The steps of mela_jax, set up as the main job sets them up."""

import math
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mela_jax import optim, parallel, state
from mela_jax.distill.teachers import Teacher, Teachers
from mela_jax.distill.terms import Term, make_hard_term, make_soft_term
from mela_jax.losses import LabelLoss, cross_entropy
from mela_jax.models.head import Classifier
from mela_jax.models.zoo import create_model
from mela_jax.state import Variables
from mela_jax.steps import make_eval_step, make_train_step, render_views

# Of every distillation, here and on the other sides.
ALPHA = 0.5
TEMPERATURE = 2.0
# Of the comparisons on a CPU.
OPTIMIZER = {
    "learning_rate": 1e-3,
    "total_steps": 1000,
    "warmup_steps": 10,
    "weight_decay": 1e-4,
    "clip_norm": 1.0,
}


def set_up(cores: int, batch_size: int) -> None:
    """Prepare a virtual device a core and a compilation cache of this user's."""
    cache = Path(tempfile.gettempdir()) / "mela_jax_benchmark_xla"
    parallel.set_up(cpu_devices=cores, distributed=False, compilation_cache=cache)
    parallel.check_batch_size(batch_size, field="batch_size")


def network(name: str, dtype: Any = jnp.float32) -> Classifier:
    """Return a network of `zoo.MODELS`, with one logit."""
    return create_model(name, dtype=dtype, bn_axis_name=parallel.BATCH_AXIS)


def initial(model: nn.Module, size: int, *, seed: int = 0) -> Variables:
    """Return random variables for images of `size` pixels."""
    image = jnp.zeros((1, size, size, 3), jnp.float32)
    init = jax.jit(lambda key: model.init(key, image, train=False))
    return init(jax.random.key(seed))


class Training:
    """A network in training, with its steps for all devices.

    Args:
      student: a key of `zoo.MODELS`, like `teacher`, who is absent by default.
      size: side of the images, in pixels.
      dtype: compute dtype of both.
      render: render the views of a batch within the step.
      ema_decay: of the moving average of the weights; 0 for none.
      optimizer: arguments of `make_optimizer`.
    """

    def __init__(
        self,
        student: str,
        size: int,
        *,
        teacher: str | None = None,
        dtype: Any = jnp.float32,
        render: bool = False,
        ema_decay: float = 0.99,
        optimizer: Mapping[str, Any] = OPTIMIZER,
    ):
        self.mesh = parallel.make_mesh()
        model = network(student, dtype)
        hard = LabelLoss(cross_entropy)
        terms: tuple[Term, ...] = (make_hard_term(hard),)
        self.teachers = Teachers()
        if teacher:
            frozen = network(teacher, dtype)
            variables = parallel.replicate(self.mesh, initial(frozen, size, seed=1))
            self.teachers = Teachers([Teacher(frozen, variables)])
            terms = (
                make_hard_term(hard, weight=1.0 - ALPHA),
                make_soft_term(weight=ALPHA, temperature=TEMPERATURE),
            )
        adamw = optim.make_optimizer(**optimizer)
        step = make_train_step(
            model,
            adamw,
            terms,
            self.teachers,
            ema_decay=ema_decay,
            seed=0,
            axis_name=parallel.BATCH_AXIS,
        )
        if render:
            step = render_views(step, image_size=size)
        self._step = parallel.map_train_step(step, self.mesh)
        self._infer = parallel.map_eval_step(make_eval_step(model), self.mesh)
        first = state.create_state(initial(model, size), adamw, use_ema=ema_decay > 0)
        self.state = parallel.replicate(self.mesh, first)

    def put(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Return what a step needs of a batch of `make_train_fetch`, on the devices."""
        return parallel.shard_batch(self.mesh, self.teachers.inputs(batch))

    def train(self, batches: Iterable[dict[str, jax.Array]]) -> float:
        """Take a step on each batch, wait for the last and return its loss.

        Each step is issued before the one before it is done.

        Raises:
          RuntimeError: the loss is not finite: whatever was timed, it was not training.
        """
        metrics = {}
        for batch in batches:
            self.state, metrics = self._step(self.state, self.teachers.frozen, batch)
        jax.block_until_ready(self.state)
        loss = float(metrics["loss"])
        if not math.isfinite(loss):
            raise RuntimeError("JAX: the loss is not finite")
        return loss

    def infer(self, images: jax.Array) -> np.ndarray:
        """Return the logits float32[B, K] of images float32[B, S, S, 3]."""
        return np.asarray(self._infer(self.state.variables, images))


def make_runs(
    name: str,
    batch: dict[str, np.ndarray],
    *,
    cores: int,
    steps: int = 1,
    teacher: str | None = None,
) -> dict[str, Callable[[], object]]:
    """Return "train", which takes some steps, and "infer", on one batch that stays."""
    set_up(cores, len(batch["label"]))
    training = Training(name, batch["image"].shape[1], teacher=teacher)
    resident = training.put(batch)
    return {
        "train": lambda: training.train([resident] * steps),
        "infer": lambda: training.infer(resident["image"]),
    }
