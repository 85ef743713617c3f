"""The teachers of a student: frozen networks, or what they said of recurring views."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from mela_jax.models.outputs import Outputs
from mela_jax.state import Variables


@dataclasses.dataclass(frozen=True)
class Teacher:
    """One teacher, its variables copied to every device.

    It runs in every step, in evaluation mode, on the very pixels that the student sees,
    unless its logits float32[views, N, K] of every view of training are `kept`.
    """

    network: nn.Module
    variables: Variables
    kept: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Teachers:
    """All teachers of a student; none for one that learns from labels alone."""

    members: Sequence[Teacher] = ()

    @property
    def frozen(self) -> tuple[Variables, ...]:
        """Variables that a step is handed, {} for a teacher that does not run."""
        return tuple(t.variables if t.kept is None else {} for t in self.members)

    def inputs(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return what a step needs of a batch of `make_train_batches`, on the host.

        "index" int32[b], the row, and "view" int32[b] are left out, and kept logits
        float32[b, K] come in.
        """
        inputs = {k: v for k, v in batch.items() if k not in ("index", "view")}
        for number, teacher in enumerate(self.members):
            if teacher.kept is not None:
                kept = teacher.kept[batch["view"], batch["index"]]
                inputs[_kept_logits(number)] = kept
        return inputs

    def answer(
        self, frozen: Sequence[Variables], batch: dict[str, jax.Array]
    ) -> tuple[Outputs, ...]:
        """Return what each teacher answers for a batch; no gradient flows into it.

        `frozen` is what the property of that name gave the step. The batch holds
        "image" float32[b, S, S, 3] and what `inputs` added.
        """
        answers: list[Outputs] = []
        for number, teacher in enumerate(self.members):
            if teacher.kept is not None:
                logits = batch[_kept_logits(number)]
                answers.append(Outputs(logits, features=logits[:, :0], maps={}))
            else:
                found: Any = teacher.network.apply(
                    frozen[number], batch["image"], train=False
                )
                answers.append(jax.lax.stop_gradient(found))
        return tuple(answers)


def _kept_logits(number: int) -> str:
    return f"teacher_{number}_logits"
