"""Scores in the CSV formats of the ISIC challenges.

- 2018 and 2019: ``image,MEL,NV,BCC,...``, a confidence in [0, 1] for each diagnosis
  (see `classes`);
- 2020: ``image_name,target``, P(melanoma);
- 2017: ``image_id,melanoma,seborrheic_keratosis``;
- 2016: two columns without a header, image and P(malignant).

Ground truth has the same form with 0 and 1, in 2016 with benign and malignant.
"""

import csv
import dataclasses
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mela_jax.atomic import write_atomically
from mela_jax.errors import UserError
from mela_jax.evaluation.classes import (
    MELANOMA,
    ClassScores,
    class_scores,
    find_melanoma,
    read_table,
    true_classes,
)
from mela_jax.evaluation.scores import (
    DETAILS,
    REQUIRED,
    Predictions,
    read_predictions,
)

# First column -> the column that is melanoma.
_MELANOMA = {"image": "MEL", "image_name": "target", "image_id": "melanoma"}
_WORDS = {"benign": 0.0, "malignant": 1.0}
_HELP = (
    f"give {','.join(REQUIRED)}, or an ISIC file: image,MEL,NV,... or "
    "image_name,target or image_id,melanoma,... or two columns without a header"
)


def read_scores(
    path: str | os.PathLike[str],
    truth: str | os.PathLike[str] | None = None,
    *,
    melanoma_only: bool = False,
) -> Predictions:
    """Read scores of this project's form, of ISIC's, or of every diagnosis.

    Args:
        path: the scores.
        truth: ground truth of the same images; None where `path` has it.
        melanoma_only: leave out the scores of other diagnoses than melanoma.

    Raises:
        UserError: a file is absent or of no known form, a value is out of range, or
            images have scores and no truth, or the reverse.
    """
    found = _read_class_scores(path, truth, melanoma_only=melanoma_only)
    if found is not None:
        return found
    if truth is None:
        own = read_predictions(path)
        return dataclasses.replace(own, classes=None) if melanoma_only else own
    scores, labels = read_isic(path), read_isic(truth)
    _refuse_other_images(path, truth, set(scores), set(labels))
    for image_id, label in labels.items():
        if label not in (0.0, 1.0):
            raise UserError(f"{truth}: {image_id} has the label {label}, not 0 or 1")
    return Predictions(
        image_id=list(scores),
        lesion_id=list(scores),
        label=np.asarray([int(labels[image_id]) for image_id in scores]),
        score=np.asarray(list(scores.values())),
    )


