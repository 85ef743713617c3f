"""What the models of a run do: their scores, and the report made of these."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mela_jax import parallel
from mela_jax.data.records import Record
from mela_jax.data.splits import read_splits
from mela_jax.evaluation.calibration import Calibration, write_calibration
from mela_jax.evaluation.classes import ClassScores
from mela_jax.evaluation.measure import Settings, evaluate_model
from mela_jax.evaluation.scores import (
    DETAILS,
    Predictions,
    read_predictions,
    write_predictions,
)
from mela_jax.images import Images
from mela_jax.plan import Context, count_views
from mela_jax.report.main_report import write_report
from mela_jax.saved_models import Model
from mela_jax.train import score

# What the model card says of the data, where the data set is known.
ABOUT_DATA = {
    "ham10000": {
        "data": "HAM10000 (Tschandl et al. 2018, doi:10.1038/sdata.2018.161):"
        " dermoscopy images of pigmented lesions from the Medical University of Vienna"
        " and a skin cancer practice in Queensland, collected over 20 years.",
        "eligibility": "Pigmented lesions of seven kinds; other diagnoses, and"
        " non-pigmented lesions, were left out by its authors.",
        "sampling": "Retrospective collection, chosen by diagnosis: melanoma is far"
        " more frequent than among people who are examined.",
        "acquisition": "Several dermatoscopes, in part digitised slides; its authors"
        " cropped the images so that the lesion lies in the centre, and corrected the"
        " colours of some.",
        "representativeness": "Not like the moles of everybody: melanoma is 11 % of the"
        " images, and half of the lesions were suspect enough to be cut out.",
        "reference_standard": "Histopathology for every melanoma and about half of all"
        " lesions; follow-up, expert consensus or confocal microscopy for the others:"
        " see the rows by how the diagnosis was made.",
        "skin_types": "Not recorded; the centres serve mostly light skin. Nothing is"
        " known of dark skin.",
        "ethics": "The authors of HAM10000 state approval by the ethics boards of both"
        " universities; published under CC BY-NC-SA 4.0, de-identified.",
    },
    "phantom": {"data": "Made-up lesions, drawn by a program. No skin at all."},
}


def predict_splits(context: Context, name: str, model: Model) -> dict[str, Predictions]:
    """Score validation and test into predictions/, and read the scores back."""
    found = {}
    for split in ("val", "test"):
        path = context.workdir / "predictions" / f"{name}_{split}.csv"
        if not path.exists():
            logits = score(model.eval_step, model.variables, context, split)
            if parallel.is_main_process():
                probabilities = context.images.classes.probabilities(logits)
                predictions = to_predictions(
                    probabilities, split, context.records, context.images
                )
                write_predictions(path, predictions)
            parallel.wait_for_all(f"{name} {split} scored")
        found[split] = read_predictions(path)
    return found


def to_predictions(
    probabilities: np.ndarray,
    split: str,
    records: Sequence[Record],
    images: Images,
) -> Predictions:
    """Return P(class) float64[n, K] of a split's images with their names and labels.

    The probabilities must have been made in float64: in float32 every log-odds above
    17 would tie at exactly 1.
    """
    rows, classes = images.rows[split], images.classes
    members = [records[row] for row in rows]
    of_classes = None
    if not classes.is_binary:
        of_classes = ClassScores(
            classes.names, images.labels[rows], probabilities, classes.melanoma
        )
    return Predictions(
        image_id=[r.image_id for r in members],
        lesion_id=[r.lesion_id for r in members],
        label=images.melanoma[rows].astype(int),
        score=probabilities[:, classes.melanoma],
        details={name: [getattr(r, name) for r in members] for name in DETAILS},
        classes=of_classes,
    )


def evaluation_settings(config: ConfigDict) -> Settings:
    """Return how the configuration wants a model judged."""
    return Settings(
        target=config.target_sensitivity,
        policy=config.evaluation.threshold_policy,
        delta=config.evaluation.guarantee_delta,
        prevalences=tuple(config.evaluation.prevalences),
        calibration=config.evaluation.calibration,
        num_bootstrap=config.num_bootstrap,
        seed=config.seed,
    )


def report(
    context: Context,
    models: Mapping[str, Model],
    predictions: Mapping[str, Mapping[str, Predictions]],
) -> dict[str, Any]:
    """Choose operating points on validation, measure them on test, write it down."""
    config, workdir = context.config, context.workdir
    if not parallel.is_main_process():
        parallel.wait_for_all("report")
        return json.loads((workdir / "report" / "metrics.json").read_text())
    settings = evaluation_settings(config)
    told = {name: model.description for name, model in models.items()}
    measured = {
        name: {
            "name": model["model"],
            "params": model["params"],
            "flops": model["flops"],
            **evaluate_model(**predictions[name], settings=settings),
        }
        for name, model in told.items()
    }
    for name, figures in measured.items():
        # A teacher of another run keeps what that run fitted.
        if figures["calibration"] and (workdir / name).is_dir():
            write_calibration(
                workdir / name / "calibration.json",
                Calibration(**figures["calibration"]),
                about={
                    "fitted_on": "val",
                    "images": figures["val"]["n"],
                    "melanomas": figures["val"]["positives"],
                    "threshold_policy": settings.policy,
                },
            )
    metrics = write_report(
        workdir / "report",
        models=measured,
        predictions=predictions,
        histories={name: model["history"] for name, model in told.items()},
        settings=settings,
        made_up=config.data.name == "phantom",
        about=ABOUT_DATA.get(config.data.name, {}) | _about_run(context, told),
        images={r.image_id: r.path for r in context.records},
        run=_describe_run(context, told),
    )
    parallel.wait_for_all("report")
    return metrics


def _describe_run(
    context: Context, models: Mapping[str, Mapping[str, Any]]
) -> dict[str, str]:
    """Return the report's table of what was run; `models` are their model.json."""
    config, classes = context.config, context.images.classes
    distill = config.distill
    weights = ", ".join(f"{kind} {w:g}" for kind, w in distill.weights.items() if w)
    soft = f"alpha {distill.alpha}, temperature {distill.temperature}"
    return {
        "data": f"{config.data.name}, {config.data.dir}",
        "image size": f"{config.image_size} px, crop {config.crop}",
        "classes": "melanoma against the rest"
        if classes.is_binary
        else ", ".join(classes.names),
        "distillation": f"{soft}, weights: {weights}" if distill.enabled else "none",
        "views of an image": f"{count_views(config) or 'one for every epoch'}",
        "seed": f"{config.seed} (split {config.data.split_seed})",
        "devices": ", ".join(parallel.describe_devices()),
        **{
            f"{name}: checkpoint": f"step {m['best_step']}"
            for name, m in models.items()
        },
        **{
            f"{name}: training time": f"{m['seconds']:.0f} s"
            for name, m in models.items()
        },
    }


