"""From the scores of a model on validation and test to every figure of the report."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score, roc_auc_score

from mela_jax.errors import UserError
from mela_jax.evaluation.bootstrap import (
    Resampled,
    bootstrap,
    percentile_interval,
    specificity_at,
)
from mela_jax.evaluation.calibration import (
    Calibration,
    calibrate,
    calibration_figures,
    fit_calibration,
)
from mela_jax.evaluation.intervals import FloatArray, auc_interval
from mela_jax.evaluation.multiclass import add_classes, class_figures
from mela_jax.evaluation.operating_point import (
    POLICIES,
    choose_threshold,
    confusion,
    guarantee_threshold,
)
from mela_jax.evaluation.rates import (
    RATES,
    Rates,
    at_prevalence,
    net_benefit_at,
    net_benefit_columns,
)
from mela_jax.evaluation.scores import Predictions, check_binary, require_both_classes
from mela_jax.evaluation.subgroups import (
    add_groups,
    false_alarms_by_diagnosis,
    group_figures,
    list_images,
)

CALIBRATIONS = ("platt", "temperature", "none")
# Sensitivities at which specificity is tabled, and from which the area is taken.
SENSITIVITIES = (0.80, 0.85, 0.90, 0.95, 0.98)
PARTIAL_FROM = 0.80
# Where the band around the ROC curve is drawn.
BAND = tuple(float(s) for s in np.linspace(0.02, 1.0, 50).round(2))
# Threshold probabilities of the decision curve: from "examine a hundred to find one"
# up to "only where it is as likely as not".
DECISION_THRESHOLDS = tuple(float(t) for t in np.arange(1, 51) / 100)


@dataclass(frozen=True)
class Settings:
    """How a model is judged.

    Attributes:
        target: wanted sensitivity, in (0, 1].
        policy: "empirical" or "guaranteed", see `operating_point`.
        delta: probability with which the guarantee may be broken, in (0, 1).
        prevalences: shares of melanomas in (0, 1) for PPV, NPV and counts of people;
            the data's own is added.
        calibration: "platt", "temperature" or "none".
        num_bootstrap: replicates of the lesion-clustered bootstrap, >= 1.
        seed: of the bootstrap.

    Raises:
        UserError: a value is out of range.
    """

    target: float = 0.95
    policy: str = "empirical"
    delta: float = 0.1
    prevalences: tuple[float, ...] = (0.01, 0.02, 0.05, 0.11)
    calibration: str = "platt"
    num_bootstrap: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every value."""
        for name, choice, choices in (
            ("threshold policy", self.policy, POLICIES),
            ("calibration", self.calibration, CALIBRATIONS),
        ):
            if choice not in choices:
                raise UserError(f"{name} {choice!r} is none of {', '.join(choices)}")
        shares = [("delta", self.delta), *(("prevalence", p) for p in self.prevalences)]
        for name, value in shares:
            if not 0 < value < 1:
                raise UserError(f"{name} {value} is not above 0 and below 1")
        if not 0 < self.target <= 1:
            raise UserError(f"target sensitivity {self.target} is not in (0, 1]")
        if self.num_bootstrap < 1:
            raise UserError(f"num_bootstrap {self.num_bootstrap} is not 1 or more")


def selection_metrics(
    labels: npt.ArrayLike, scores: npt.ArrayLike, *, target: float
) -> dict[str, float]:
    """Return the validation figures by which the best checkpoint is chosen.

    Labels [N] are 0 and 1, both present, and scores [N] lie in [0, 1].

    Returns:
        "roc_auc"; "pr_auc" (average precision); "specificity_at_target", at the highest
        threshold whose sensitivity on these same data reaches the target in (0, 1].

    Raises:
        UserError: one class only, or unfit labels, scores or target.
    """
    label, score = check_binary(labels, scores)
    require_both_classes(label, "validation")
    counts = confusion(label, score, choose_threshold(label, score, target=target))
    return {
        "roc_auc": float(roc_auc_score(label, score)),
        "pr_auc": float(average_precision_score(label, score)),
        "specificity_at_target": counts.tn / (counts.tn + counts.fp),
    }


