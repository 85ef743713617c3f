"""Every field of the configuration, with its default and its meaning, in one place.

A file in `configs/` starts from `default()`, changes what its experiment needs and
returns the result from `get_config()`; the command line overrides single fields with
`--config.a.b=value`. `validate()` is the only judge of values.
"""

import functools
import importlib.util
import json
import operator
import os
import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from mela_jax.errors import UserError

# What ml_collections calls the module that it makes of the file of `--config`.
_FILE_MODULE = "config_config"

CHOICES = {
    "data.on_bad_image": ("error", "skip"),
    "crop": ("center", "pad"),
    "compute_dtype": ("float32", "bfloat16"),
    "evaluation.threshold_policy": ("empirical", "guaranteed"),
    "evaluation.calibration": ("platt", "temperature", "none"),
    "labels": ("melanoma", "ham7", "diagnoses"),
    "distill.average": ("probabilities", "logits"),
    "*.pool": ("avg", "max", "flatten"),
    "*.class_weights": ("none", "balanced", "balanced_batch"),
    "*.sampler": ("shuffled", "balanced"),
    "*.schedule": ("cosine", "constant"),
    "*.select_by": (
        "roc_auc",
        "pr_auc",
        "specificity_at_target",
        "macro_f1",
        "accuracy",
        "melanoma_recall",
    ),
}


