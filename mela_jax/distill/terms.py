"""What a network learns by: a sum of weighted terms.

A method is a tuple of terms. To add one, write its loss in a file of its own and give
it a line in `KINDS`, and a weight in `config.distill.weights`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mela_jax.distill.hints import Regressor, hint_loss
from mela_jax.distill.logits import average_teachers, tempered_kl
from mela_jax.distill.relations import angle_loss, distance_loss
from mela_jax.errors import UserError
from mela_jax.losses import LabelLoss
from mela_jax.models.outputs import LAST_MAP, Outputs

Batch = dict[str, jax.Array]
# Runs a term's auxiliary module in training mode on arrays.
Apply = Callable[..., Any]


class Seen(NamedTuple):
    """What a term may look at.

    Attributes:
      student: what the network that learns answers, for every view of the batch.
      teachers: what each teacher answers, for the same pixels.
      batch: "image" float32[b, S, S, 3] and "label" int32[b / V], V views of an image
        after each other, the upright one first.
    """

    student: Outputs
    teachers: tuple[Outputs, ...]
    batch: Batch

    def upright(self, x: jax.Array) -> jax.Array:
        """Return the rows [b / V, ...] of the first view of each image."""
        return x[:: x.shape[0] // self.batch["label"].shape[0]]


@dataclasses.dataclass(frozen=True)
class Term:
    """One summand of what is minimised.

    Attributes:
      name: in logs, as NAME_loss and NAME_gradient_share.
      weight: what the loss is multiplied by.
      loss: (what is seen, the auxiliary module) -> float32[rows], whose mean counts, or
        float32[].
      needs: which of the teachers' outputs it looks at: "logits", "features" or names
        of maps. None: it needs no teacher.
      aux: a module that is trained along and belongs to no model, or None.
      whole_batch: its loss is not a mean over images, so it must see all of them.
    """

    name: str
    weight: float
    loss: Callable[[Seen, Apply], jax.Array]
    needs: frozenset[str] = frozenset()
    aux: nn.Module | None = None
    whole_batch: bool = False


@dataclasses.dataclass(frozen=True)
class Soft:
    """How soft targets are made of the teachers' logits.

    Attributes:
      temperature: T > 0.
      teacher_weights: of each teacher, adding up to 1.
      average: "probabilities" or "logits", see `average_teachers`.
    """

    temperature: float
    teacher_weights: tuple[float, ...]
    average: str


@dataclasses.dataclass(frozen=True)
class Shapes:
    """The shapes of what student and teachers answer, for one image.

    Attributes:
      student: `Outputs` of `jax.ShapeDtypeStruct`; None where there is no teacher, for
        then no term asks.
      teachers: likewise, of each teacher.
      bn_axis_name: mapped axis over which batch statistics are averaged, or None.
    """

    student: Outputs | None
    teachers: tuple[Outputs, ...]
    bn_axis_name: str | None


def make_hard_term(loss: LabelLoss, *, weight: float = 1.0) -> Term:
    """Return the term of learning from labels, on the upright views."""
    return Term(
        "hard",
        weight,
        lambda seen, _: loss(seen.upright(seen.student.logits), seen.batch["label"]),
        whole_batch=loss.by_weight,
    )


def make_soft_term(soft: Soft, *, weight: float) -> Term:
    """Return the term of learning from the teachers' logits, on all views."""

    def loss(seen: Seen, _: Apply) -> jax.Array:
        targets = average_teachers(
            [teacher.logits for teacher in seen.teachers],
            weights=soft.teacher_weights,
            temperature=soft.temperature,
            average=soft.average,
        )
        return tempered_kl(seen.student.logits, targets, temperature=soft.temperature)

    return Term("soft", weight, loss, needs=frozenset({"logits"}))


def make_hint_term(shapes: Shapes, *, weight: float) -> Term:
    """Return the term of imitating the first teacher's last map (FitNet).

    Raises:
      UserError: the two maps differ in height or width.
    """
    assert shapes.student is not None, "a student that looks at maps has its own"
    ours, theirs = (
        outputs.maps[LAST_MAP].shape for outputs in (shapes.student, shapes.teachers[0])
    )
    if ours[1:3] != theirs[1:3]:
        raise UserError(
            "config.distill.weights.hint compares the last maps, but the student's has"
            f" {ours[1]} x {ours[2]} pixels and the teacher's {theirs[1]} x"
            f" {theirs[2]}; choose another config.image_size or another network"
        )
    return Term(
        "hint",
        weight,
        lambda seen, apply: hint_loss(
            apply(seen.student.maps[LAST_MAP]), seen.teachers[0].maps[LAST_MAP]
        ),
        needs=frozenset({LAST_MAP}),
        aux=Regressor(theirs[3], bn_axis_name=shapes.bn_axis_name),
    )