def evaluate_model(
    val: Predictions, test: Predictions, settings: Settings
) -> dict[str, Any]:
    """Choose the threshold on validation, freeze it, and measure both splits with it.

    Returns:
        What metrics.json holds of a model, see `docs/evaluation.md`. "thresholds" and
        "guarantee" are None where validation has too few melanomas, "calibration" is
        None where "uncalibrated" says why. Every rate is {value, low, high} with a 95 %
        interval, its value None where it is undefined (nobody flagged: PPV).

    Raises:
        UserError: a split with one class only, an image or a lesion in both splits, or
            a guarantee that is asked for and cannot be given.
    """
    require_both_classes(val.label, "val")
    require_both_classes(test.label, "test")
    refuse_shared(val, test)
    target, delta = settings.target, settings.delta
    guarantee, by_image = (
        guarantee_threshold(val.label, val.score, lesions, target=target, delta=delta)
        if target < 1
        else None
        for lesions in (val.lesion_id, None)
    )
    thresholds = {
        "empirical": choose_threshold(val.label, val.score, target=target),
        "guaranteed": guarantee.threshold if guarantee else None,
    }
    if settings.policy == "guaranteed":
        if guarantee is None:
            raise UserError(
                "a target sensitivity of 100 % cannot be guaranteed; lower the target"
            )
        guarantee.required_threshold()
    given = {policy: at for policy, at in thresholds.items() if at is not None}
    method, threshold = settings.calibration, given[settings.policy]
    fitted = fit_calibration(val.label, val.score, method=method, threshold=threshold)
    calibration = fitted if isinstance(fitted, Calibration) else None
    return {
        "val": _measure(val, settings, given, calibration, whole=False),
        "test": _measure(test, settings, given, calibration, whole=True),
        "policy": settings.policy,
        "thresholds": thresholds,
        "guarantee": asdict(guarantee) if guarantee else None,
        "guarantee_if_images_were_independent": asdict(by_image) if by_image else None,
        "calibration": asdict(calibration) if calibration else None,
        "uncalibrated": fitted if isinstance(fitted, str) else None,
    }


def refuse_shared(val: Predictions, test: Predictions) -> None:
    """Refuse a test set that shares an image or a lesion with validation.

    Raises:
        UserError: it does.
    """
    for what in ("image", "lesion"):
        shared = set(getattr(val, f"{what}_id")) & set(getattr(test, f"{what}_id"))
        if shared:
            raise UserError(
                f"val and test share {len(shared)} {what}(s), for example "
                f"{min(shared)}; split by lesion so that they share none"
            )