def default() -> ConfigDict:
    """Return the whole configuration with the defaults of the project."""
    c = ConfigDict()
    # Source of every random choice in training: initial weights, order, views, dropout.
    c.seed = 0
    # Side of the square that the models see, in pixels.
    c.image_size = 224
    # What the models tell apart: "melanoma" from the rest, with one logit; "ham7", the
    # seven diagnoses of HAM10000; or "diagnoses", those that the data hold.
    c.labels = "melanoma"
    # The diagnosis that is melanoma, where there are several.
    c.melanoma = "mel"
    # How a picture becomes a square: its centre, or padded with black. Never squashed.
    c.crop = "center"
    # The operating point is to keep this sensitivity; see evaluation.threshold_policy.
    c.target_sensitivity = 0.95
    # Replicates of the lesion-clustered bootstrap.
    c.num_bootstrap = 2000
    # dtype of convolutions and matrix products; parameters and statistics stay float32.
    c.compute_dtype = "float32"
    # Render the augmented views within the training step, on the GPU or TPU, and not on
    # the host. The views are the same up to rounding.
    c.augment_on_device = False
    # Virtual devices that share a CPU. XLA runs many small operations on one thread
    # each, so one device a core is faster. Ignored on a GPU or TPU.
    c.cpu_devices = 1
    # Steps between two logged training losses, which are also the checks for NaN.
    c.log_every_steps = 50
    # Steps of which a profile is taken for TensorBoard, a few steps into each training.
    # 0: none.
    c.profile_steps = 0
    # Images per evaluation batch, over all devices.
    c.eval_batch_size = 64
    # Also train the student without distillation, to say what distillation earns.
    c.baseline = False

    c.data = ConfigDict()
    # "ham10000", "isic_archive", "isic_2019", "isic_2020" or "pad_ufes_20", as they are
    # downloaded; "csv", the user's own table; "phantom", made-up lesions.
    c.data.name = "ham10000"
    # The folder of the data set; for "csv", the folder or the file; for "phantom",
    # where the made-up lesions are written.
    c.data.dir = ""
    # HAM10000 only: download the ISIC 2018 Task 3 files into data.dir first.
    c.data.download = False
    # "error" stops at an image that cannot be read; "skip" leaves it out and counts it.
    c.data.on_bad_image = "error"
    # Where decoded images are kept between runs.
    c.data.cache_dir = "~/.cache/mela_jax"
    # Side, in pixels, at which training images are kept: random crops of a larger
    # picture are sharper. 0: the image size.
    c.data.train_size = 0
    # Made-up lesions to draw, for "phantom".
    c.data.phantom_lesions = 600
    # Seed of the split, and of the made-up lesions; apart from `seed`, so that runs
    # with several seeds share a split.
    c.data.split_seed = 0
    c.data.val_fraction = 0.15
    c.data.test_fraction = 0.15
    # A fold in [0, num_folds) is the test set, the next one validation. -1: fixed
    # split.
    c.data.fold = -1
    c.data.num_folds = 5
    # splits.csv of another run whose split is carried over by lesion. Empty: a new one.
    c.data.splits_file = ""

    c.augment = ConfigDict()
    c.augment.flip = True
    # Rotation by any angle, mirrored at the border.
    c.augment.rotate = True
    # Smallest area of a random resized crop, as a fraction of the image. 1: no crop.
    c.augment.crop_min_area = 0.6
    # Largest relative change of each; for hue, in turns of the colour circle.
    c.augment.brightness = 0.2
    c.augment.contrast = 0.2
    c.augment.saturation = 0.2
    c.augment.hue = 0.02

    c.evaluation = ConfigDict()
    # "empirical": the highest threshold that reaches target_sensitivity on validation.
    # "guaranteed": the highest that reaches it with confidence 1 - guarantee_delta for
    # new lesions of the same kind.
    c.evaluation.threshold_policy = "empirical"
    c.evaluation.guarantee_delta = 0.1
    # Shares of melanoma among those examined for which PPV, NPV and counts of people
    # are given; the data's own is added.
    c.evaluation.prevalences = (0.01, 0.02, 0.05, 0.11)
    # How probabilities are calibrated on validation: "platt" (slope and intercept),
    # "temperature" (slope) or "none".
    c.evaluation.calibration = "platt"

    c.teacher = _stage("resnet50")
    # A finished run (its workdir, or a folder like its teacher/): used as it is, not
    # trained. Empty: train a teacher.
    c.teacher.checkpoint = ""
    c.student = _stage("mobilenet_v3_small")
    # Views of an image that the student (and its baseline) learn from: epoch e takes
    # view e modulo this number, and the teacher's logits of all views are computed
    # once and kept in data.cache_dir. 0: a fresh view every epoch, and the teacher runs
    # in every step. See docs/distillation.md for what either costs.
    c.student.num_views = 0
    # Views of an image in a batch, one after the other, each turned by a further
    # quarter before its augmentation; the labels are learnt on the first. batch_size
    # counts views, so that a batch holds batch_size / views_per_image images.
    c.student.views_per_image = 1
    # Quantization-aware training: the last `qat_epochs` epochs see the rounding of an
    # int8 file, and the checkpoint is chosen among them. The baseline's, too.
    c.student.qat = False
    c.student.qat_epochs = 4

    c.distill = ConfigDict()
    # False: no teacher; the student learns from the labels alone.
    c.distill.enabled = True
    # Share of the soft loss: (1 - alpha) * hard + alpha * soft. Some papers write it
    # the other way round.
    c.distill.alpha = 0.5
    c.distill.temperature = 2.0
    # Times T^2, which keeps the size of the soft gradient as T grows.
    c.distill.t_squared = True
    # Weights of the two parts of "decoupled": the label's class against the others, and
    # the others among themselves.
    c.distill.target_weight = 1.0
    c.distill.others_weight = 8.0
    # Weights of what is added up; 0: left out. The teacher of all but "logits" is the
    # first; see mela_jax/distill/terms.py.
    c.distill.weights = ConfigDict()
    # (1 - alpha) * hard + alpha * soft.
    c.distill.weights.logits = 1.0
    # The soft loss in two parts (decoupled distillation), for several classes.
    c.distill.weights.decoupled = 0.0
    # Mean squared difference of the last maps, the student's through a regressor.
    c.distill.weights.hint = 0.0
    # Difference of the inner products of their channels, likewise.
    c.distill.weights.channel = 0.0
    # Mean squared difference of the gates of networks that have one.
    c.distill.weights.attention = 0.0
    # Relations between the images of a batch: distances and angles of features.
    c.distill.weights.distance = 0.0
    c.distill.weights.angle = 0.0
    # Further finished models that teach beside the teacher, such as "runs/b/teacher".
    c.distill.extra_teachers = ()
    # Weight of each teacher, the first one's first; they add up to 1. (): all equal.
    c.distill.teacher_weights = ()
    # Of several teachers, "probabilities" (softened) or "logits" are averaged.
    c.distill.average = "probabilities"
    return c.lock()


