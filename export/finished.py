"""A finished workdir, opened for export: the model, its scores and its images."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from mela_jax import parallel, run_record, steps
from mela_jax.checkpoint import read_description
from mela_jax.config import default, expand_user
from mela_jax.data.cache import open_cache
from mela_jax.data.records import Record
from mela_jax.data.splits import SPLITS, read_splits
from mela_jax.errors import UserError
from mela_jax.evaluation.calibration import SLOPES, Calibration, read_calibration
from mela_jax.evaluation.classes import ClassScores
from mela_jax.evaluation.scores import Predictions, read_predictions
from mela_jax.images import Images, find_records
from mela_jax.labels import LabelSpace, class_labels, make_label_space
from mela_jax.models.head import Classifier
from mela_jax.saved_models import load_model, network_of
from mela_jax.state import Variables
from mela_jax.tflite import to_class_probabilities
from mela_jax.train import score


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """One model of a finished run, and the images that it is judged by.

    Attributes:
      name: of the model's folder, such as "student".
      config: the run's configuration.
      record: config.json: configuration, data, provenance.
      description: the model's model.json.
      network: flax module, computing in float32 whatever it was trained in: a phone
        file does.
      variables: its variables, on the host.
      figures: the run's own figures of the model, from report/metrics.json.
      calibration: from the model's calibration.json, or "none".
      calibration_means: the same in words, or why there is none.
      reported: by split the scores float64[n] that the run's report was made from.
      records: all images of the data set.
      images: the same, decoded, with the rows of each split.
    """

    name: str
    config: ConfigDict
    record: dict[str, Any]
    description: dict[str, Any]
    network: Classifier
    variables: Variables
    figures: dict[str, Any]
    calibration: Calibration
    calibration_means: str
    reported: dict[str, np.ndarray]
    records: list[Record]
    images: Images

    @property
    def classes(self) -> LabelSpace:
        """What the model tells apart."""
        return self.images.classes

    @property
    def threshold(self) -> float:
        """The run's operating point of the float model, on sigmoid(logit)."""
        return float(self.figures["val"]["operating_point"]["threshold"])

    def flagged(self, split: str) -> np.ndarray:
        """Return the decisions bool[n] that the run's report counted.

        A network that is run again on another machine has other last digits, and the
        lesion at the threshold is where they decide.
        """
        return self.reported[split] >= self.threshold

    def pixels(self, split: str) -> np.ndarray:
        """Return the images of a split, uint8[n, S, S, 3], read from the disk."""
        return self.images.evaluation[self.images.rows[split]]

    def predictions(
        self, split: str, logits: np.ndarray, probabilities: np.ndarray
    ) -> Predictions:
        """Return a model's answers for a split, calibrated, with ids and labels.

        Args:
          split: "train", "val" or "test".
          logits: float64[n], log-odds of melanoma.
          probabilities: float64[n, K], P(class); that of melanoma is not used.
        """
        rows, classes = self.images.rows[split], self.classes
        calibrated = to_class_probabilities(
            logits,
            probabilities,
            melanoma=classes.melanoma,
            calibration=dataclasses.asdict(self.calibration),
        )
        return Predictions(
            image_id=[self.records[row].image_id for row in rows],
            lesion_id=[self.records[row].lesion_id for row in rows],
            label=self.images.melanoma[rows].astype(int),
            score=calibrated[:, classes.melanoma],
            classes=None
            if classes.is_binary
            else ClassScores(
                classes.names, self.images.labels[rows], calibrated, classes.melanoma
            ),
        )

    def float_logits(self, split: str) -> np.ndarray:
        """Return the logits float64[n, K] of the Flax network for a split."""
        mesh = parallel.make_mesh()
        eval_step = parallel.map_eval_step(steps.make_eval_step(self.network), mesh)
        logits = score(
            eval_step,
            parallel.replicate(mesh, self.variables),
            self.images,
            split,
            mesh=mesh,
            batch_size=self.config.eval_batch_size,
        )
        return logits.astype(np.float64)


def open_run(workdir: Path, name: str, *, data_dir: str | None) -> FinishedRun:
    """Open a finished run.

    Args:
      workdir: its folder.
      name: of one of its models, such as "student" or "teacher_2".
      data_dir: where the images are now; None: where they were.

    Raises:
      UserError: the run is not finished, has no such model, is damaged, or the images
        are not those that it was trained on.
    """
    figures = _read_figures(workdir)
    # A teacher of another run is in the report and has no folder here.
    here = [n for n in figures if read_description(workdir / n) is not None]
    if name not in here:
        raise UserError(
            f"--model={name}: {workdir} has none; it has: {', '.join(here)}"
        )
    record = _read_record(workdir)
    config = _config(record)
    if data_dir is not None:
        config.data.dir = data_dir
    model = load_model(workdir / name, parallel.make_mesh())
    description = model.description
    calibration, calibration_means = _read_calibration(workdir / name, figures[name])
    records, images = _load_images(config, workdir, record)
    for field, said, wanted in (
        ("image_size", description["image_size"], config.image_size),
        ("crop", description["crop"], config.crop),
        ("classes", model.classes.names, images.classes.names),
        ("melanoma", model.classes.melanoma, images.classes.melanoma),
    ):
        if said != wanted:
            raise UserError(
                f"{workdir / name}: its model.json says {field} {said}, and "
                f"{workdir / 'config.json'} says {wanted}; the folder was put together "
                "from two runs: take a whole workdir"
            )
    return FinishedRun(
        name=name,
        config=config,
        record=record,
        description=description,
        network=network_of(description, dtype="float32"),
        variables=jax.device_get(model.variables),
        figures=figures[name],
        calibration=calibration,
        calibration_means=calibration_means,
        reported={
            split: _read_scores(
                workdir / "predictions" / f"{name}_{split}.csv",
                [records[row].image_id for row in images.rows[split]],
            )
            for split in ("val", "test")
        },
        records=records,
        images=images,
    )


