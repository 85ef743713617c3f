"""What a stage of a run learns, and by what: from the configuration to a `Task`."""

from collections.abc import Callable, Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from scipy.special import log_softmax

from mela_jax import losses
from mela_jax.distill.logits import check_are_logits
from mela_jax.distill.teachers import Teacher, Teachers
from mela_jax.distill.terms import Seen, Term, init_aux, make_terms
from mela_jax.evaluation.measure import selection_metrics
from mela_jax.evaluation.multiclass import class_selection_metrics
from mela_jax.images import Images
from mela_jax.models.head import Classifier
from mela_jax.models.outputs import Outputs
from mela_jax.plan import Context, Stage
from mela_jax.saved_models import Model
from mela_jax.state import Variables
from mela_jax.teacher_cache import cached_logits
from mela_jax.train import EvalStep, Task, score

# The terms of a stage, and the shapes of what they will see; None where none looks.
StageTerms = tuple[tuple[Term, ...], Seen | None]


def make_task(
    stage: Stage,
    context: Context,
    network: Classifier,
    variables: Variables,
    learning: StageTerms,
    eval_step: EvalStep,
    teachers: Mapping[str, Model],
) -> Task:
    """Return what `train.fit` needs to know of a stage.

    Its network starts from the variables, learns by `learning`, see `make_stage_terms`,
    and is scored by `eval_step`: (variables, images on the devices) -> logits.
    `teachers` are the models it learns from, by name.
    """
    terms, shapes = learning
    return Task(
        stage=stage,
        network=network,
        variables=variables,
        terms=terms,
        teachers=_make_teachers(stage, context, terms, teachers),
        validate=make_validate(eval_step, context),
        aux=init_aux(terms, shapes, jax.random.fold_in(jax.random.key(stage.seed), 1)),
        row_weights=_row_weights(stage, context.images),
    )


def shapes_seen(
    student: nn.Module, teachers: Sequence[nn.Module], image_size: int
) -> Seen:
    """Return the shapes of what terms will see for one image; nothing is computed."""
    image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)

    def answer(network: nn.Module) -> Outputs:
        # Of init, so that it takes no variables.
        key = jax.random.key(0)
        return jax.eval_shape(
            lambda x: network.init_with_output(key, x, train=False)[0], image
        )

    label = jax.ShapeDtypeStruct((1,), jnp.int32)
    batch = {"image": image, "label": label}
    return Seen(answer(student), tuple(map(answer, teachers)), batch)  # type: ignore[arg-type]


def make_stage_terms(
    stage: Stage, context: Context, student: nn.Module, teachers: Sequence[nn.Module]
) -> StageTerms:
    """Return what a stage learns by, and the shapes of what the terms will see.

    `student` is the network that learns, `teachers` those that it learns from.

    Raises:
      UserError: a term cannot be computed with these data and networks.
    """
    images, distill = context.images, context.config.distill
    labels, classes = images.labels[images.rows["train"]], images.classes
    hard = losses.make_hard_loss(
        stage.settings,
        counts=np.bincount(labels, minlength=max(classes.num_logits, 2)),
        melanoma=classes.label_of_melanoma,
    )
    shapes = None
    # Tracing networks takes a second or two; labels and logits need no look at shapes.
    if teachers and any(w for kind, w in distill.weights.items() if kind != "logits"):
        shapes = shapes_seen(student, teachers, context.config.image_size)
    terms = make_terms(hard, distill, num_teachers=len(teachers), shapes=shapes)
    return terms, shapes


def _make_teachers(
    stage: Stage, context: Context, terms: Sequence[Term], models: Mapping[str, Model]
) -> Teachers:
    """Return the teachers of a stage, their logits kept where views recur.

    Maps and features are too large to be kept: where a term looks at them, the teachers
    run in every step.
    """
    views = stage.views
    needs = frozenset[str]().union(*(term.needs for term in terms))
    keep = bool(views.recurring) and needs <= {"logits"}
    if models and views.recurring and not keep:
        logging.info(
            "%s: views recur, but its teachers run in every step: %s are not kept",
            stage.name,
            ", ".join(sorted(needs - {"logits"})),
        )
    # How many of the recurring views training comes by. An image that is drawn several
    # times an epoch is shown others each time.
    num_views = views.recurring
    if stage.settings.sampler == "shuffled":
        num_views = min(num_views, stage.settings.epochs * views.per_image)
    members = []
    for teacher, model in models.items():
        logits = score(model.eval_step, model.variables, context, "val")
        check_are_logits(logits, source=teacher)
        kept = None
        if keep:
            kept = cached_logits(
                model, context, views, num_views=num_views, seed=stage.seed
            )
        members.append(Teacher(model.network, model.variables, kept))
    return Teachers(tuple(members))


def _row_weights(stage: Stage, images: Images) -> np.ndarray | None:
    """Return the weight float64[n] of each training row, or None for all once."""
    if stage.settings.sampler == "shuffled":
        return None
    labels = images.labels[images.rows["train"]]
    return 1.0 / np.bincount(labels)[labels]


def make_validate(
    eval_step: EvalStep, context: Context
) -> Callable[[Variables], dict[str, float]]:
    """Return validate(variables) -> metrics on validation, for `train.Task`.

    `eval_step` makes logits of variables and images on the devices.
    """
    images, target = context.images, context.config.target_sensitivity
    classes, rows = images.classes, images.rows["val"]
    labels, melanoma = images.labels[rows], images.melanoma[rows].astype(np.int64)

    def validate(variables: Variables) -> dict[str, float]:
        logits = score(eval_step, variables, context, "val").astype(np.float64)
        # -log p of the label's class, as losses.cross_entropy, over the whole split.
        if classes.is_binary:
            z = logits[:, 0]
            loss = np.logaddexp(0.0, np.where(labels == 1, -z, z)).mean()
        else:
            log_p = log_softmax(logits, axis=1)
            loss = -np.take_along_axis(log_p, labels[:, None], axis=1).mean()
        probabilities = classes.probabilities(logits)
        of_melanoma = selection_metrics(
            melanoma, probabilities[:, classes.melanoma], target=target
        )
        of_classes = class_selection_metrics(
            labels, probabilities, melanoma=classes.melanoma
        )
        return {"loss": float(loss)} | of_melanoma | of_classes

    return validate
