"""The stages of a run, and how each becomes a trained model in a folder of its own."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import logging

from mela_jax import checkpoint, parallel
from mela_jax.config import expand_user
from mela_jax.errors import UserError
from mela_jax.models.cost import count_flops, count_params
from mela_jax.models.head import Classifier
from mela_jax.models.pretrained import find_imagenet_file, load_pretrained
from mela_jax.plan import Context, Stage
from mela_jax.saved_models import (
    Model,
    initial_variables,
    load_model,
    load_teacher,
    make_scorer,
    network_of,
)
from mela_jax.tasks import StageTerms, make_stage_terms, make_task
from mela_jax.train import History, fit


def obtain_all(
    planned: Sequence[Stage],
    context: Context,
    *,
    on_epoch: Callable[[History], None] | None = None,
) -> dict[str, Model]:
    """Return the model of each stage: given, finished before, or trained now.

    `on_epoch` is for `train.fit` of the student.

    Raises:
      UserError: for anything that its user can mend.
    """
    # Whatever can be refused is refused before the first stage trains for hours.
    found = {stage.name: _find(stage, context) for stage in planned}
    networks = {
        stage.name: model.network if model else _make_network(stage, context)
        for stage, model in zip(planned, found.values(), strict=True)
    }
    parallel.check_batch_size(context.config.eval_batch_size, field="eval_batch_size")
    learning = {
        stage.name: _prepare(stage, context, networks)
        for stage in planned
        if found[stage.name] is None
    }
    models: dict[str, Model] = {}
    for stage in planned:
        models[stage.name] = found[stage.name] or _train(
            stage,
            context,
            networks[stage.name],
            learning[stage.name],
            teachers={name: models[name] for name in stage.learns_from},
            on_epoch=on_epoch if stage.name == "student" else None,
        )
    return models


def _find(stage: Stage, context: Context) -> Model | None:
    """Return the model of a stage that need not be trained, or None."""
    if stage.given:
        first = stage.name == "teacher"
        field = "teacher.checkpoint" if first else "distill.extra_teachers"
        return load_teacher(stage.given, context, field=f"config.{field}")
    folder = context.workdir / stage.name
    if checkpoint.read_description(folder) is None:
        return None
    logging.info("%s: finished before", stage.name)
    return load_model(folder, context.mesh)


def _describe(stage: Stage, context: Context) -> dict[str, Any]:
    """Return what model.json will say that is known before training."""
    config, classes = context.config, context.images.classes
    return {
        "model": stage.settings.model,
        "classes": list(classes.names),
        "melanoma": classes.melanoma,
        "pool": stage.settings.pool,
        "hidden": stage.settings.hidden,
        "compute_dtype": config.compute_dtype,
        "image_size": config.image_size,
        "crop": config.crop,
    }


def _make_network(stage: Stage, context: Context) -> Classifier:
    """Return the network of a stage, for training."""
    return network_of(
        _describe(stage, context),
        dtype=context.config.compute_dtype,
        dropout=stage.settings.dropout,
        bn_axis_name=parallel.BATCH_AXIS,
    )


def _prepare(
    stage: Stage, context: Context, networks: Mapping[str, Classifier]
) -> StageTerms:
    """Return what a stage learns by; refuse, before any training, one that cannot run.

    Raises:
      UserError: its batches do not fit the devices or the training split, its file of
        weights is absent, or a term cannot be computed with these networks.
    """
    settings, per_image = stage.settings, stage.views.per_image
    field = f"{stage.field}.batch_size"
    # Each device's share must hold whole images.
    parallel.check_batch_size(settings.batch_size, field=field, per_device=per_image)
    num_train = len(context.images.rows["train"])
    if settings.batch_size // per_image > num_train:
        raise UserError(
            f"config.{field}={settings.batch_size} is larger than the training split"
            f" ({num_train} images, {per_image} views of each in a batch); lower it"
        )
    if settings.init == "imagenet":
        find_imagenet_file(settings.model)
    elif settings.init != "random" and not expand_user(settings.init).is_file():
        raise UserError(
            f"config.{stage.field}.init={settings.init}: there is no such file; give a"
            " file of weights, 'imagenet' or 'random'"
        )
    teachers = [networks[name] for name in stage.learns_from]
    return make_stage_terms(stage, context, networks[stage.name], teachers)


def _train(
    stage: Stage,
    context: Context,
    network: Classifier,
    learning: StageTerms,
    *,
    teachers: Mapping[str, Model],
    on_epoch: Callable[[History], None] | None,
) -> Model:
    """Train the model of a stage into its folder."""
    config, settings = context.config, stage.settings
    before = [checkpoint.fingerprint(each.variables) for each in teachers.values()]
    variables = initial_variables(network, config.image_size, stage.seed)
    if settings.init != "random":
        own = settings.init != "imagenet"
        init = str(expand_user(settings.init)) if own else settings.init
        variables = load_pretrained(settings.model, variables, init=init)
    eval_step = make_scorer(network, context.mesh)
    task = make_task(stage, context, network, variables, learning, eval_step, teachers)
    result = fit(task, context, on_epoch=on_epoch)
    description = checkpoint.save_model(
        context.workdir / stage.name,
        result.variables,
        {
            **_describe(stage, context),
            "params": count_params(result.variables),
            "flops": count_flops(
                network, result.variables, image_size=config.image_size
            ),
            "distilled": bool(teachers),
            "qat": stage.qat_epochs > 0,
            "best_step": result.best_step,
            # Of the last uninterrupted stretch only.
            "seconds": round(result.seconds, 1),
            "history": result.history,
        },
    )
    parallel.wait_for_all(f"{stage.name} saved")
    after = [checkpoint.fingerprint(each.variables) for each in teachers.values()]
    if after != before:
        raise RuntimeError(f"a teacher's variables changed while {stage.name} trained")
    # What was trained, by the step that validated it: nothing is compiled again.
    return Model(network, eval_step, result.variables, description)