def _read_figures(workdir: Path) -> dict[str, Any]:
    path = workdir / "report" / "metrics.json"
    if not workdir.is_dir():
        raise UserError(
            f"--workdir: there is no folder {workdir}; give that of a finished "
            "mela_jax.main run"
        )
    if not path.exists():
        raise UserError(
            f"--workdir={workdir}: the run is not finished (no report/metrics.json); "
            "repeat the command of mela_jax.main that made it"
        )
    try:
        return json.loads(path.read_text())["models"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{path}: is damaged; delete it and repeat the command of mela_jax.main "
            "that made it"
        ) from error


def _read_calibration(
    folder: Path, figures: Mapping[str, Any]
) -> tuple[Calibration, str]:
    """Return what the run fitted, as far as a file can carry it, and words for it."""
    path = folder / "calibration.json"
    threshold = figures["val"]["operating_point"]["threshold"]
    none = Calibration("none", 1.0, 0.0, threshold, threshold)
    # A calibration.json that lies there all the same is from before.
    if figures.get("uncalibrated"):
        return none, f"not calibrated: {figures['uncalibrated']}"
    if not path.exists():
        return none, "not calibrated: the run has no calibration"
    calibration = read_calibration(path)
    if calibration.threshold != threshold:
        raise UserError(
            f"{path}: was fitted beside the threshold {calibration.threshold:.6g}, and "
            f"the report has {threshold:.6g}; repeat the command of mela_jax.main that "
            "made the run"
        )
    if calibration.method == "none":
        return none, "not calibrated: the run chose no calibration"
    # As the run itself would judge today.
    if not SLOPES[0] <= calibration.a <= SLOPES[1]:
        return none, (
            f"not calibrated: the run's {calibration.method} calibration has a slope "
            f"of {calibration.a:.4g}, which says nothing of the model"
        )
    return calibration, (
        f"{calibration.method}, fitted to the float model's logits on validation; "
        "right for its share of melanomas and for no other"
    )


def _read_scores(path: Path, image_ids: list[str]) -> np.ndarray:
    """Read the scores of a split, of these images in this order."""
    predictions = read_predictions(path)
    if list(predictions.image_id) != image_ids:
        raise UserError(
            f"{path}: holds other images than splits.csv; take the whole workdir of a "
            "finished run"
        )
    return predictions.score


def _read_record(workdir: Path) -> dict[str, Any]:
    path = workdir / "config.json"
    try:
        record = json.loads(path.read_text())
        for key in ("config", "data", "provenance"):
            record[key]
        return record
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{path}: is missing or damaged ({error}); take the whole workdir of a "
            "finished run"
        ) from error


def _config(record: Mapping[str, Any]) -> ConfigDict:
    """Return the run's configuration; fields younger than the run have their default.

    The defaults are chosen so that a new field changes nothing of an old run.
    """
    config = default()
    with config.unlocked():
        config.update(record["config"])
    return config


def _load_images(
    config: ConfigDict, workdir: Path, record: Mapping[str, Any]
) -> tuple[list[Record], Images]:
    """Find and decode the run's images, in the splits of its splits.csv."""
    data = config.data
    data.download = False
    records = find_records(config)
    table = read_splits(workdir / "splits.csv")
    # Images that could not be read when the run was made are not in its table.
    records = [r for r in records if r.image_id in table]
    found = run_record.data_fingerprint(records)
    if len(records) != len(table) or found != record["data"]["fingerprint"]:
        raise UserError(
            f"--data_dir={data.dir}: these are not the images that {workdir} was "
            f"trained on ({len(records)} of its {len(table)} are here, fingerprint "
            f"{found[:12]} instead of {record['data']['fingerprint'][:12]}); give "
            "their folder with --data_dir"
        )
    cache = open_cache(
        records,
        size=config.image_size,
        crop=config.crop,
        directory=expand_user(data.cache_dir),
        on_bad_image="error",
    )
    rows = {
        split: np.array(
            [i for i, r in enumerate(records) if table[r.image_id][1] == split],
            np.int64,
        )
        for split in SPLITS
    }
    classes = make_label_space(config.labels, records, melanoma=config.melanoma)
    return records, Images(
        train=cache.images,
        evaluation=cache.images,
        labels=class_labels(classes, records),
        rows=rows,
        classes=classes,
    )
