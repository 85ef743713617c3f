"""A finished workdir, opened for export: the model, its scores and its images."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from mela_jax import images as run_images
from mela_jax import parallel, run_record
from mela_jax.config import default
from mela_jax.data.splits import read_splits
from mela_jax.errors import UserError
from mela_jax.evaluation.calibration import SLOPES, Calibration, read_calibration
from mela_jax.evaluation.classes import ClassScores
from mela_jax.evaluation.scores import Predictions, read_predictions
from mela_jax.inference import read_figures
from mela_jax.labels import LabelSpace
from mela_jax.models.head import Classifier
from mela_jax.saved_models import load_model, network_of
from mela_jax.state import Variables
from mela_jax.tflite import to_class_probabilities


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """One model of a finished run, and the images that it is judged by.

    Attributes:
      name: of the model's folder, such as "student".
      config: the run's configuration.
      record: config.json: configuration, data, provenance.
      description: the model's model.json.
      network: computing in float32, as phone files do, whatever it was trained in.
      variables: its variables, on the host.
      threshold: the run's operating point of the float model, on sigmoid(logit).
      calibration: from the model's calibration.json, or "none".
      calibration_means: the same in words, or why there is none.
      reported: by split, "val" and "test", the scores that the run's report was made
        from, in the order of the split's rows.
      images: those of the data set, decoded, with the rows of each split.
    """

    name: str
    config: ConfigDict
    record: dict[str, Any]
    description: dict[str, Any]
    network: Classifier
    variables: Variables
    threshold: float
    calibration: Calibration
    calibration_means: str
    reported: dict[str, Predictions]
    images: run_images.Images

    @property
    def classes(self) -> LabelSpace:
        """What the model tells apart."""
        return self.images.classes

    def pixels(self, split: str) -> np.ndarray:
        """Return the images of a split, uint8[n, S, S, 3], read from the disk."""
        return self.images.evaluation[self.images.rows[split]]

    def predictions(
        self, split: str, logits: np.ndarray, probabilities: np.ndarray
    ) -> Predictions:
        """Return answers for "val" or "test", calibrated, with ids and labels.

        Args:
          split: "val" or "test".
          logits: float64[n], log-odds of melanoma.
          probabilities: float64[n, K], P(class); that of melanoma is not used.
        """
        classes, labels = self.classes, self.images.labels[self.images.rows[split]]
        calibrated = to_class_probabilities(
            logits,
            probabilities,
            melanoma=classes.melanoma,
            calibration=dataclasses.asdict(self.calibration),
        )
        return dataclasses.replace(
            self.reported[split],
            score=calibrated[:, classes.melanoma],
            # Subgroups are for the run's own report.
            details={},
            classes=None
            if classes.is_binary
            else ClassScores(classes.names, labels, calibrated, classes.melanoma),
        )


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
    figures = read_figures(workdir, name, flag="--model")
    path = workdir / "config.json"
    try:
        record = json.loads(path.read_text())
        recorded, _, _ = (record[key] for key in ("config", "data", "provenance"))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{path}: is missing or damaged ({error}); take the whole workdir of a "
            "finished run"
        ) from error
    # Fields younger than the run have their default, which changes nothing of old runs.
    config = default()
    with config.unlocked():
        config.update(recorded)
    config.data.update(download=False, on_bad_image="error", train_size=0)
    if data_dir is not None:
        config.data.dir = data_dir
    model = load_model(workdir / name, parallel.make_mesh())
    description = model.description
    calibration, calibration_means = _read_calibration(workdir / name, figures)
    images, image_ids = _load_images(config, workdir, record)
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
    reported = {}
    for split in ("val", "test"):
        path = workdir / "predictions" / f"{name}_{split}.csv"
        rows = images.rows[split]
        reported[split] = found = read_predictions(path)
        if found.image_id != [image_ids[row] for row in rows] or not np.array_equal(
            found.label, images.melanoma[rows]
        ):
            raise UserError(
                f"{path}: holds other images than splits.csv; take the whole workdir "
                "of a finished run"
            )
    return FinishedRun(
        name=name,
        config=config,
        record=record,
        description=description,
        network=network_of(description, dtype="float32"),
        variables=jax.device_get(model.variables),
        threshold=float(figures["val"]["operating_point"]["threshold"]),
        calibration=calibration,
        calibration_means=calibration_means,
        reported=reported,
        images=images,
    )


def _read_calibration(
    folder: Path, figures: Mapping[str, Any]
) -> tuple[Calibration, str]:
    """Return what the run fitted, as far as a file can carry it, and words for it."""
    path = folder / "calibration.json"
    threshold = figures["val"]["operating_point"]["threshold"]
    # A calibration.json that is there all the same is from an earlier attempt.
    if figures.get("uncalibrated"):
        why = figures["uncalibrated"]
    elif not path.exists():
        why = "the run has no calibration"
    else:
        fitted = read_calibration(path)
        if fitted.threshold != threshold:
            raise UserError(
                f"{path}: was fitted beside the threshold {fitted.threshold:.6g}, and "
                f"the report has {threshold:.6g}; repeat the command of mela_jax.main "
                "that made the run"
            )
        if fitted.method == "none":
            why = "the run chose no calibration"
        # As the run itself would judge today.
        elif not SLOPES[0] <= fitted.a <= SLOPES[1]:
            why = (
                f"the run's {fitted.method} calibration has a slope of {fitted.a:.4g}, "
                "which says nothing of the model"
            )
        else:
            return fitted, (
                f"{fitted.method}, fitted to the float model's logits on validation; "
                "right for its share of melanomas and for no other"
            )
    none = Calibration("none", 1.0, 0.0, threshold, threshold)
    return none, f"not calibrated: {why}"


def _load_images(
    config: ConfigDict, workdir: Path, record: Mapping[str, Any]
) -> tuple[run_images.Images, list[str]]:
    """Return the run's images in the splits of its splits.csv, and their ids."""
    table = read_splits(workdir / "splits.csv")
    # Images that could not be read when the run was made are not in its table.
    records = [r for r in run_images.find_records(config) if r.image_id in table]
    found = run_record.data_fingerprint(records)
    if len(records) != len(table) or found != record["data"]["fingerprint"]:
        raise UserError(
            f"--data_dir={config.data.dir}: these are not the images that {workdir} "
            f"was trained on ({len(records)} of its {len(table)} are here, fingerprint "
            f"{found[:12]} instead of {record['data']['fingerprint'][:12]}); give "
            "their folder with --data_dir"
        )
    splits = {image_id: split for image_id, (_, split) in table.items()}
    caches = run_images.decode(config, records)
    images = run_images.make_images(config, records, caches, splits)
    return images, [r.image_id for r in records]
