"""The networks and steps of mela_jax, set up as the main job sets them up."""

import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mela_jax import optim, parallel, state, steps
from mela_jax.distill.teachers import Teacher, Teachers
from mela_jax.distill.terms import Term, make_hard_term, make_soft_term
from mela_jax.losses import LabelLoss, cross_entropy
from mela_jax.models.zoo import create_model


def set_up(cpu_devices: int) -> None:
    """Prepare virtual devices and a compilation cache of this user's."""
    cache = Path(tempfile.gettempdir()) / "mela_jax_benchmark_xla"
    parallel.set_up(cpu_devices=cpu_devices, distributed=False, compilation_cache=cache)


class Network:
    """One network with its training and evaluation step on a batch.

    Args:
      name: a key of `zoo.MODELS`.
      batch: "image" float32[B, S, S, 3] in [0, 255] and "label" int32[B].
      teacher: distils from this network (alpha 0.5, temperature 2) where given.
    """

    def __init__(
        self, name: str, batch: dict[str, np.ndarray], teacher: str | None = None
    ):
        """Initialise variables, put them on the devices and make the steps."""
        mesh = parallel.make_mesh()
        axis = parallel.BATCH_AXIS
        model = create_model(name, bn_axis_name=axis)
        image = batch["image"][:1]
        optimizer = optim.make_optimizer(
            learning_rate=1e-3,
            total_steps=1000,
            warmup_steps=10,
            weight_decay=1e-4,
            clip_norm=1.0,
        )
        variables = self._init(model, image, 0)
        self.state = parallel.replicate(
            mesh, state.create_state(variables, optimizer, use_ema=True)
        )
        terms: tuple[Term, ...] = (make_hard_term(LabelLoss(cross_entropy)),)
        teachers = Teachers()
        if teacher is not None:
            network = create_model(teacher)
            variables = parallel.replicate(mesh, self._init(network, image, 1))
            teachers = Teachers([Teacher(network, variables)])
            terms = (
                make_hard_term(LabelLoss(cross_entropy), weight=0.5),
                make_soft_term(weight=0.5, temperature=2.0),
            )
        self._frozen = teachers.frozen
        self._train = parallel.map_train_step(
            steps.make_train_step(
                model,
                optimizer,
                terms,
                teachers,
                ema_decay=0.99,
                seed=0,
                axis_name=axis,
            ),
            mesh,
        )
        self._infer = parallel.map_eval_step(steps.make_eval_step(model), mesh)
        self._mesh = mesh
        self.batch = parallel.shard_batch(mesh, batch)

    @staticmethod
    def _init(model: Any, image: np.ndarray, seed: int) -> Any:
        return jax.jit(lambda key: model.init(key, image, train=False))(
            jax.random.key(seed)
        )

    def train(self, batch: dict[str, np.ndarray] | None = None) -> float:
        """Take one step, on the resident batch unless given one; return its loss."""
        arrays = self.batch
        if batch is not None:
            arrays = parallel.shard_batch(self._mesh, batch)
        self.state, metrics = self._train(self.state, self._frozen, arrays)
        return float(metrics["loss"])

    def train_many(self, num_steps: int) -> float:
        """Take steps, the next one issued before the last is done; return the loss."""
        for _ in range(num_steps):
            self.state, metrics = self._train(self.state, self._frozen, self.batch)
        return float(metrics["loss"])

    def infer(self) -> np.ndarray:
        """Return the logits float32[B, K] of the batch."""
        return np.asarray(self._infer(self.state.variables, self.batch["image"]))