def _read_class_scores(
    path: str | os.PathLike[str],
    truth: str | os.PathLike[str] | None,
    *,
    melanoma_only: bool,
) -> Predictions | None:
    """Read scores of every diagnosis; None where the files hold no such thing."""
    table = read_table(path)
    if table is None or not table.holds_classes:
        return None
    answers = table if truth is None else read_table(truth)
    if truth is None and table.truth_column is None:
        raise UserError(
            f"{path}: scores of {', '.join(table.classes)}, and no column dx or label "
            "that names each image's class; add one, or give the ground truth"
        )
    if answers is None or (
        answers.truth_column is None and (melanoma_only or not answers.holds_classes)
    ):
        return None
    if truth is not None:
        _refuse_other_images(path, truth, set(table.rows), set(answers.rows))
    if not table.rows:
        raise UserError(f"{path}: no rows below the header")
    names = table.classes
    melanoma = find_melanoma(names)
    image_ids = list(table.rows)
    of_image = dict(zip(answers.rows, true_classes(answers, names), strict=True))
    classes = [of_image[image_id] for image_id in image_ids]
    details = {"dx": [name.lower() for name in classes]}
    lesions = image_ids
    for source in (table, answers):
        held = [source.rows[image_id] for image_id in image_ids]
        for name in set(DETAILS) & set(source.columns) - {"dx"}:
            details[name] = [row[name] for row in held]
        if "lesion_id" in source.columns:
            lesions = [row["lesion_id"] for row in held]
    kept = (names[melanoma],) if melanoma_only else names
    scores = class_scores(table, kept)
    truths = np.asarray([names.index(name) for name in classes])
    try:
        return Predictions(
            image_ids,
            lesions,
            (truths == melanoma).astype(np.int64),
            scores[:, kept.index(names[melanoma])],
            details,
            None if melanoma_only else ClassScores(names, truths, scores),
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _refuse_other_images(
    path: str | os.PathLike[str],
    truth: str | os.PathLike[str],
    scored: set[str],
    labelled: set[str],
) -> None:
    """Refuse scores and ground truth that do not name the same images."""
    if scored != labelled:
        raise UserError(
            f"{path} and {truth} do not name the same images: "
            f"{len(scored - labelled)} have a score only, "
            f"{len(labelled - scored)} a label only ({min(scored ^ labelled)}); score "
            "all images of the ground truth and no others"
        )


def read_isic(path: str | os.PathLike[str]) -> dict[str, float]:
    """Read an ISIC CSV of scores or of ground truth.

    Returns:
        image -> P(melanoma), or 1 and 0, in the order of the file.

    Raises:
        UserError: the file is absent or of no known form, an image is named twice, or
            a value is not in [0, 1].
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        rows = [row for row in csv.reader(text.splitlines()) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a CSV ({error})") from error
    if not rows:
        raise UserError(f"{path}: is empty; {_HELP}")
    header = [name.strip() for name in rows[0]]
    column = 1
    first = 1
    if header[0] in _MELANOMA:
        wanted = _MELANOMA[header[0]]
        if wanted not in header:
            wanted = next((c for c in header if c.lower() in MELANOMA), wanted)
        if wanted not in header:
            raise UserError(f"{path}: no column {wanted}; {_HELP}")
        column = header.index(wanted)
    elif len(header) == 2 and header[0].startswith("ISIC_"):
        first = 0
    else:
        raise UserError(f"{path}: the header {','.join(header)} is unknown; {_HELP}")
    found: dict[str, float] = {}
    for number, row in enumerate(rows[first:], start=first + 1):
        where = f"{path}: row {number}"
        if len(row) <= column or not row[0].strip():
            raise UserError(f"{where}: too short, or without a name")
        image_id = row[0].strip()
        if image_id in found:
            raise UserError(f"{where}: {image_id} occurs twice; keep one of the two")
        text = row[column].strip()
        try:
            value = _WORDS[text] if text in _WORDS else float(text)
        except ValueError:
            value = float("nan")
        if not 0 <= value <= 1:
            raise UserError(f"{where}: {text!r} is not a number from 0 to 1")
        found[image_id] = value
    if not found:
        raise UserError(f"{path}: no rows below the header")
    return found


def write_isic(
    path: str | os.PathLike[str],
    image_ids: Sequence[str],
    scores: Mapping[str, Sequence[float]],
) -> None:
    """Write an ISIC CSV of scores.

    Args:
        path: the file; replaced where it exists.
        image_ids: N names.
        scores: {"target": N scores} for the form of 2020; diagnoses in the order
            wanted, {"MEL": ..., "NV": ..., ...}, for that of 2018 and 2019.

    Raises:
        UserError: lengths differ, a name occurs twice, a value is not in [0, 1], there
            is neither "target" nor "MEL", or the file cannot be written.
    """
    if "target" not in scores and "MEL" not in scores:
        raise UserError("an ISIC file needs scores of target, or of MEL and the others")
    if len(set(image_ids)) != len(image_ids):
        raise UserError("an image is named twice; score every image once")
    for name, values in scores.items():
        if len(values) != len(image_ids):
            raise UserError(f"{len(values)} scores of {name}, {len(image_ids)} images")
        if not all(0 <= value <= 1 for value in values):
            raise UserError(f"a score of {name} is not a number from 0 to 1")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    first = "image_name" if "target" in scores else "image"
    writer.writerow([first, *scores])
    columns = [[repr(float(value)) for value in values] for values in scores.values()]
    writer.writerows(zip(image_ids, *columns, strict=True))
    write_atomically(path, text.getvalue().encode("utf-8"))
