"""The story, stage by stage: images, splits, teacher, student, operating point, report.

Every stage leaves its result in the workdir and is skipped when that is there.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict
from scipy.special import expit

from mela_jax import checkpoint, losses, parallel, run_record, steps
from mela_jax.config import expand_user, validate
from mela_jax.data.augment import AugmentSettings
from mela_jax.data.cache import open_cache
from mela_jax.data.load import load_records
from mela_jax.data.records import Record
from mela_jax.data.splits import (
    apply_splits,
    make_folds,
    make_splits,
    read_splits,
    splits_of_fold,
    write_splits,
)
from mela_jax.distill.logits import check_are_logits
from mela_jax.errors import UserError
from mela_jax.evaluation.calibration import Calibration, write_calibration
from mela_jax.evaluation.measure import Settings, evaluate_model
from mela_jax.evaluation.operating_point import lesions_needed
from mela_jax.evaluation.report import write_report
from mela_jax.evaluation.scores import (
    DETAILS,
    Predictions,
    read_predictions,
    write_predictions,
)
from mela_jax.models.cost import count_flops, count_params
from mela_jax.models.pretrained import find_imagenet_file, load_pretrained
from mela_jax.models.zoo import create_model
from mela_jax.state import Variables
from mela_jax.teacher_cache import cached_logits
from mela_jax.train import EvalStep, History, Images, fit, score

SPLITS = ("train", "val", "test")
# What the model card says of the data, where the data set is known.
ABOUT_DATA = {
    "ham10000": {
        "data": "HAM10000 (Tschandl et al. 2018, doi:10.1038/sdata.2018.161):"
        " dermoscopy images of pigmented lesions from the Medical University of Vienna"
        " and a skin cancer practice in Queensland, collected over 20 years.",
        "eligibility": "Pigmented lesions of seven kinds; other diagnoses, and"
        " non-pigmented lesions, were left out by its authors.",
        "sampling": "Retrospective collection, chosen by diagnosis: melanoma is far"
        " more frequent than among people who are examined.",
        "acquisition": "Several dermatoscopes, in part digitised slides; its authors"
        " cropped the images so that the lesion lies in the centre, and corrected the"
        " colours of some.",
        "representativeness": "Not like the moles of everybody: melanoma is 11 % of the"
        " images, and half of the lesions were suspect enough to be cut out.",
        "reference_standard": "Histopathology for every melanoma and about half of all"
        " lesions; follow-up, expert consensus or confocal microscopy for the others:"
        " see the rows by how the diagnosis was made.",
        "skin_types": "Not recorded; the centres serve mostly light skin. Nothing is"
        " known of dark skin.",
        "ethics": "The authors of HAM10000 state approval by the ethics boards of both"
        " universities; published under CC BY-NC-SA 4.0, de-identified.",
    },
    "phantom": {"data": "Made-up lesions, drawn by a program. No skin at all."},
}

# Each model's own random streams, apart from the others'.
_SEED_OFFSET = {"teacher": 0, "student": 1, "baseline": 1}


@dataclasses.dataclass(frozen=True)
class Model:
    """A trained model, as it lies in its folder.

    Attributes:
      network: flax module.
      eval_step: (variables, images on the devices) -> logits float32[B], compiled once.
      variables: its variables, a copy on every device.
      description: model.json.
    """

    network: nn.Module
    eval_step: EvalStep
    variables: Variables
    description: dict[str, Any]


def run(
    config: ConfigDict,
    workdir: Path,
    *,
    on_epoch: Callable[[History], None] | None = None,
) -> dict[str, Any]:
    """Run the whole job, or what is left of it.

    Args:
      config: see `mela_jax.config`.
      workdir: folder of the run; made when absent.
      on_epoch: for `train.fit` of the student.

    Returns:
      The content of report/metrics.json.

    Raises:
      UserError: for anything that its user can mend.
    """
    validate(config)
    workdir = workdir.absolute()
    with run_record.exclusive(workdir):
        mesh = parallel.make_mesh()
        records, images = load_images(config, workdir)
        check_stages(config, workdir, images)
        check_guarantee(config, records, images)
        models: dict[str, Model] = {}
        if config.distill.enabled:
            models["teacher"] = obtain_teacher(config, workdir, records, images, mesh)
        models["student"] = train_student(
            config,
            workdir,
            images,
            mesh,
            name="student",
            teacher=models.get("teacher"),
            on_epoch=on_epoch,
        )
        if config.baseline:
            models["baseline"] = train_student(
                config, workdir, images, mesh, name="baseline", teacher=None
            )
        predictions = {
            name: predict_splits(config, workdir, name, model, records, images, mesh)
            for name, model in models.items()
        }
        parallel.wait_for_all("predictions")
        return report(config, workdir, models, predictions, records)


def run_teacher(config: ConfigDict, workdir: Path) -> None:
    """Train the teacher of a run and nothing else, for `config.teacher.checkpoint`.

    Args:
      config: see `mela_jax.config`.
      workdir: folder of the run; made when absent.

    Raises:
      UserError: for anything that its user can mend.
    """
    validate(config)
    workdir = workdir.absolute()
    with run_record.exclusive(workdir):
        records, images = load_images(config, workdir)
        check_stages(config, workdir, images)
        obtain_teacher(config, workdir, records, images, parallel.make_mesh())


def find_records(config: ConfigDict) -> list[Record]:
    """Return the images of the data set, not decoded.

    Raises:
      UserError: when they are not there, or not as they should be.
    """
    data = config.data
    if not data.dir:
        raise UserError(
            "config.data.dir is empty: give the data folder, --config.data.dir=PATH"
        )
    return load_records(
        name=data.name,
        directory=expand_user(data.dir),
        download=data.download,
        phantom_lesions=data.phantom_lesions,
        seed=data.split_seed,
    )


def load_images(config: ConfigDict, workdir: Path) -> tuple[list[Record], Images]:
    """Find the images, decode them once and split them by lesion."""
    data = config.data
    records = find_records(config)
    caches = {
        size: open_cache(
            records,
            size=size,
            crop=config.crop,
            directory=expand_user(data.cache_dir),
            on_bad_image=data.on_bad_image,
        )
        for size in {config.image_size, data.train_size or config.image_size}
    }
    readable = caches[config.image_size].readable
    usable = [r for r, ok in zip(records, readable, strict=True) if ok]
    run_record.claim(workdir, config, usable)
    splits = split_records(config, usable)
    if parallel.is_main_process():
        write_splits(workdir / "splits.csv", usable, splits)
    labels = np.array([r.label for r in records], np.int32)
    rows = {
        split: np.array(
            [
                row
                for row, r in enumerate(records)
                if readable[row] and splits[r.image_id] == split
            ],
            np.int64,
        )
        for split in SPLITS
    }
    for split, members in rows.items():
        logging.info(
            "%s: %d images, %d melanomas", split, len(members), labels[members].sum()
        )
    images = Images(
        train=caches[data.train_size or config.image_size].images,
        evaluation=caches[config.image_size].images,
        labels=labels,
        rows=rows,
    )
    return records, images


def check_stages(config: ConfigDict, workdir: Path, images: Images) -> None:
    """Find out before the teacher's hours, not after them, that a stage cannot run.

    A finished stage needs its weights file no more and is not asked for it.

    Raises:
      UserError: when a batch size does not fit, or a file of weights is absent.
    """
    parallel.check_batch_size(config.eval_batch_size, field="eval_batch_size")
    num_train = len(images.rows["train"])
    stages = ["student"]
    if config.distill.enabled and not config.teacher.checkpoint:
        stages.insert(0, "teacher")
    for name in stages:
        if checkpoint.read_description(workdir / name) is not None:
            continue
        stage = config[name]
        parallel.check_batch_size(stage.batch_size, field=f"{name}.batch_size")
        if stage.batch_size > num_train:
            raise UserError(
                f"config.{name}.batch_size={stage.batch_size} is larger than the"
                f" training split ({num_train} images); lower it"
            )
        if stage.init == "imagenet":
            find_imagenet_file(stage.model)
        elif stage.init != "random" and not expand_user(stage.init).is_file():
            raise UserError(
                f"config.{name}.init={stage.init}: there is no such file; give a file"
                " of weights, 'imagenet' or 'random'"
            )


def check_guarantee(
    config: ConfigDict, records: Sequence[Record], images: Images
) -> None:
    """Find out before any training that validation is too small for the guarantee.

    Raises:
      UserError: when it is asked for and has too few melanoma lesions.
    """
    if config.evaluation.threshold_policy != "guaranteed":
        return
    members = [records[row] for row in images.rows["val"]]
    lesions = len({r.lesion_id for r in members if r.label == 1})
    needed = lesions_needed(
        target=config.target_sensitivity, delta=config.evaluation.guarantee_delta
    )
    if lesions < needed:
        raise UserError(
            f"config.evaluation.threshold_policy=guaranteed takes {needed} melanoma"
            f" lesions in validation for {config.target_sensitivity:g} sensitivity;"
            f" there are {lesions}: enlarge config.data.val_fraction, lower"
            " config.target_sensitivity, or choose empirical"
        )


def split_records(config: ConfigDict, records: Sequence[Record]) -> dict[str, str]:
    """Return {image_id: split} as the configuration wants it."""
    data = config.data
    if data.splits_file:
        return apply_splits(records, read_splits(expand_user(data.splits_file)))
    if data.fold >= 0:
        folds = make_folds(records, num_folds=data.num_folds, seed=data.split_seed)
        return splits_of_fold(folds, fold=data.fold, num_folds=data.num_folds)
    return make_splits(
        records,
        val_fraction=data.val_fraction,
        test_fraction=data.test_fraction,
        seed=data.split_seed,
    )


def obtain_teacher(
    config: ConfigDict,
    workdir: Path,
    records: Sequence[Record],
    images: Images,
    mesh: parallel.Mesh,
) -> Model:
    """Train the teacher, or take the one that config.teacher.checkpoint names."""
    if not config.teacher.checkpoint:
        return _train(config, workdir, images, mesh, name="teacher", teacher=None)
    given = expand_user(config.teacher.checkpoint)
    folder = given / "teacher" if (given / "teacher" / "model.json").exists() else given
    if checkpoint.read_description(folder) is None:
        raise UserError(
            f"config.teacher.checkpoint={given}: there is no finished model (no"
            " model.json, nor teacher/model.json); give the workdir of a finished run"
        )
    table = folder.parent / "splits.csv"
    if not table.exists():
        raise UserError(
            f"config.teacher.checkpoint={given}: {table} is missing, so nothing shows"
            " that the teacher has not seen this run's test lesions"
        )
    refuse_leak(
        {lesion: split for lesion, split in read_splits(table).values()},
        {
            r.lesion_id: split
            for split in SPLITS
            for r in (records[row] for row in images.rows[split])
        },
        source=str(given),
    )
    return load_model(folder, mesh)


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
            f"config.teacher.checkpoint={source}: it was trained or selected on"
            f" {len(leaked)} lesions of this run's validation or test set"
            f" ({', '.join(leaked[:5])} ...); share its split with"
            " --config.data.splits_file=<its workdir>/splits.csv"
        )


def train_student(
    config: ConfigDict,
    workdir: Path,
    images: Images,
    mesh: parallel.Mesh,
    *,
    name: str,
    teacher: Model | None,
    on_epoch: Callable[[History], None] | None = None,
) -> Model:
    """Train the student, with a teacher or, as its own baseline, without."""
    before = checkpoint.fingerprint(teacher.variables) if teacher else None
    student = _train(
        config, workdir, images, mesh, name=name, teacher=teacher, on_epoch=on_epoch
    )
    if teacher and checkpoint.fingerprint(teacher.variables) != before:
        raise RuntimeError("the teacher's variables changed while the student trained")
    return student


def _train(
    config: ConfigDict,
    workdir: Path,
    images: Images,
    mesh: parallel.Mesh,
    *,
    name: str,
    teacher: Model | None,
    on_epoch: Callable[[History], None] | None = None,
) -> Model:
    """Train one model into workdir/name, unless it is there."""
    folder = workdir / name
    if checkpoint.read_description(folder) is not None:
        logging.info("%s: finished before", name)
        return load_model(folder, mesh)
    stage = config.teacher if name == "teacher" else config.student
    seed = config.seed + 1000 * _SEED_OFFSET[name]
    network = _create(stage, compute_dtype=config.compute_dtype)
    labels = images.labels[images.rows["train"]]
    hard_loss = losses.make_hard_loss(
        stage.loss,
        num_positives=int(labels.sum()),
        num_negatives=int((1 - labels).sum()),
        focal_gamma=stage.focal_gamma,
        focal_alpha=None if stage.focal_alpha == -1 else stage.focal_alpha,
    )
    settings = AugmentSettings(**config.augment.to_dict())
    num_views = count_views(config) if name != "teacher" else 0
    teacher_logits = None
    if teacher is None:
        objective = steps.make_hard_objective(hard_loss)
    else:
        _check_teacher(teacher, images, mesh, config.eval_batch_size)
        if num_views:
            teacher_logits = cached_logits(
                eval_step=teacher.eval_step,
                variables=teacher.variables,
                description=teacher.description,
                images=images,
                settings=settings,
                augment_on_device=config.augment_on_device,
                seed=seed,
                num_views=min(num_views, stage.epochs),
                mesh=mesh,
                batch_size=config.eval_batch_size,
                directory=expand_user(config.data.cache_dir) / "teacher_logits",
            )
        objective = steps.make_distill_objective(
            hard_loss,
            teacher=None if num_views else teacher.network,
            alpha=config.distill.alpha,
            temperature=config.distill.temperature,
            axis_name=parallel.BATCH_AXIS,
        )
    variables = _initial(network, config.image_size, seed)
    if stage.init != "random":
        init = stage.init if stage.init == "imagenet" else expand_user(stage.init)
        variables = load_pretrained(stage.model, variables, init=str(init))
    eval_step = parallel.map_eval_step(steps.make_eval_step(network), mesh)
    result = fit(
        name=name,
        model=network,
        eval_step=eval_step,
        variables=variables,
        stage=stage,
        objective=objective,
        frozen=teacher.variables if teacher and not num_views else {},
        images=images,
        settings=settings,
        augment_on_device=config.augment_on_device,
        num_views=num_views,
        teacher_logits=teacher_logits,
        directory=folder,
        mesh=mesh,
        seed=seed,
        target_sensitivity=config.target_sensitivity,
        eval_batch_size=config.eval_batch_size,
        log_every_steps=config.log_every_steps,
        qat_epochs=stage.qat_epochs if name != "teacher" and stage.qat else 0,
        on_epoch=on_epoch,
    )
    checkpoint.save_model(
        folder,
        result.variables,
        {
            "model": stage.model,
            "pool": stage.pool,
            "hidden": stage.hidden,
            "compute_dtype": config.compute_dtype,
            "image_size": config.image_size,
            "crop": config.crop,
            "params": count_params(result.variables),
            "flops": count_flops(
                network, result.variables, image_size=config.image_size
            ),
            "distilled": teacher is not None,
            "qat": name != "teacher" and stage.qat,
            "best_step": result.best_step,
            # Of the last uninterrupted stretch only.
            "seconds": round(result.seconds, 1),
            "history": result.history,
        },
    )
    parallel.wait_for_all(f"{name} saved")
    # What was trained, by the step that validated it: nothing is compiled again.
    description = checkpoint.read_description(folder)
    assert description is not None, "save_model has just written it"
    return Model(network, eval_step, result.variables, description)


def load_model(folder: Path, mesh: parallel.Mesh) -> Model:
    """Read a finished model.

    Raises:
      UserError: when it is damaged.
    """
    description = checkpoint.read_description(folder)
    if description is None:
        raise UserError(f"{folder}: there is no finished model (no model.json)")
    network = create_model(
        description["model"],
        pool=description["pool"],
        hidden=description["hidden"],
        dtype=jnp.dtype(description["compute_dtype"]),
    )
    shapes = jax.eval_shape(lambda: _initial(network, description["image_size"], 0))
    variables = checkpoint.load_variables(
        folder, parallel.abstract_replicated(mesh, shapes)
    )
    eval_step = parallel.map_eval_step(steps.make_eval_step(network), mesh)
    return Model(network, eval_step, variables, description)


def _create(stage: ConfigDict, *, compute_dtype: str) -> nn.Module:
    return create_model(
        stage.model,
        pool=stage.pool,
        hidden=stage.hidden,
        dropout=stage.dropout,
        dtype=jnp.dtype(compute_dtype),
        bn_axis_name=parallel.BATCH_AXIS,
    )


def _initial(network: nn.Module, image_size: int, seed: int) -> Variables:
    """Return random variables; jitted, since eager calls compile each layer."""
    image = jnp.zeros((1, image_size, image_size, 3), jnp.float32)
    init = jax.jit(lambda key: network.init(key, image, train=False))
    return init(jax.random.key(seed))


def count_views(config: ConfigDict) -> int:
    """Return how many views of an image the student sees; 0: one for every epoch."""
    is_random = AugmentSettings(**config.augment.to_dict()).is_random
    return config.student.num_views if is_random else 1


def _check_teacher(
    teacher: Model, images: Images, mesh: parallel.Mesh, batch_size: int
) -> None:
    logits = score(
        teacher.eval_step,
        teacher.variables,
        images,
        "val",
        mesh=mesh,
        batch_size=batch_size,
    )
    check_are_logits(logits, source="teacher")


def predict_splits(
    config: ConfigDict,
    workdir: Path,
    name: str,
    model: Model,
    records: Sequence[Record],
    images: Images,
    mesh: parallel.Mesh,
) -> dict[str, Predictions]:
    """Score validation and test into predictions/, and read the scores back."""
    found = {}
    for split in ("val", "test"):
        path = workdir / "predictions" / f"{name}_{split}.csv"
        if not path.exists():
            logits = score(
                model.eval_step,
                model.variables,
                images,
                split,
                mesh=mesh,
                batch_size=config.eval_batch_size,
            )
            members = [records[row] for row in images.rows[split]]
            if parallel.is_main_process():
                write_predictions(
                    path,
                    Predictions(
                        image_id=[r.image_id for r in members],
                        lesion_id=[r.lesion_id for r in members],
                        label=images.labels[images.rows[split]],
                        score=probability(logits),
                        details={
                            name: [getattr(r, name) for r in members]
                            for name in DETAILS
                            if hasattr(Record, name)
                        },
                    ),
                )
            parallel.wait_for_all(f"{name} {split} scored")
        found[split] = read_predictions(path)
    return found


def probability(logits: np.ndarray) -> np.ndarray:
    """Return P(melanoma) float64[n] of logits float32[n].

    In float64: in float32 every logit above 17 would tie at exactly 1.
    """
    return expit(logits.astype(np.float64))


def evaluation_settings(config: ConfigDict) -> Settings:
    """Return how the configuration wants a model judged."""
    return Settings(
        target=config.target_sensitivity,
        policy=config.evaluation.threshold_policy,
        delta=config.evaluation.guarantee_delta,
        prevalences=tuple(config.evaluation.prevalences),
        calibration=config.evaluation.calibration,
        num_bootstrap=config.num_bootstrap,
        seed=config.seed,
    )


def report(
    config: ConfigDict,
    workdir: Path,
    models: dict[str, Model],
    predictions: dict[str, dict[str, Predictions]],
    records: Sequence[Record],
) -> dict[str, Any]:
    """Choose operating points on validation, measure them on test, write it down."""
    if not parallel.is_main_process():
        parallel.wait_for_all("report")
        return json.loads((workdir / "report" / "metrics.json").read_text())
    settings = evaluation_settings(config)
    measured = {
        name: {
            "name": model.description["model"],
            "params": model.description["params"],
            "flops": model.description["flops"],
            **evaluate_model(
                predictions[name]["val"],
                predictions[name]["test"],
                settings,
            ),
        }
        for name, model in models.items()
    }
    for name, figures in measured.items():
        # A teacher of another run keeps what that run fitted.
        if figures["calibration"] and (workdir / name).is_dir():
            write_calibration(
                workdir / name / "calibration.json",
                Calibration(**figures["calibration"]),
                about={
                    "fitted_on": "val",
                    "images": figures["val"]["n"],
                    "melanomas": figures["val"]["positives"],
                    "threshold_policy": settings.policy,
                },
            )
    distillation = (
        f"alpha {config.distill.alpha}, temperature {config.distill.temperature}"
        if config.distill.enabled
        else "none"
    )
    metrics = write_report(
        workdir / "report",
        models=measured,
        predictions=predictions,
        histories={name: m.description["history"] for name, m in models.items()},
        settings=settings,
        made_up=config.data.name == "phantom",
        about=ABOUT_DATA.get(config.data.name, {}) | about_run(config, workdir, models),
        images={r.image_id: r.path for r in records},
        run={
            "data": f"{config.data.name}, {config.data.dir}",
            "image size": f"{config.image_size} px, crop {config.crop}",
            "distillation": distillation,
            "views of an image": f"{count_views(config) or 'one for every epoch'}",
            "seed": f"{config.seed} (split {config.data.split_seed})",
            "devices": ", ".join(parallel.describe_devices()),
            **{
                f"{name}: checkpoint": f"step {m.description['best_step']}"
                for name, m in models.items()
            },
            **{
                f"{name}: training time": f"{m.description['seconds']:.0f} s"
                for name, m in models.items()
            },
        },
    )
    parallel.wait_for_all("report")
    return metrics


def about_run(
    config: ConfigDict, workdir: Path, models: dict[str, Model]
) -> dict[str, str]:
    """Return what the run knows for the model card, by key of `checklist.ABOUT`."""
    student = models["student"].description
    init = config.student.init
    origin = f"from {init if init in ('random', 'imagenet') else 'given'} weights"
    if "teacher" in models:
        origin += f", distilled from {models['teacher'].description['model']}"
    members = read_splits(workdir / "splits.csv").values()
    lesions = [lesion for lesion, split in members if split == "train"]
    return {
        "intended_use": "Research and engineering. Not for the care of anybody.",
        "model": f"{student['model']}, {student['image_size']} px, {origin}.",
        "training_data": f"{len(lesions)} images of {len(set(lesions))} lesions of the"
        " same data set; validation and test share no lesion_id with them.",
        "external_data": "None. Test lesions are of the same data set as those of"
        " training; other clinics and cameras were not tried.",
        "availability": "Weights and scores lie in the folder of the run. The code is"
        " mela_jax, Apache-2.0.",
    }


def summary(metrics: dict[str, Any], workdir: Path) -> str:
    """Return the result table for the terminal, and where the report is."""
    titles = ("ROC-AUC", "sensitivity", "specificity")
    head = f"{'':10}{'parameters':>12}" + "".join(f"{t:>22}" for t in titles)
    lines = ["", "Test set, threshold chosen on validation (95 % intervals)", head]
    for name, model in metrics["models"].items():
        test = model["test"]
        cells = (
            test["roc_auc"],
            test["operating_point"]["sensitivity"],
            test["operating_point"]["specificity"],
        )
        shown = "".join(
            f"{c['value']:.3f} ({c['low']:.3f}-{c['high']:.3f})".rjust(22)
            for c in cells
        )
        lines.append(f"{name:10}{model['params']:12,}{shown}")
    if metrics["made_up_data"]:
        lines.append("MADE-UP LESIONS: these numbers say nothing about real skin.")
    lines += [
        "This is not a diagnosis.",
        f"Report: {workdir / 'report' / 'report.html'}",
    ]
    return "\n".join(lines)
