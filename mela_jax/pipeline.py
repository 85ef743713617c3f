"""The story: images, splits, teachers, student, operating point, report.

Every stage leaves its result in the workdir and is skipped when that is there.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mela_jax import parallel, results, run_record, stages
from mela_jax.config import validate
from mela_jax.data.records import Record
from mela_jax.errors import UserError
from mela_jax.evaluation.operating_point import lesions_needed
from mela_jax.images import Images, load_images
from mela_jax.train import History


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
        check_guarantee(config, records, images)
        models = stages.obtain_all(
            stages.plan(config),
            config,
            workdir,
            records,
            images,
            mesh,
            on_epoch=on_epoch,
        )
        predictions = {
            name: results.predict_splits(
                config, workdir, name, model, records, images, mesh
            )
            for name, model in models.items()
        }
        parallel.wait_for_all("predictions")
        return results.report(config, workdir, models, predictions, records)


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
        first = stages.plan(config)[:1]
        stages.obtain_all(first, config, workdir, records, images, parallel.make_mesh())


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
