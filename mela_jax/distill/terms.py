"""What a network learns by: a sum of weighted terms.

A method is a tuple of terms. To add one, write its loss in a file of its own and give
it a line in `KINDS`, and a weight in `config.distill.weights`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mela_jax.distill.hints import Regressor, hint_loss
from mela_jax.distill.logits import average_teachers, decoupled_kl, tempered_kl
from mela_jax.distill.maps import attention_loss, channel_loss
from mela_jax.distill.relations import angle_loss, distance_loss
from mela_jax.errors import UserError
from mela_jax.losses import LabelLoss
from mela_jax.models.outputs import LAST_MAP, Outputs
from mela_jax.parallel import BATCH_AXIS

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


def make_hard_term(loss: LabelLoss, *, weight: float = 1.0) -> Term:
    """Return the term of learning from labels, on the upright views."""
    return Term(
        "hard",
        weight,
        lambda seen, _: loss(seen.upright(seen.student.logits), seen.batch["label"]),
        whole_batch=loss.by_weight,
    )


def make_soft_term(
    *,
    weight: float,
    temperature: float,
    teacher_weights: Sequence[float] = (1.0,),
    average: str = "probabilities",
) -> Term:
    """Return the term of learning from the teachers' logits, on all views.

    `teacher_weights` and `average` are those of `average_teachers`.
    """

    def loss(seen: Seen, _: Apply) -> jax.Array:
        targets = average_teachers(
            [teacher.logits for teacher in seen.teachers],
            weights=teacher_weights,
            temperature=temperature,
            average=average,
        )
        return tempered_kl(seen.student.logits, targets, temperature=temperature)

    return Term("soft", weight, loss, needs=frozenset({"logits"}))


def make_decoupled_term(shapes: Seen, distill: Any, *, weight: float) -> Term:
    """Return the term of the first teacher's logits in two parts, on all views.

    Raises:
      UserError: one logit, which leaves no other classes to tell apart.
    """
    if shapes.student.logits.shape[1] == 1:
        raise UserError(
            "config.distill.weights.decoupled tells the other classes apart, and there"
            " is one logit; take config.labels=ham7 or diagnoses"
        )

    def loss(seen: Seen, _: Apply) -> jax.Array:
        ours, theirs = seen.student.logits, seen.teachers[0].logits
        labels = jnp.repeat(seen.batch["label"], len(ours) // len(seen.batch["label"]))
        return decoupled_kl(
            ours,
            theirs,
            labels,
            temperature=distill.temperature,
            target_weight=distill.target_weight,
            others_weight=distill.others_weight,
        )

    return Term("decoupled", weight, loss, needs=frozenset({"logits"}))


def _make_map_term(
    name: str,
    loss: Callable[..., jax.Array],
    shapes: Seen,
    distill: Any,
    *,
    weight: float,
    whole_batch: bool = False,
) -> Term:
    """Return a term that compares the last maps, the student's through a regressor.

    Raises:
      UserError: the two maps differ in height or width.
    """
    ours, theirs = (
        outputs.maps[LAST_MAP].shape for outputs in (shapes.student, shapes.teachers[0])
    )
    if ours[1:3] != theirs[1:3]:
        raise UserError(
            f"config.distill.weights.{name} compares the last maps, but the student's"
            f" has {ours[1]} x {ours[2]} pixels and the teacher's {theirs[1]} x"
            f" {theirs[2]}; choose another config.image_size or another network"
        )
    return Term(
        name,
        weight,
        lambda seen, apply: loss(
            apply(seen.student.maps[LAST_MAP]), seen.teachers[0].maps[LAST_MAP]
        ),
        needs=frozenset({LAST_MAP}),
        aux=Regressor(theirs[3], bn_axis_name=BATCH_AXIS),
        whole_batch=whole_batch,
    )


def make_attention_term(shapes: Seen, distill: Any, *, weight: float) -> Term:
    """Return the term of looking where the first teacher's gate looks (MAG-KD).

    Raises:
      UserError: the student has no gate.
    """
    if "attention" not in shapes.student.maps:
        raise UserError(
            "config.distill.weights.attention compares the gates of two networks, and"
            " the student has none; take mobilenet_v3_large_gate, or set it to 0"
        )
    return Term(
        "attention",
        weight,
        lambda seen, _: attention_loss(
            seen.student.maps["attention"], seen.teachers[0].maps["attention"]
        ),
        needs=frozenset({"attention"}),
    )


def _make_relation_term(
    name: str,
    loss: Callable[..., jax.Array],
    shapes: Seen,
    distill: Any,
    *,
    weight: float,
) -> Term:
    # The shapes are not looked at: features of any two widths can be compared.
    return Term(
        name,
        weight,
        lambda seen, _: loss(seen.student.features, seen.teachers[0].features),
        needs=frozenset({"features"}),
        whole_batch=True,
    )


# Weight in config.distill.weights -> what makes the term, of the shapes of what it will
# see and config.distill. "logits" is not here: it is the weight of labels and soft
# targets together.
KINDS: Mapping[str, Callable[..., Term]] = {
    "decoupled": make_decoupled_term,
    "hint": partial(_make_map_term, "hint", hint_loss),
    "channel": partial(_make_map_term, "channel", channel_loss, whole_batch=True),
    "attention": make_attention_term,
    "distance": partial(_make_relation_term, "distance", distance_loss),
    "angle": partial(_make_relation_term, "angle", angle_loss),
}


def make_terms(
    hard: LabelLoss, distill: Any, *, num_teachers: int, shapes: Seen | None = None
) -> tuple[Term, ...]:
    """Return the terms of a student.

    Without teachers, the labels alone; with them

        weights["logits"] ((1 - alpha) hard + alpha soft) + sum of weights[kind] kind

    over the kinds of `KINDS`. A kind of weight 0 is left out; labels and soft targets
    are not, so that their share of the gradient is logged as 0.

    `distill` is config.distill; `shapes` are `jax.ShapeDtypeStruct`s of what the terms
    will see of one image, None where no kind has a weight.

    Raises:
      UserError: a term that cannot be computed with these networks.
    """
    if not num_teachers:
        return (make_hard_term(hard),)
    weights = distill.weights
    squared = 1.0 if distill.t_squared else distill.temperature**2
    soft = make_soft_term(
        weight=weights.logits * distill.alpha / squared,
        temperature=distill.temperature,
        teacher_weights=tuple(distill.teacher_weights)
        or (1.0 / num_teachers,) * num_teachers,
        average=distill.average,
    )
    terms = (
        make_hard_term(hard, weight=weights.logits * (1.0 - distill.alpha)),
        soft,
        *(
            make(shapes, distill, weight=weights[k])
            for k, make in KINDS.items()
            if weights[k]
        ),
    )
    check_needs(terms, shapes.teachers if shapes else ())
    return terms


def check_needs(terms: Sequence[Term], teachers: Sequence[Outputs]) -> None:
    """Raise a UserError for the first term that a teacher lacks something for."""
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
    terms: Sequence[Term], shapes: Seen | None, key: jax.Array
) -> dict[str, Any]:
    """Return the random first variables of the terms' auxiliary modules, by name.

    Each term's loss is run once on zeros of `shapes`, which tells what its module is
    given.
    """
    seen = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def variables_of(term: Term, key: jax.Array) -> Any:
        found: dict[str, Any] = {}

        def apply(*args: jax.Array) -> Any:
            assert term.aux is not None
            outputs, variables = term.aux.init_with_output(key, *args, train=False)
            found.update(variables)
            return outputs

        term.loss(seen, apply)
        return found

    init = jax.jit(variables_of, static_argnums=0)
    return {
        term.name: init(term, jax.random.fold_in(key, number))
        for number, term in enumerate(terms)
        if term.aux is not None
    }
