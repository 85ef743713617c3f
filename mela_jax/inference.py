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
      threshold: P(melanoma) from which an image is flagged, chosen on validation.
    """

    image_size: int
    crop: str
    threshold: float
    _labels: LabelSpace
    _eval_step: Any
    _variables: Any
    _mesh: Any

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the K classes it tells apart."""
        return self._labels.names

    @property
    def melanoma(self) -> int:
        """Index of the class that is melanoma."""
        return self._labels.melanoma

    def score(self, images: np.ndarray) -> np.ndarray:
        """Return P(melanoma) float64[B] of uint8[B, S, S, 3] RGB images."""
        return self.score_classes(images)[:, self.melanoma]

    def score_classes(self, images: np.ndarray) -> np.ndarray:
        """Return P(class) float64[B, K] of uint8[B, S, S, 3] RGB images."""
        batch = parallel.shard_batch(self._mesh, {"image": images})
        logits = parallel.gather(self._eval_step(self._variables, batch["image"]))
        return self._labels.probabilities(logits)


def load_scorer(workdir: str | Path, which: str) -> Scorer:
    """Return the scorer of a finished run.

    Args:
      workdir: folder of the run.
      which: name of one of its models, such as "student" or "teacher_2".

    Raises:
      UserError: when the run is not finished, or has no such model.
    """
    workdir = Path(workdir)
    metrics_path = workdir / "report" / "metrics.json"
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
    # A teacher of another run is in the report and has no folder here.
    here = [name for name in models if read_description(workdir / name) is not None]
    if which not in here:
        raise UserError(
            f"{workdir}: there is no {which} here; there are: {', '.join(here)}"
        )
    mesh = parallel.make_mesh()
    model = load_model(workdir / which, mesh)
    return Scorer(
        image_size=model.description["image_size"],
        crop=model.description["crop"],
        threshold=float(models[which]["val"]["operating_point"]["threshold"]),
        _labels=model.classes,
        _eval_step=model.eval_step,
        _variables=jax.block_until_ready(model.variables),
        _mesh=mesh,
    )
