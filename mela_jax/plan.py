"""What a run is to do, and with what: its stages, and what all of them share."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from mela_jax.data.records import Record
from mela_jax.data.views import AugmentSettings, Views
from mela_jax.images import Images
from mela_jax.parallel import Mesh


@dataclasses.dataclass(frozen=True)
class Context:
    """What all stages of a run share; the images are those of the records, decoded."""

    config: ConfigDict
    workdir: Path
    records: Sequence[Record]
    images: Images
    mesh: Mesh


@dataclasses.dataclass(frozen=True)
class Stage:
    """One model of a run.

    Attributes:
      name: of its folder: "teacher", "teacher_2", "student", "baseline".
      field: of the configuration, "teacher" or "student".
      settings: that field: architecture, head, loss, and how long and fast it learns.
      seed: source of its weights, order, views and dropout.
      views: which views of the images it learns from.
      learns_from: names of the stages that teach it; none for labels alone.
      qat_epochs: how many of its last epochs see the rounding of an int8 file.
      given: a finished model that is used as it is, and not trained; "" for none.
    """

    name: str
    field: str
    settings: ConfigDict
    seed: int
    views: Views
    learns_from: tuple[str, ...] = ()
    qat_epochs: int = 0
    given: str = ""


def make_plan(config: ConfigDict) -> list[Stage]:
    """Return the stages of a run; each learns from earlier ones alone."""
    views = Views(
        AugmentSettings(**config.augment.to_dict()), on_device=config.augment_on_device
    )
    teachers = []
    if config.distill.enabled:
        given = (config.teacher.checkpoint, *config.distill.extra_teachers)
        names = ["teacher", *(f"teacher_{n}" for n in range(2, len(given) + 1))]
        teachers = [
            Stage(name, "teacher", config.teacher, config.seed, views, given=path)
            for name, path in zip(names, given, strict=True)
        ]
    student = Stage(
        "student",
        "student",
        config.student,
        # A random stream of its own, apart from the teacher's.
        config.seed + 1000,
        dataclasses.replace(
            views,
            per_image=config.student.views_per_image,
            recurring=count_views(config),
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
