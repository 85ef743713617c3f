"""Make a model ready to score images: one of a finished run, or a file for the phone.

What a model needs is imported when it is asked for: a file for the phone is scored
without JAX, and a mistyped command line is answered without either.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mela_jax.errors import UserError

DEFAULT_WHICH = "student"
_WANTED = (
    "give the --workdir of a finished mela_jax.main run, or a .tflite file of "
    "export.to_tflite"
)


@dataclass(frozen=True)
class Scorer:
    """A model ready to score, with all it needs to know about its images.

    Attributes:
        name: what to call it when its scores are announced.
        image_size: side S of the square images it takes, in pixels.
        crop: how a photograph becomes a square: "center" or "pad".
        threshold: its operating point: an image with P(melanoma) >= it is flagged.
        classes: names of its K classes; one where it tells melanoma from the rest.
        melanoma: index of the class that is melanoma.
        score: RGB images, uint8 [B, S, S, 3] -> P(class), float64 [B, K].
    """

    name: str
    image_size: int
    crop: str
    threshold: float
    classes: tuple[str, ...]
    melanoma: int
    score: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float64]]


def make_scorer(
    model: str,
    *,
    which: str | None = None,
    crop: str | None = None,
    threshold: float | None = None,
) -> Scorer:
    """Return the scorer for what `model` names.

    Args:
        model: a finished working folder of mela_jax.main, or a .tflite file.
        which: of a folder, the name of one of its models; the student when None.
        crop: of a .tflite file without metadata, "center" or "pad".
        threshold: in place of the model's own operating point.

    Raises:
        UserError: there is no such folder or file, it is not finished or damaged, it
            holds no such model, or an option is lacking or does not go with it.
    """
    if not os.path.exists(model):
        raise UserError(f"--model: there is no {model}; {_WANTED}")
    if os.path.isdir(model):
        if crop:
            raise UserError(f"--crop: {model} knows its own crop; leave --crop out")
        return _scorer_of_run(Path(model), which or DEFAULT_WHICH, threshold)
    if Path(model).suffix.lower() != ".tflite":
        raise UserError(
            f"--model: {model} is neither a folder nor a .tflite file; {_WANTED}"
        )
    if which:
        raise UserError(
            f"--which={which} chooses among the models of a workdir, and {model} is "
            "one model; leave --which out"
        )
    return _scorer_of_file(model, crop, threshold)


def read_figures(workdir: Path, name: str, *, flag: str) -> dict[str, Any]:
    """Return what report/metrics.json of a finished run says of one of its models.

    Args:
        workdir: folder of the run.
        name: of the model, such as "student" or "teacher_2".
        flag: the command-line flag that names the model, for the message.

    Raises:
        UserError: the run is not finished or has no such model, or the file is damaged.
    """
    from mela_jax.checkpoint import read_description

    path = workdir / "report" / "metrics.json"
    if not path.exists():
        raise UserError(
            f"{workdir}: the run is not finished (no report/metrics.json); repeat the "
            "command of mela_jax.main that made it"
        )
    try:
        models = json.loads(path.read_text())["models"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{path}: is damaged; delete it and repeat the command of mela_jax.main "
            "that made it"
        ) from error
    # A teacher of another run is in the report and has no folder here.
    here = [n for n in models if read_description(workdir / n) is not None]
    if name not in here:
        raise UserError(f"{flag}={name}: {workdir} has none; it has: {', '.join(here)}")
    return models[name]


def _scorer_of_run(workdir: Path, which: str, threshold: float | None) -> Scorer:
    from mela_jax import parallel
    from mela_jax.saved_models import load_model

    figures = read_figures(workdir, which, flag="--which")
    mesh = parallel.make_mesh()
    model = load_model(workdir / which, mesh)

    def score(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        batch = parallel.shard_batch(mesh, {"image": images})
        logits = parallel.gather(model.eval_step(model.variables, batch["image"]))
        return model.classes.probabilities(logits)

    own = figures["val"]["operating_point"]["threshold"]
    return Scorer(
        name=f"the {which}",
        image_size=model.description["image_size"],
        crop=model.description["crop"],
        threshold=float(own if threshold is None else threshold),
        classes=model.classes.names,
        melanoma=model.classes.melanoma,
        score=score,
    )


def _scorer_of_file(path: str, crop: str | None, threshold: float | None) -> Scorer:
    from mela_jax import tflite

    content = tflite.read_model_file(path)
    try:
        metadata = tflite.read_metadata(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    model = tflite.PhoneModel(content, source=path)
    # Files from before there were several classes do not mention them.
    classes: tuple[str, ...] = ("melanoma",)
    melanoma = 0
    if metadata is None:
        if threshold is None or crop is None:
            lacking = "--crop=center or --crop=pad"
            if threshold is None:
                lacking = "--threshold=T (and --crop=center or pad)"
            raise UserError(
                f"{path}: holds no metadata of mela_jax, so neither its operating "
                f"point nor its crop is known; give {lacking}, or export the model "
                "again"
            )
    else:
        own = metadata["input"]["crop"]
        if crop not in (None, own):
            raise UserError(
                f"--crop={crop}: {path} was trained with crop {own}; leave --crop out"
            )
        crop = own
        classes = tuple(metadata.get("classes", classes))
        melanoma = metadata.get("melanoma", melanoma)
        if model.num_classes != len(classes):
            raise UserError(
                f"{path}: answers {model.num_classes} classes, and its metadata name "
                f"{', '.join(classes)}; export the model again"
            )
        if threshold is None:
            threshold = metadata["operating_point"]["threshold"]

    def score(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        logits, probability, by_class = model.score(images)
        if metadata is None:
            return probability[:, None]
        return tflite.to_class_probabilities(
            logits, by_class, melanoma=melanoma, calibration=metadata["calibration"]
        )

    return Scorer(
        name=os.path.basename(path),
        image_size=model.image_size,
        crop=crop,
        threshold=float(threshold),
        classes=classes,
        melanoma=melanoma,
        score=score,
    )
