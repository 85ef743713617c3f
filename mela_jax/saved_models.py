"""Finished models: what lies in the folder of one, and how it is read back."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mela_jax import checkpoint, parallel, steps
from mela_jax.config import expand_user
from mela_jax.data.splits import SPLITS, read_splits
from mela_jax.errors import UserError
from mela_jax.labels import LabelSpace
from mela_jax.models.head import Classifier
from mela_jax.models.zoo import create_model
from mela_jax.plan import Context
from mela_jax.state import Variables
from mela_jax.train import EvalStep


@dataclasses.dataclass(frozen=True)
class Model:
    """A trained model, as it lies in its folder.

    Attributes:
      network: flax module.
      eval_step: (variables, images on the devices) -> logits float32[B, K], compiled
        once.
      variables: its variables, a copy on every device.
      description: model.json.
    """

    network: Classifier
    eval_step: EvalStep
    variables: Variables
    description: dict[str, Any]

    @property
    def classes(self) -> LabelSpace:
        """What it tells apart."""
        return classes_of(self.description)


def classes_of(description: Mapping[str, Any]) -> LabelSpace:
    """Return what a model of a model.json tells apart."""
    # Models of before there were several classes say nothing of them.
    if "classes" not in description:
        return LabelSpace()
    return LabelSpace(tuple(description["classes"]), description["melanoma"])


def network_of(
    description: Mapping[str, Any], *, dtype: str, **training: Any
) -> Classifier:
    """Return the network of a model.json; `training` is what only training needs."""
    return create_model(
        description["model"],
        num_logits=classes_of(description).num_logits,
        pool=description["pool"],
        hidden=description["hidden"],
        dtype=jnp.dtype(dtype),
        **training,
    )


def initial_variables(network: nn.Module, image_size: int, seed: int) -> Variables:
    """Return random variables; jitted, since eager calls compile each layer."""
    image = jnp.zeros((1, image_size, image_size, 3), jnp.float32)
    init = jax.jit(lambda key: network.init(key, image, train=False))
    return init(jax.random.key(seed))


def make_scorer(network: nn.Module, mesh: parallel.Mesh) -> EvalStep:
    """Return the evaluation step of a network over all devices."""
    return parallel.map_eval_step(steps.make_eval_step(network), mesh)


def load_model(folder: Path, mesh: parallel.Mesh) -> Model:
    """Read a finished model.

    Raises:
      UserError: there is none, or it is damaged.
    """
    description = checkpoint.read_description(folder)
    if description is None:
        raise UserError(f"{folder}: there is no finished model (no model.json)")
    network = network_of(description, dtype=description["compute_dtype"])
    shapes = jax.eval_shape(
        lambda: initial_variables(network, description["image_size"], 0)
    )
    variables = checkpoint.load_variables(
        folder,
        parallel.abstract_replicated(mesh, shapes),
        expected=description["fingerprint"],
    )
    return Model(network, make_scorer(network, mesh), variables, description)


def load_teacher(path: str, context: Context, *, field: str) -> Model:
    """Return a finished model of another run, once it is clear that it may teach.

    `path` is that run's workdir, or the folder of one of its models; the config field
    that names it is for messages.

    Raises:
      UserError: there is no such model, it has learnt from lesions that this run
        measures on, or it tells other classes apart.
    """
    source = f"{field}={path}"
    given, classes = expand_user(path), context.images.classes
    folder = given / "teacher" if (given / "teacher" / "model.json").exists() else given
    if checkpoint.read_description(folder) is None:
        raise UserError(
            f"{source}: there is no finished model (no model.json, nor"
            " teacher/model.json); give the workdir of a finished run"
        )
    table = folder.parent / "splits.csv"
    if not table.exists():
        raise UserError(
            f"{source}: {table} is missing, so nothing shows that the teacher has not"
            " seen this run's test lesions"
        )
    its_splits = dict(read_splits(table).values())
    # Trained on what is validation or test here, or selected on what is test here.
    leaks = {("train", "val"), ("train", "test"), ("val", "test")}
    ours = {
        context.records[row].lesion_id: split
        for split in SPLITS
        for row in context.images.rows[split]
    }
    leaked = sorted(
        lesion
        for lesion, split in ours.items()
        if (its_splits.get(lesion), split) in leaks
    )
    if leaked:
        raise UserError(
            f"{source}: it was trained or selected on"
            f" {len(leaked)} lesions of this run's validation or test set"
            f" ({', '.join(leaked[:5])} ...); share its split with"
            " --config.data.splits_file=<its workdir>/splits.csv"
        )
    model = load_model(folder, context.mesh)
    if model.classes != classes:
        raise UserError(
            f"{source}: it tells apart {', '.join(model.classes.names)}, and this run"
            f" {', '.join(classes.names)}; take a teacher of the same classes,"
            " or another config.labels"
        )
    return model