def _about_run(
    context: Context, models: Mapping[str, Mapping[str, Any]]
) -> dict[str, str]:
    """Return what the run knows for the model card, by key of `checklist.ABOUT`."""
    student, init = models["student"], context.config.student.init
    origin = f"from {init if init in ('random', 'imagenet') else 'given'} weights"
    if "teacher" in models:
        origin += f", distilled from {models['teacher']['model']}"
    members = read_splits(context.workdir / "splits.csv").values()
    lesions = [lesion for lesion, split in members if split == "train"]
    return {
        "intended_use": "Research and engineering. Not for the care of anybody.",
        "model": f"{student['model']}, {student['image_size']} px, {origin}.",
        "training_data": f"{len(lesions)} images of {len(set(lesions))} lesions of the"
        " same data set; validation and test share no lesion_id with them.",
        "external_data": "None. Test lesions are of the same data set as those of"
        " training; other clinics and cameras were not tried.",
        "availability": "Weights and scores lie in the folder of the run. The code is"
        " mela_jax, Apache-2.0.",
    }


def summary(metrics: dict[str, Any], workdir: Path) -> str:
    """Return the result table for the terminal, and where the report is."""
    titles = ("ROC-AUC", "sensitivity", "specificity")
    head = f"{'':10}{'parameters':>12}" + "".join(f"{t:>22}" for t in titles)
    lines = ["", "Test set, threshold chosen on validation (95 % intervals)", head]
    for name, model in metrics["models"].items():
        test = model["test"]
        cells = (
            test["roc_auc"],
            test["operating_point"]["sensitivity"],
            test["operating_point"]["specificity"],
        )
        shown = "".join(
            f"{c['value']:.3f} ({c['low']:.3f}-{c['high']:.3f})".rjust(22)
            for c in cells
        )
        lines.append(f"{name:10}{model['params']:12,}{shown}")
    if metrics["made_up_data"]:
        lines.append("MADE-UP LESIONS: these numbers say nothing about real skin.")
    lines += [
        "This is not a diagnosis.",
        f"Report: {workdir / 'report' / 'report.html'}",
    ]
    return "\n".join(lines)
