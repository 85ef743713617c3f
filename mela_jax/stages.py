"""The stages of a run, and how each becomes a trained model in a folder of its own."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
from absl import logging
from ml_collections import ConfigDict

from mela_jax import checkpoint, parallel, steps
from mela_jax.config import expand_user
from mela_jax.data.records import Record
from mela_jax.data.views import AugmentSettings, Views
from mela_jax.distill.terms import Shapes
from mela_jax.errors import UserError
from mela_jax.images import Images
from mela_jax.models.cost import count_flops, count_params
from mela_jax.models.outputs import Outputs
from mela_jax.models.pretrained import find_imagenet_file, load_pretrained
from mela_jax.saved_models import (
    Model,
    initial_variables,
    load_model,
    load_teacher,
)
from mela_jax.tasks import answer_shapes, make_network, make_task, stage_terms
from mela_jax.train import History, Schedule, fit


@dataclasses.dataclass(frozen=True)
class Stage:
    """One model of a run.

    Attributes:
      name: of its folder.
      config: config.teacher or config.student.
      field: name of that, for messages.
      seed: source of its weights, order, views and dropout.
      views: which views of the images it learns from.
      learns_from: names of the stages that teach it; none for labels alone.
      qat_epochs: how many of its last epochs see the rounding of an int8 file.
      given: a finished model that is used as it is, and not trained; "" for none.
    """

    name: str
    config: ConfigDict
    field: str
    seed: int
    views: Views
    learns_from: tuple[str, ...] = ()
    qat_epochs: int = 0
    given: str = ""


def plan(config: ConfigDict) -> list[Stage]:
    """Return the stages of a run; each learns from earlier ones alone."""
    settings = AugmentSettings(**config.augment.to_dict())
    on_device = config.augment_on_device
    teachers = []
    if config.distill.enabled:
        given = (config.teacher.checkpoint, *config.distill.extra_teachers)
        teachers = [
            Stage(
                "teacher" if number == 1 else f"teacher_{number}",
                config.teacher,
                "teacher",
                config.seed,
                Views(settings, on_device=on_device),
                given=path,
            )
            for number, path in enumerate(given, start=1)
        ]
    student = Stage(
        "student",
        config.student,
        "student",
        # A random stream of its own, apart from the teacher's.
        config.seed + 1000,
        Views(
            settings,
            per_image=config.student.views_per_image,
            recurring=count_views(config),
            on_device=on_device,
        ),
        learns_from=tuple(stage.name for stage in teachers),
        qat_epochs=config.student.qat_epochs if config.student.qat else 0,
    )
    baseline = dataclasses.replace(student, name="baseline", learns_from=())
    return [*teachers, student, *([baseline] if config.baseline else [])]


def count_views(config: ConfigDict) -> int:
    """Return how many views of an image the student sees; 0: fresh ones every epoch."""
    is_random = AugmentSettings(**config.augment.to_dict()).is_random
    return config.student.num_views if is_random else config.student.views_per_image


def obtain_all(
    planned: Sequence[Stage],
    config: ConfigDict,
    workdir: Path,
    records: Sequence[Record],
    images: Images,
    mesh: parallel.Mesh,
    *,
    on_epoch: Callable[[History], None] | None = None,
) -> dict[str, Model]:
    """Return the model of each stage: given, finished before, or trained now.

    Args:
      planned: the stages, in their order.
      config: of the run.
      workdir: folder of the run.
      records: of the data set.
      images: the same, decoded.
      mesh: devices.
      on_epoch: for `train.fit` of the student.

    Raises:
      UserError: for anything that its user can mend.
    """
    # All that can be refused is refused before the first stage trains for hours.
    found = {
        stage.name: load_teacher(
            stage.given, records, images, mesh, field=_field_of_given(stage)
        )
        for stage in planned
        if stage.given
    }
    _check(planned, config, workdir, images, found)
    for stage in planned:
        if stage.name not in found:
            found[stage.name] = _obtain(
                stage,
                config,
                workdir,
                images,
                mesh,
                models={name: found[name] for name in stage.learns_from},
                on_epoch=on_epoch if stage.name == "student" else None,
            )
    return {stage.name: found[stage.name] for stage in planned}


def _field_of_given(stage: Stage) -> str:
    if stage.name == "teacher":
        return "config.teacher.checkpoint"
    return "config.distill.extra_teachers"


def _check(
    planned: Sequence[Stage],
    config: ConfigDict,
    workdir: Path,
    images: Images,
    given: Mapping[str, Model],
) -> None:
    """Find out before any training that a stage cannot run.

    A finished stage needs its weights file no more and is not asked for it.

    Raises:
      UserError: when a batch size does not fit, a file of weights is absent, or a term
        cannot be computed with these networks.
    """
    parallel.check_batch_size(config.eval_batch_size, field="eval_batch_size")
    # Tracing networks takes a second or two; labels and logits need no look at shapes.
    looks_inside = any(
        weight for kind, weight in config.distill.weights.items() if kind != "logits"
    )
    answers = {
        name: answer_shapes(model.network, model.variables, config.image_size)
        for name, model in given.items()
        if looks_inside
    }
    for stage in planned:
        if stage.given:
            continue
        if looks_inside:
            answers[stage.name] = _planned_answers(stage.config, config, images)
        if checkpoint.read_description(workdir / stage.name) is not None:
            continue
        _check_batch(stage, images)
        _check_init(stage)
        # Refuses what cannot be made; the terms are made again when they are needed.
        stage_terms(
            stage.config,
            config,
            images,
            Shapes(
                answers.get(stage.name),
                tuple(answers[name] for name in stage.learns_from if looks_inside),
                bn_axis_name=parallel.BATCH_AXIS,
            ),
        )


def _planned_answers(stage: ConfigDict, config: ConfigDict, images: Images) -> Outputs:
    """Return the shapes of what a network will answer that is not there yet."""
    network = make_network(
        stage,
        num_logits=images.classes.num_logits,
        compute_dtype=config.compute_dtype,
    )
    variables = jax.eval_shape(lambda: initial_variables(network, config.image_size, 0))
    return answer_shapes(network, variables, config.image_size)


def _check_batch(stage: Stage, images: Images) -> None:
    """Check that a stage's batches fit the devices and the training split."""
    batch_size, per_image = stage.config.batch_size, stage.views.per_image
    field = f"{stage.field}.batch_size"
    # Each device's share must hold whole images.
    parallel.check_batch_size(batch_size, field=field, per_device=per_image)
    num_train = len(images.rows["train"])
    if batch_size // per_image > num_train:
        raise UserError(
            f"config.{field}={batch_size} is larger than the training split"
            f" ({num_train} images, {per_image} views of each in a batch); lower it"
        )


