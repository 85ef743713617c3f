"""Finished models: what lies in the folder of one, and how it is read back."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mela_jax import checkpoint, parallel, steps
from mela_jax.config import expand_user
from mela_jax.data.records import Record
from mela_jax.data.splits import SPLITS, read_splits
from mela_jax.errors import UserError
from mela_jax.images import Images
from mela_jax.labels import LabelSpace
from mela_jax.models.head import Classifier
from mela_jax.models.zoo import create_model
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


def load_model(folder: Path, mesh: parallel.Mesh) -> Model:
    """Read a finished model.

    Raises:
      UserError: when it is damaged.
    """
    description = checkpoint.read_description(folder)
    if description is None:
        raise UserError(f"{folder}: there is no finished model (no model.json)")
    network = network_of(description, dtype=description["compute_dtype"])
    shapes = jax.eval_shape(
        lambda: initial_variables(network, description["image_size"], 0)
    )
    variables = checkpoint.load_variables(
        folder, parallel.abstract_replicated(mesh, shapes)
    )
    eval_step = parallel.map_eval_step(steps.make_eval_step(network), mesh)
    return Model(network, eval_step, variables, description)


def network_of(description: Mapping[str, Any], *, dtype: str) -> Classifier:
    """Return the network of a model.json, for scoring."""
    return create_model(
        description["model"],
        num_logits=classes_of(description).num_logits,
        pool=description["pool"],
        hidden=description["hidden"],
        dtype=jnp.dtype(dtype),
    )


def initial_variables(network: nn.Module, image_size: int, seed: int) -> Variables:
    """Return random variables; jitted, since eager calls compile each layer."""
    image = jnp.zeros((1, image_size, image_size, 3), jnp.float32)
    init = jax.jit(lambda key: network.init(key, image, train=False))
    return init(jax.random.key(seed))


def load_teacher(
    path: str,
    records: Sequence[Record],
    images: Images,
    mesh: parallel.Mesh,
    *,
    field: str,
) -> Model:
    """Return a finished model of another run, once it is clear that it may teach.

    Args:
      path: the run's workdir, or the folder of one of its models.
      records: of this run's data set.
      images: the same, decoded.
      mesh: devices.
      field: of the configuration that names it, for messages.

    Raises:
      UserError: there is no such model, it has learnt from lesions that this run
        measures on, or it tells other classes apart.
    """
    source = f"{field}={path}"
    given = expand_user(path)
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
    refuse_leak(
        {lesion: split for lesion, split in read_splits(table).values()},
        {
            r.lesion_id: split
            for split in SPLITS
            for r in (records[row] for row in images.rows[split])
        },
        source=source,
    )
    model = load_model(folder, mesh)
    if model.classes != images.classes:
        raise UserError(
            f"{source}: it tells apart {', '.join(model.classes.names)}, and this run"
            f" {', '.join(images.classes.names)}; take a teacher of the same classes,"
            " or another config.labels"
        )
    return model


def refuse_leak(
    teacher_splits: dict[str, str], splits: dict[str, str], *, source: str
) -> None:
    """Refuse a teacher that has learnt from lesions which this run measures on.

    Args:
      teacher_splits: {lesion_id: split} of the run that trained the teacher.
      splits: {lesion_id: split} of this run.
      source: where the teacher comes from, for the message.

    Raises:
      UserError: when a lesion it trained on is in validation or test here, or one it
        was selected on is in test here.
    """
    leaked = sorted(
        lesion
        for lesion, split in splits.items()
        if (teacher_splits.get(lesion), split)
        in {("train", "val"), ("train", "test"), ("val", "test")}
    )
    if leaked:
        raise UserError(
            f"{source}: it was trained or selected on"
            f" {len(leaked)} lesions of this run's validation or test set"
            f" ({', '.join(leaked[:5])} ...); share its split with"
            " --config.data.splits_file=<its workdir>/splits.csv"
        )