def _stage(model: str) -> ConfigDict:
    """Return the fields that teacher and student have in common."""
    s = ConfigDict()
    s.model = model
    # "random", "imagenet", or a file of weights (.h5, .weights.h5, .npz).
    s.init = "imagenet"
    # Head: pooling over the whole map ("avg", "max"), or every place of it a feature
    # ("flatten") -> [hidden layer] -> dropout -> logit.
    s.pool = "avg"
    # Units of the hidden layer. 0: none, the light head.
    s.hidden = 0
    s.dropout = 0.0
    # Hard loss: "cross_entropy", "focal", "ldam", or "focal_ldam", the mean of the two.
    s.loss = "cross_entropy"
    # "balanced": each class weighted by 1 / its training images, the mean over them
    # being 1; "balanced_batch": likewise, divided by the weights in the batch, as
    # PyTorch's weighted mean is.
    s.class_weights = "none"
    # Multiplier of melanoma's weight.
    s.melanoma_weight = 1.0
    # Of the cross-entropy: share of the target that is spread over all classes.
    s.label_smoothing = 0.0
    s.focal_gamma = 2.0
    # With labels="melanoma", weight of melanoma in the focal loss, the rest having
    # 1 - focal_alpha. -1: none.
    s.focal_alpha = -1.0
    # Of "ldam": the rarest class's margin, and what the logits are multiplied by.
    s.ldam_margin = 0.5
    s.ldam_scale = 30.0
    # "shuffled": every image once an epoch; "balanced": as many drawn, with
    # replacement, every class as often as any other.
    s.sampler = "shuffled"
    s.epochs = 30
    # Views per step, over all devices.
    s.batch_size = 64
    # "adamw"; "adam"; "sgd", with a momentum of 0.9; or "adadelta", whose published
    # form has a learning rate of 1. All but "adamw" add the weight decay to the
    # gradient, biases and batch norm included, as PyTorch does.
    s.optimizer = "adamw"
    # After a linear warm-up: "cosine", which ends at 0, or "constant".
    s.schedule = "cosine"
    s.learning_rate = 1e-3
    s.warmup_epochs = 1.0
    s.weight_decay = 1e-4
    # Largest global norm of the gradient. 0: no clipping.
    s.clip_norm = 1.0
    # Decay of the moving average of the weights that is evaluated. 0: none.
    s.ema_decay = 0.0
    # Validation metric that chooses the checkpoint. "melanoma_recall" rewards calling
    # everything melanoma.
    s.select_by = "roc_auc"
    return s


def _at_least(low: float) -> Callable[[float], bool]:
    return lambda v: v >= low


# Fields -> what their values must fulfil, and that in words. NaN compares false with
# everything, so it fails every range.
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "eval_batch_size log_every_steps cpu_devices *.epochs *.batch_size"
    " student.views_per_image student.qat_epochs": (_at_least(1), "1 or more"),
    "profile_steps data.split_seed student.num_views *.hidden *.weight_decay"
    " *.clip_norm *.warmup_epochs *.focal_gamma *.ldam_margin": (
        _at_least(0),
        "0 or more",
    ),
    "image_size": (_at_least(32), "32 or more pixels"),
    "num_bootstrap": (_at_least(100), "100 or more"),
    "data.phantom_lesions": (_at_least(20), "20 or more"),
    "data.num_folds": (_at_least(3), "3 or more"),
    "data.train_size": (lambda v: v == 0 or v >= 32, "0, or >= 32"),
    "seed": (lambda v: 0 <= v < 2**31, "from 0 to 2**31 - 1"),
    "target_sensitivity evaluation.guarantee_delta data.val_fraction"
    " data.test_fraction": (lambda v: 0 < v < 1, "above 0 and below 1"),
    "evaluation.prevalences": (
        lambda v: all(isinstance(p, float) and 0 < p < 1 for p in v),
        "numbers above 0 and below 1",
    ),
    "augment.brightness augment.contrast augment.saturation augment.hue *.dropout"
    " *.ema_decay *.label_smoothing": (lambda v: 0 <= v < 1, "in [0, 1)"),
    "augment.crop_min_area": (lambda v: 0 < v <= 1, "in (0, 1]"),
    "*.init": (lambda v: v != "", "not empty"),
    "distill.target_weight distill.others_weight": (_at_least(0), "0 or more"),
    "*.learning_rate *.melanoma_weight *.ldam_scale distill.temperature": (
        lambda v: v > 0,
        "above 0",
    ),
    "*.focal_alpha": (
        lambda v: v == -1 or 0 < v < 1,
        "-1 (none), or above 0 and below 1",
    ),
    "distill.alpha": (lambda v: 0 <= v <= 1, "from 0 to 1"),
}