def _make_relation_term(
    name: str, loss: Callable[[jax.Array, jax.Array], jax.Array]
) -> Callable[..., Term]:
    def make(shapes: Shapes, *, weight: float) -> Term:
        del shapes  # Features of any two widths can be compared.
        return Term(
            name,
            weight,
            lambda seen, _: loss(seen.student.features, seen.teachers[0].features),
            needs=frozenset({"features"}),
            whole_batch=True,
        )

    return make


# Weight in config.distill.weights -> what makes the term. "logits" is not here: it is
# the weight of the labels and the soft targets together.
KINDS: Mapping[str, Callable[..., Term]] = {
    "hint": make_hint_term,
    "distance": _make_relation_term("distance", distance_loss),
    "angle": _make_relation_term("angle", angle_loss),
}


def make_terms(
    hard: LabelLoss,
    *,
    alpha: float,
    weights: Mapping[str, float],
    soft: Soft,
    shapes: Shapes,
) -> tuple[Term, ...]:
    """Return the terms of a student.

    Without teachers, the labels alone; with them

        weights["logits"] ((1 - alpha) hard + alpha soft) + sum of weights[kind] kind

    over the kinds of `KINDS`. A kind of weight 0 is left out; labels and soft targets
    are not, so that their share of the gradient is logged as 0.

    Args:
      hard: the loss on labels.
      alpha: share of the soft targets, in [0, 1].
      weights: "logits" and the keys of `KINDS`.
      soft: how soft targets are made.
      shapes: of what student and teachers answer.

    Raises:
      UserError: a term that cannot be computed with these networks.
    """
    if not shapes.teachers:
        return (make_hard_term(hard),)
    terms = (
        make_hard_term(hard, weight=weights["logits"] * (1.0 - alpha)),
        make_soft_term(soft, weight=weights["logits"] * alpha),
        *(
            make(shapes, weight=weights[kind])
            for kind, make in KINDS.items()
            if weights[kind]
        ),
    )
    check_needs(terms, shapes.teachers)
    return terms


def check_needs(terms: Sequence[Term], teachers: Sequence[Outputs]) -> None:
    """Check that every teacher answers what the terms look at.

    Args:
      terms: of the student.
      teachers: shapes of what each answers.

    Raises:
      UserError: naming the first term whose needs are not met.
    """
    for term in terms:
        for outputs in teachers:
            missing = term.needs - {"logits", "features", *outputs.maps}
            if missing:
                raise UserError(
                    f"config.distill.weights.{term.name} needs"
                    f" {', '.join(sorted(missing))} of its teacher, which has none;"
                    " set it to 0, or take another teacher"
                )


def init_aux(
    terms: Sequence[Term], shapes: Shapes, batch: Mapping[str, Any], key: jax.Array
) -> dict[str, Any]:
    """Return the first variables of the terms' auxiliary modules, by term's name.

    Each term's loss is run on zeros once, which tells what its module is given.

    Args:
      terms: of the student.
      shapes: of what student and teachers answer.
      batch: shapes of a batch of as many views as `shapes` has.
      key: source of the random values.
    """

    def zeros(tree: Any) -> Any:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tree)

    seen = Seen(zeros(shapes.student), zeros(shapes.teachers), zeros(batch))

    def variables_of(aux: nn.Module, term: Term, key: jax.Array) -> Any:
        found: dict[str, Any] = {}

        def apply(*args: jax.Array) -> Any:
            outputs, variables = aux.init_with_output(key, *args, train=False)
            found.update(variables)
            return outputs

        term.loss(seen, apply)
        return found

    return {
        term.name: jax.jit(variables_of, static_argnums=(0, 1))(
            term.aux, term, jax.random.fold_in(key, number)
        )
        for number, term in enumerate(terms)
        if term.aux is not None
    }