def _measure(
    split: Predictions,
    settings: Settings,
    thresholds: Mapping[str, float],
    calibration: Calibration | None,
    *,
    whole: bool,
) -> dict[str, Any]:
    """Return the figures of one split, and `whole` those that only a test set gets.

    Thresholds, by their policy, and calibration come from validation.
    """
    melanoma = split.label == 1
    rates = Rates(split)
    for policy, threshold in thresholds.items():
        rates.add_decision(policy, split.score >= threshold, melanoma)
    flagged = split.score >= thresholds[settings.policy]
    groups = add_groups(split, flagged, rates) if whole else {}
    if whole and split.classes:
        add_classes(split.classes, rates)
    calibrated = calibrate(calibration, split.score) if calibration else None
    probabilities = {"score": split.score, "calibrated": calibrated}
    columns = dict(rates.columns)
    for name, each in probabilities.items():
        if each is not None:
            columns[f"squared error of {name}"] = np.square(each - split.label)
    if whole and calibrated is not None:
        columns |= net_benefit_columns(split.label, calibrated, DECISION_THRESHOLDS)
    drawn = bootstrap(
        split,
        num_bootstrap=settings.num_bootstrap,
        seed=settings.seed,
        columns=columns,
        sensitivities=(*SENSITIVITIES, *BAND),
        partial_from=PARTIAL_FROM,
    )
    others, melanomas = (
        len(np.unique(np.asarray(split.lesion_id)[split.label == value]))
        for value in (0, 1)
    )

    def area(name: str, most: float = 1.0) -> dict[str, Any]:
        """Return an area; of a class with one lesion nothing is known."""
        value = drawn.observed[name]
        if min(others, melanomas) < 2:
            return {"value": value, "low": 0.0, "high": most}
        return {**percentile_interval(value, drawn.replicates[name])}

    points = {}
    for policy, threshold in thresholds.items():
        counts = confusion(split.label, split.score, threshold)
        points[policy] = {
            "target_sensitivity": settings.target,
            "threshold": threshold,
            "chosen_on": "val",
            **rates.by_image(policy),
            "confusion": asdict(counts),
            "flags_everyone": counts.flags_everyone,
            "by_lesion": rates.by_lesion(policy, drawn),
        }
    figures: dict[str, Any] = {
        "n": int(split.label.size),
        "positives": int(split.label.sum()),
        "lesions": split.num_lesions,
        "positive_lesions": melanomas,
        "negative_lesions": others,
        "roc_auc": area("roc_auc"),
        "pr_auc": area("pr_auc"),
        "replicates": drawn.num_replicates,
        "roc_auc_delong": auc_interval(split.label, split.score),
        "roc_auc_by_lesion": auc_interval(split.label, split.score, split.lesion_id),
        "operating_point": points[settings.policy],
        "operating_points": points,
        "calibration": {
            name: None if each is None else _calibration(split, name, each, drawn)
            for name, each in probabilities.items()
        },
    }
    if not whole:
        return figures
    return figures | {
        "partial_auc": {
            "above_sensitivity": PARTIAL_FROM,
            **area("partial_auc", most=1 - PARTIAL_FROM),
        },
        **{
            name: [
                {"sensitivity": s, "specificity": area(specificity_at(s))}
                for s in sensitivities
            ]
            for name, sensitivities in (
                ("specificity_at_sensitivity", SENSITIVITIES),
                ("roc_band", BAND),
            )
        },
        "prevalence": _prevalences(split, settings, rates, drawn),
        "decision_curve": None if calibrated is None else _decision_curve(split, drawn),
        "subgroups": [
            group_figures(split, by, name, held, rates, drawn)
            for (by, name), held in groups.items()
        ],
        "false_alarms_by_dx": false_alarms_by_diagnosis(split, flagged),
        "multiclass": class_figures(split, rates, drawn) if split.classes else None,
        "missed": list_images(split, melanoma & ~flagged, highest_first=False),
        "false_alarms": list_images(split, ~melanoma & flagged, highest_first=True),
    }


def _prevalences(
    split: Predictions, settings: Settings, rates: Rates, drawn: Resampled
) -> list[dict[str, Any]]:
    names = [f"{settings.policy} {rate}" for rate in RATES[:2]]
    se, sp = (rates.interval(name, drawn) for name in names)
    replicates = None
    if all(rates.varies(name) for name in names):
        replicates = [rates.replicates(name, drawn) for name in names]
    own = float(split.label.mean())
    return [
        {**at_prevalence(p, se, sp, replicates), "own": p == own}
        for p in sorted({*settings.prevalences, own})
    ]


def _calibration(
    split: Predictions, name: str, probabilities: FloatArray, drawn: Resampled
) -> dict[str, Any]:
    """Return the calibration figures, with the Brier score's interval."""
    low, high = _mean_limits(f"squared error of {name}", drawn)
    limits = {"brier_low": low, "brier_high": high}
    return calibration_figures(split, probabilities) | limits


def _decision_curve(split: Predictions, drawn: Resampled) -> dict[str, list[Any]]:
    prevalence, n = float(split.label.mean()), split.label.size
    at = list(DECISION_THRESHOLDS)
    limits = [_mean_limits(net_benefit_at(t), drawn) for t in at]
    return {
        "threshold": at,
        "net_benefit": [drawn.observed[net_benefit_at(t)] / n for t in at],
        "low": [low for low, _ in limits],
        "high": [high for _, high in limits],
        "treat_all": [prevalence - (1 - prevalence) * t / (1 - t) for t in at],
    }


def _mean_limits(column: str, drawn: Resampled) -> tuple[float, float]:
    """Return the central 95 % of a column's mean over images.

    The images of a replicate vary in number with the lesions drawn.
    """
    means = drawn.replicates[column] / drawn.replicates["images"]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
