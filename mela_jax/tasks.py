"""What a stage of a run learns, and by what: from the configuration to a `Task`."""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict
from scipy.special import log_softmax

from mela_jax import losses, parallel
from mela_jax.config import expand_user
from mela_jax.data.views import Views
from mela_jax.distill.logits import check_are_logits
from mela_jax.distill.teachers import Teacher, Teachers
from mela_jax.distill.terms import Shapes, Soft, Term, init_aux, make_terms
from mela_jax.evaluation.measure import selection_metrics
from mela_jax.evaluation.multiclass import class_selection_metrics
from mela_jax.images import Images
from mela_jax.models.head import Classifier
from mela_jax.models.outputs import Outputs
from mela_jax.models.zoo import create_model
from mela_jax.saved_models import Model
from mela_jax.state import Variables
from mela_jax.teacher_cache import cached_logits
from mela_jax.train import EvalStep, Task, score


def make_network(
    stage: ConfigDict, *, num_logits: int, compute_dtype: str
) -> Classifier:
    """Return the network of config.teacher or config.student, for training."""
    return create_model(
        stage.model,
        num_logits=num_logits,
        pool=stage.pool,
        hidden=stage.hidden,
        dropout=stage.dropout,
        dtype=jnp.dtype(compute_dtype),
        bn_axis_name=parallel.BATCH_AXIS,
    )


def make_task(
    name: str,
    stage: ConfigDict,
    config: ConfigDict,
    images: Images,
    mesh: parallel.Mesh,
    *,
    views: Views,
    seed: int,
    network: Classifier,
    variables: Variables,
    eval_step: EvalStep,
    models: Mapping[str, Model],
) -> Task:
    """Return what `train.fit` needs to know.

    Args:
      name: of the stage.
      stage: config.teacher or config.student.
      config: of the run.
      images: the data.
      mesh: devices.
      views: which views of the images it learns from.
      seed: of the stage.
      network: the one that learns.
      variables: where its training starts.
      eval_step: (variables, images on the devices) -> logits of it.
      models: its teachers, by name.
    """
    size = config.image_size
    shapes = Shapes(
        student=answer_shapes(network, variables, size),
        teachers=tuple(
            answer_shapes(m.network, m.variables, size) for m in models.values()
        ),
        bn_axis_name=parallel.BATCH_AXIS,
    )
    terms = stage_terms(stage, config, images, shapes)
    one = {
        "image": jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32),
        "label": jax.ShapeDtypeStruct((1,), jnp.int32),
    }
    aux_key = jax.random.fold_in(jax.random.key(seed), 1)
    return Task(
        name=name,
        network=network,
        variables=variables,
        terms=terms,
        aux=init_aux(terms, shapes, one, aux_key),
        teachers=_teachers(
            name, stage, config, images, mesh, views, seed, models, terms
        ),
        views=views,
        row_weights=_row_weights(stage.sampler, images),
        validate=make_validate(eval_step, config, images, mesh),
    )


def answer_shapes(
    network: Classifier, variables: Variables, image_size: int
) -> Outputs:
    """Return the shapes of what a network answers for one image; nothing is computed.

    Args:
      network: flax module.
      variables: its variables, or their shapes.
      image_size: in pixels.
    """
    image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    return jax.eval_shape(
        lambda v, x: network.apply(v, x, train=False), variables, image
    )


def stage_terms(
    stage: ConfigDict, config: ConfigDict, images: Images, shapes: Shapes
) -> tuple[Term, ...]:
    """Return what the model of a stage learns by.

    Raises:
      UserError: a term cannot be computed with these data and networks.
    """
    s, distill = stage, config.distill
    labels = images.labels[images.rows["train"]]
    hard = losses.make_hard_loss(
        s.loss,
        counts=np.bincount(labels, minlength=max(images.classes.num_logits, 2)),
        melanoma=images.classes.label_of_melanoma,
        weighting=s.class_weights,
        melanoma_weight=s.melanoma_weight,
        label_smoothing=s.label_smoothing,
        focal_gamma=s.focal_gamma,
        focal_alpha=None if s.focal_alpha == -1 else s.focal_alpha,
    )
    equal = (1.0 / max(len(shapes.teachers), 1),) * len(shapes.teachers)
    soft = Soft(
        temperature=distill.temperature,
        teacher_weights=tuple(distill.teacher_weights) or equal,
        average=distill.average,
    )
    return make_terms(
        hard,
        alpha=distill.alpha,
        weights=distill.weights.to_dict(),
        soft=soft,
        shapes=shapes,
    )