def validate(config: ConfigDict) -> None:
    """Check every value.

    Raises:
      UserError: naming the first field out of range and what it may be.
    """
    # Here, for they import JAX: a mistyped command line is answered without it.
    from mela_jax.data.load import DATASETS
    from mela_jax.losses import LOSSES
    from mela_jax.models.zoo import MODELS
    from mela_jax.optim import OPTIMIZERS

    tables = {
        "data.name": DATASETS,
        "*.model": MODELS,
        "*.loss": LOSSES,
        "*.optimizer": OPTIMIZERS,
    }
    for pattern, choices in (CHOICES | tables).items():
        _require(config, pattern, choices.__contains__, f"one of {tuple(choices)}")
    for patterns, (is_valid, what) in _RANGES.items():
        for pattern in patterns.split():
            _require(config, pattern, is_valid, what)
    for stage in ("teacher", "student"):
        network = MODELS[config[stage].model]
        if not network.takes(config.image_size):
            multiple = network.multiple_of
            raise UserError(
                f"config.image_size={config.image_size}: {config[stage].model} takes"
                f" {network.smallest} or more pixels"
                + (f", multiples of {multiple}" if multiple > 1 else "")
            )
    for kind in config.distill.weights:
        _require(config, f"distill.weights.{kind}", _at_least(0), "0 or more")
    folds = config.data.num_folds
    _require(config, "data.fold", lambda v: -1 <= v < folds, f"-1, or 0 to {folds - 1}")
    if config.student.qat:
        epochs = config.student.epochs
        _require(
            config, "student.qat_epochs", lambda v: v <= epochs, f"at most {epochs}"
        )
        rounded = tuple(name for name, entry in MODELS.items() if entry.trains_rounded)
        what = f"one of {rounded} with config.student.qat=True"
        _require(config, "student.model", rounded.__contains__, what)
    for contradicts, message in _contradictions(config):
        if contradicts:
            raise UserError(f"config.{message}")
    for name in ("teacher", "student"):
        s = config[name]
        if s.sampler != "shuffled" and s.class_weights != "none":
            logging.warning(
                "config.%s: sampler=%s and class_weights=%s make rare classes count"
                " twice; one of them is enough",
                name,
                s.sampler,
                s.class_weights,
            )


def _contradictions(config: ConfigDict) -> Iterator[tuple[bool, str]]:
    """Yield whether fields contradict each other, and what to say then."""
    data, student, distill = config.data, config.student, config.distill
    yield (
        data.val_fraction + data.test_fraction >= 1,
        "data: val_fraction + test_fraction must leave something to train on",
    )
    yield (
        data.fold >= 0 and bool(data.splits_file),
        "data: give either fold or splits_file, not both",
    )
    for name in ("teacher", "student"):
        s = config[name]
        by_alpha = s.focal_alpha != -1
        yield (
            by_alpha and (s.class_weights != "none" or s.melanoma_weight != 1),
            f"{name}: focal_alpha={s.focal_alpha} and class_weights or"
            " melanoma_weight weight the classes twice; give one of them",
        )
        yield (
            by_alpha and config.labels != "melanoma",
            f"{name}.focal_alpha={s.focal_alpha} is for labels='melanoma';"
            " with several classes give class_weights and melanoma_weight",
        )
        yield (
            bool(s.label_smoothing) and s.loss != "cross_entropy",
            f"{name}.label_smoothing={s.label_smoothing} belongs to"
            f" loss='cross_entropy', not to {s.loss!r}; set one of them",
        )
    for field in ("batch_size", "num_views"):
        yield (
            student[field] % student.views_per_image > 0,
            f"student.{field}={student[field]} does not divide by"
            f" views_per_image={student.views_per_image}; it counts views: choose a"
            " multiple",
        )
    weights, num_teachers = distill.teacher_weights, 1 + len(distill.extra_teachers)
    add_up = len(weights) == num_teachers and abs(sum(weights) - 1) < 1e-6
    yield (
        bool(weights) and not (add_up and min(weights) >= 0),
        f"distill.teacher_weights={tuple(weights)!r}: give a weight of 0 or more"
        f" to each of {num_teachers} teachers, adding up to 1",
    )
    yield (
        not any(distill.weights.values()),
        "distill.weights are all 0, so that nothing is learnt; give one",
    )
    yield (
        config.baseline and not distill.enabled,
        "baseline=True compares with distillation, which"
        " config.distill.enabled=False turns off; change one of them",
    )


def _require(
    config: ConfigDict, pattern: str, is_valid: Callable[[Any], bool], what: str
) -> None:
    """Check one field, or with "*." that of teacher and student."""
    for stage in ("teacher", "student") if pattern.startswith("*.") else ("",):
        name = f"{stage}{pattern.removeprefix('*')}"
        value: Any = functools.reduce(operator.getitem, name.split("."), config)
        if not is_valid(value):
            raise UserError(f"config.{name}={value!r} is not valid: it must be {what}")


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return {"a.b": value} for a nested configuration."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        inner = isinstance(value, dict)
        flat |= flatten(value, f"{prefix}{key}.") if inner else {prefix + key: value}
    return flat


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """List the fields in which two configurations differ, as "field: old -> new"."""
    old, new = flatten(old), flatten(new)
    pairs = {
        name: (old.get(name, "(absent)"), new.get(name, "(absent)"))
        for name in sorted(old.keys() | new.keys())
    }
    return [f"{name}: {a!r} -> {b!r}" for name, (a, b) in pairs.items() if a != b]