def _check_init(stage: Stage) -> None:
    """Check that a stage's file of weights is there."""
    init = stage.config.init
    if init == "imagenet":
        find_imagenet_file(stage.config.model)
    elif init != "random" and not expand_user(init).is_file():
        raise UserError(
            f"config.{stage.field}.init={init}: there is no such file; give a file of"
            " weights, 'imagenet' or 'random'"
        )


def _obtain(
    stage: Stage,
    config: ConfigDict,
    workdir: Path,
    images: Images,
    mesh: parallel.Mesh,
    *,
    models: Mapping[str, Model],
    on_epoch: Callable[[History], None] | None,
) -> Model:
    """Return the model of a stage, finished before or trained now by its teachers."""
    folder = workdir / stage.name
    if checkpoint.read_description(folder) is not None:
        logging.info("%s: finished before", stage.name)
        return load_model(folder, mesh)
    before = [checkpoint.fingerprint(model.variables) for model in models.values()]
    model = _train(stage, config, folder, images, mesh, models, on_epoch)
    after = [checkpoint.fingerprint(model.variables) for model in models.values()]
    if after != before:
        raise RuntimeError(f"a teacher's variables changed while {stage.name} trained")
    return model


def _train(
    stage: Stage,
    config: ConfigDict,
    folder: Path,
    images: Images,
    mesh: parallel.Mesh,
    models: Mapping[str, Model],
    on_epoch: Callable[[History], None] | None,
) -> Model:
    """Train the model of a stage into its folder."""
    of_stage = stage.config
    network = make_network(
        of_stage,
        num_logits=images.classes.num_logits,
        compute_dtype=config.compute_dtype,
    )
    variables = initial_variables(network, config.image_size, stage.seed)
    if of_stage.init != "random":
        init = (
            of_stage.init if of_stage.init == "imagenet" else expand_user(of_stage.init)
        )
        variables = load_pretrained(of_stage.model, variables, init=str(init))
    eval_step = parallel.map_eval_step(steps.make_eval_step(network), mesh)
    task = make_task(
        stage.name,
        of_stage,
        config,
        images,
        mesh,
        views=stage.views,
        seed=stage.seed,
        network=network,
        variables=variables,
        eval_step=eval_step,
        models=models,
    )
    schedule = Schedule(
        **{
            field.name: of_stage[field.name]
            for field in dataclasses.fields(Schedule)
            if field.name in of_stage and field.name != "qat_epochs"
        },
        qat_epochs=stage.qat_epochs,
        seed=stage.seed,
        log_every_steps=config.log_every_steps,
        profile_steps=config.profile_steps,
    )
    result = fit(task, images, schedule, directory=folder, mesh=mesh, on_epoch=on_epoch)
    checkpoint.save_model(
        folder,
        result.variables,
        {
            "model": of_stage.model,
            "classes": list(images.classes.names),
            "melanoma": images.classes.melanoma,
            "pool": of_stage.pool,
            "hidden": of_stage.hidden,
            "compute_dtype": config.compute_dtype,
            "image_size": config.image_size,
            "crop": config.crop,
            "params": count_params(result.variables),
            "flops": count_flops(
                network, result.variables, image_size=config.image_size
            ),
            "distilled": bool(models),
            "qat": stage.qat_epochs > 0,
            "best_step": result.best_step,
            # Of the last uninterrupted stretch only.
            "seconds": round(result.seconds, 1),
            "history": result.history,
        },
    )
    parallel.wait_for_all(f"{stage.name} saved")
    # What was trained, by the step that validated it: nothing is compiled again.
    description = checkpoint.read_description(folder)
    assert description is not None, "save_model has just written it"
    return Model(network, eval_step, result.variables, description)
