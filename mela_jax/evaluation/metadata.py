"""What a table knows of images that were scored, joined to their scores."""

import csv
import os
from pathlib import Path

from mela_jax.errors import UserError
from mela_jax.evaluation.scores import DETAILS, Predictions


def join_details(predictions: Predictions, path: str | os.PathLike[str]) -> Predictions:
    """Add what a table knows of the images: their details, and lesion_id if it has it.

    Args:
        predictions: scores.
        path: a CSV with `image_id` and any of `lesion_id` and `DETAILS`; rows of other
            images are passed over.

    Raises:
        UserError: the file cannot be read, names an image twice, or lacks an image.
    """
    try:
        with open(Path(path), encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="")
            columns = list(reader.fieldnames or [])
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a CSV ({error})") from error
    if "image_id" not in columns:
        raise UserError(f"{path}: no column image_id; it says which image a row is of")
    table = {row["image_id"].strip(): row for row in rows}
    if len(table) != len(rows):
        raise UserError(f"{path}: an image_id occurs twice; keep one row for each")
    absent = [name for name in predictions.image_id if name not in table]
    if absent:
        raise UserError(
            f"{path}: {len(absent)} of {len(predictions.image_id)} scored images are "
            f"not in it ({', '.join(absent[:5])})"
        )
    held = [table[name] for name in predictions.image_id]
    lesions = predictions.lesion_id
    if "lesion_id" in columns:
        lesions = [row["lesion_id"].strip() for row in held]
    details = {name: [row[name] for row in held] for name in DETAILS if name in columns}
    return Predictions(
        predictions.image_id,
        lesions,
        predictions.label,
        predictions.score,
        {**predictions.details, **details},
        predictions.classes,
    )