def _teachers(
    name: str,
    stage: ConfigDict,
    config: ConfigDict,
    images: Images,
    mesh: parallel.Mesh,
    views: Views,
    seed: int,
    models: Mapping[str, Model],
    terms: Sequence[Term],
) -> Teachers:
    """Return the teachers of a stage, their logits kept where views recur.

    Maps and features are too large to be kept: where a term looks at them, the teachers
    run in every step.
    """
    needs = frozenset[str]().union(*(term.needs for term in terms))
    keep = bool(views.recurring) and needs <= {"logits"}
    if models and views.recurring and not keep:
        logging.info(
            "%s: views recur, but its teachers run in every step: %s are not kept",
            name,
            ", ".join(sorted(needs - {"logits"})),
        )
    members = []
    for teacher, model in models.items():
        logits = score(
            model.eval_step,
            model.variables,
            images,
            "val",
            mesh=mesh,
            batch_size=config.eval_batch_size,
        )
        check_are_logits(logits, source=teacher)
        kept = None
        if keep:
            kept = cached_logits(
                model.eval_step,
                model.variables,
                model.description,
                images,
                views,
                num_views=_views_seen(stage, views),
                seed=seed,
                mesh=mesh,
                batch_size=config.eval_batch_size,
                directory=expand_user(config.data.cache_dir) / "teacher_logits",
            )
        members.append(Teacher(model.network, model.variables, kept))
    return Teachers(tuple(members))


def _views_seen(stage: ConfigDict, views: Views) -> int:
    """Return how many of the recurring views training comes by."""
    if stage.sampler != "shuffled":
        # An image that is drawn several times an epoch is shown others each time.
        return views.recurring
    return min(views.recurring, stage.epochs * views.per_image)


def _row_weights(sampler: str, images: Images) -> np.ndarray | None:
    """Return the weight float64[n] of each training row, or None for all once."""
    if sampler == "shuffled":
        return None
    labels = images.labels[images.rows["train"]]
    return 1.0 / np.bincount(labels)[labels]


def make_validate(
    eval_step: EvalStep, config: ConfigDict, images: Images, mesh: parallel.Mesh
) -> Callable[[Variables], dict[str, float]]:
    """Return validate(variables) -> metrics on validation, for `train.Task`.

    Args:
      eval_step: (variables, images on the devices) -> logits.
      config: of the run.
      images: the data.
      mesh: devices.
    """
    classes, rows = images.classes, images.rows["val"]
    labels, melanoma = images.labels[rows], images.melanoma[rows].astype(np.int64)

    def validate(variables: Variables) -> dict[str, float]:
        logits = score(
            eval_step,
            variables,
            images,
            "val",
            mesh=mesh,
            batch_size=config.eval_batch_size,
        ).astype(np.float64)
        # -log p of the label's class, as losses.cross_entropy, over the whole split.
        if classes.is_binary:
            z = logits[:, 0]
            loss = np.logaddexp(0.0, np.where(labels == 1, -z, z)).mean()
        else:
            log_p = log_softmax(logits, axis=1)
            loss = -np.take_along_axis(log_p, labels[:, None], axis=1).mean()
        probabilities = classes.probabilities(logits)
        of_melanoma = selection_metrics(
            melanoma,
            probabilities[:, classes.melanoma],
            target=config.target_sensitivity,
        )
        of_classes = class_selection_metrics(
            labels, probabilities, melanoma=classes.melanoma
        )
        return {"loss": float(loss)} | of_melanoma | of_classes

    return validate
