"""Score images with a model of a finished workdir."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mela_jax import parallel
from mela_jax.checkpoint import read_description
from mela_jax.errors import UserError
from mela_jax.labels import LabelSpace
from mela_jax.saved_models import load_model


@dataclasses.dataclass(frozen=True)
class Scorer:
    """A model ready to score, with its operating point.

    Attributes:
      image_size: side of the square it sees, in pixels.
      crop: how a picture becomes a square, "center" or "pad".
      classes: what it tells apart.
      threshold: P(melanoma) from which an image is flagged, chosen on validation.
    """

    image_size: int
    crop: str
    classes: LabelSpace
    threshold: float
    _eval_step: Any
    _variables: Any
    _mesh: Any

    def score(self, images: np.ndarray) -> np.ndarray:
        """Return P(melanoma) float64[B] of uint8[B, S, S, 3] RGB images."""
        batch = parallel.shard_batch(self._mesh, {"image": images})
        logits = parallel.gather(self._eval_step(self._variables, batch["image"]))
        return self.classes.probabilities(logits)[:, self.classes.melanoma]


def load_scorer(workdir: str | Path, which: str) -> Scorer:
    """Return the scorer of a finished run.

    Args:
      workdir: folder of the run.
      which: "student", "teacher" or "baseline".

    Raises:
      UserError: when the run is not finished, or has no such model.
    """
    workdir = Path(workdir)
    folder, metrics_path = workdir / which, workdir / "report" / "metrics.json"
    if not metrics_path.exists():
        raise UserError(
            f"{workdir}: the run is not finished (no report/metrics.json); repeat the"
            " command of mela_jax.main that made it"
        )
    try:
        models = json.loads(metrics_path.read_text())["models"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{metrics_path}: is damaged; delete it and repeat the command of"
            " mela_jax.main that made it"
        ) from error
    if which not in models or read_description(folder) is None:
        raise UserError(
            f"{workdir}: there is no {which} here; there are: {', '.join(models)}"
        )
    mesh = parallel.make_mesh()
    model = load_model(folder, mesh)
    return Scorer(
        image_size=model.description["image_size"],
        crop=model.description["crop"],
        classes=model.classes,
        threshold=float(models[which]["val"]["operating_point"]["threshold"]),
        _eval_step=model.eval_step,
        _variables=jax.block_until_ready(model.variables),
        _mesh=mesh,
    )