def field_below_a_value(words: Sequence[str]) -> str | None:
    """Say in one line which word of a command line takes a value for a section.

    None where none does. ml_collections would say what Python says of such a value.
    """
    for word in words:
        found = re.match(r"--?config\.([\w.]+)", word)
        names = found[1].split(".") if found else []
        fields: Any = default().to_dict()
        for depth, name in enumerate(names):
            if not isinstance(fields, dict):
                value, below = ".".join(names[:depth]), ".".join(names[depth:])
                fields = ", ".join(flatten(default().to_dict()))
                return (
                    f"--config: {value!r} is a value and has no field {below!r}; the"
                    f" fields are: {fields}"
                )
            fields = fields.get(name, {})
    return None


def unknown_field(error: AttributeError | KeyError) -> str:
    """Say in one line which field a command line misnamed, and list the valid ones."""
    # KeyError's repr within the message: 'name', and perhaps: Did you mean "other".
    field, *meant = re.findall(r"""["']([\w.-]+)\\?["']""", str(error)) or [str(error)]
    hint = f" (did you mean {meant[0]!r}?)" if meant else ""
    names = ", ".join(flatten(default().to_dict()))
    return f"--config: no field {field!r}{hint}; the fields are: {names}"


def mistake_in_file(
    error: BaseException | None,
    *,
    flag: str = "--config",
    module: str = _FILE_MODULE,
    function: str = "get_config",
) -> str | None:
    """Say in one line what a configuration or study file does wrong, and where.

    The file was named by `flag` and imported as `module`, and must have the function.
    None where neither the error nor what it was raised from comes of that file.
    """
    if error is None:
        return None
    if isinstance(error, AttributeError) and error.name == function:
        file = getattr(error.obj, "__file__", "the file")
        folder = "configs/studies/" if flag == "--study" else "configs/"
        return (
            f"{flag}: {file} has no function {function}(); begin with a copy of"
            f" a file of {folder}"
        )
    place, what = None, str(error)
    for frame, number in traceback.walk_tb(error.__traceback__):
        if frame.f_globals.get("__name__") == module:
            place = f"{frame.f_code.co_filename}, line {number}"
    # Of code that cannot be read there is no frame, and of null bytes no line.
    if isinstance(error, SyntaxError):
        if error.filename is None:
            place, what = "the file", error.msg
        elif Path(error.filename).is_file():
            place, what = f"{error.filename}, line {error.lineno}", error.msg
    if place is None:
        context = error.__cause__ or error.__context__
        return mistake_in_file(context, flag=flag, module=module, function=function)
    what = " ".join([f"{type(error).__name__}:", *what.split()])
    return (
        f"{flag}: {place}: {what}; correct that line (the fields are explained in"
        " mela_jax/config.py)"
    )


def with_defaults(recorded: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration as it was recorded, flat, with what it does not know yet.

    A field that is newer than the record is there with its default: whoever leaves it
    at that has not changed anything.
    """
    return flatten(json.loads(default().to_json())) | flatten(recorded)


def list_fields() -> str:
    """Return every field with its default, one a line, for --help."""
    fields = flatten(default().to_dict())
    lines = [f"  --config.{name}={value!r}" for name, value in fields.items()]
    about = "fields and their defaults (explained in mela_jax/config.py):"
    return "\n".join([about, *lines])


def find_file(name: str, folder: str = "configs") -> str:
    """Return the path of a configuration that is named by its path or by its name.

    A name is that of a file of the package `configs`, wherever that is installed, such
    as "ham10000_kd", "papers/blkd" or "configs/tiny.py"; what follows a colon is kept.
    """
    name, colon, argument = name.partition(":")
    if not os.path.isfile(name):
        spec = importlib.util.find_spec(folder.split("/")[0])
        for root in (spec and spec.submodule_search_locations) or ():
            stem = name.removesuffix(".py").removeprefix("configs/")
            below = folder.partition("/")[2]
            for path in (Path(root, below, stem + ".py"), Path(root, stem + ".py")):
                if path.is_file():
                    return f"{path}{colon}{argument}"
    return name + colon + argument


def expand_user(path: str) -> Path:
    """Return `path` with ~ replaced and made absolute."""
    return Path(path).expanduser().absolute()
