"""The story: images, splits, teachers, student, operating point, report.

Every stage leaves its result in the workdir and is skipped when that is there.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mela_jax import parallel, results, run_record, stages
from mela_jax.config import validate
from mela_jax.errors import UserError
from mela_jax.evaluation.operating_point import lesions_needed
from mela_jax.images import load_images
from mela_jax.plan import Context, make_plan
from mela_jax.train import History


def run(
    config: ConfigDict,
    workdir: Path,
    *,
    on_epoch: Callable[[History], None] | None = None,
) -> dict[str, Any]:
    """Run the whole job, or what is left of it, and return report/metrics.json.

    The workdir is made when absent; `on_epoch` is for `train.fit` of the student.

    Raises:
      UserError: for anything that its user can mend.
    """
    with _opened(config, workdir) as context:
        check_guarantee(context)
        models = stages.obtain_all(make_plan(config), context, on_epoch=on_epoch)
        predictions = {
            name: results.predict_splits(context, name, model)
            for name, model in models.items()
        }
        parallel.wait_for_all("predictions")
        return results.report(context, models, predictions)


def run_teacher(config: ConfigDict, workdir: Path) -> None:
    """Train the teacher of a run and nothing else, for `config.teacher.checkpoint`.

    Raises:
      UserError: for anything that its user can mend.
    """
    with _opened(config, workdir) as context:
        stages.obtain_all(make_plan(config)[:1], context)


@contextlib.contextmanager
def _opened(config: ConfigDict, workdir: Path) -> Iterator[Context]:
    """Hold the workdir of a valid configuration, with its images."""
    validate(config)
    workdir = workdir.absolute()
    with run_record.exclusive(workdir):
        records, images = load_images(config, workdir)
        yield Context(config, workdir, records, images, parallel.make_mesh())


def check_guarantee(context: Context) -> None:
    """Refuse, before any training, a guarantee that validation is too small for."""
    config = context.config
    if config.evaluation.threshold_policy != "guaranteed":
        return
    members = [context.records[row] for row in context.images.rows["val"]]
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
