"""From the scores of a model on validation and test to every figure of the report."""

from collections.abc import Mapping, Sequence
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
)
from mela_jax.evaluation.calibration import (
    Calibration,
    calibrate,
    calibration_figures,
    fit_calibration,
)
from mela_jax.evaluation.intervals import FloatArray, auc_interval, wilson
from mela_jax.evaluation.multiclass import ask_classes, class_figures
from mela_jax.evaluation.operating_point import (
    POLICIES,
    Confusion,
    Guarantee,
    choose_threshold,
    confusion,
    guarantee_threshold,
)
from mela_jax.evaluation.rates import (
    BoolArray,
    Rates,
    at_prevalence,
    decision_curve_columns,
)
from mela_jax.evaluation.scores import Predictions, check_binary, require_both_classes
from mela_jax.evaluation.subgroups import (
    ask_groups,
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
        for name, value in (
            ("delta", self.delta),
            *(("prevalence", p) for p in self.prevalences),
        ):
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

    Args:
        labels: [N] of 0 and 1, both present.
        scores: [N] in [0, 1].
        target: wanted sensitivity, in (0, 1].

    Returns:
        "roc_auc"; "pr_auc" (average precision); "specificity_at_target": specificity
        at the highest threshold whose sensitivity on these same data reaches the
        target.

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

    Args:
        val: scores on validation.
        test: scores on the test set.
        settings: how to judge.

    Returns:
        "val" and "test": figures of the split, see `docs/evaluation.md` for each;
        "policy"; "thresholds": policy -> threshold, None where the guarantee takes more
        melanomas than validation has; "guarantee", by lesion, and what it would be by
        image; "calibration": the fitted map, or None, and then "uncalibrated": why.
        Every rate is {value, low, high} with a 95 % interval, its value None where it
        is undefined (nobody flagged: PPV).

    Raises:
        UserError: a split with one class only, an image or a lesion in both splits, or
            a guarantee that is asked for and cannot be given.
    """
    require_both_classes(val.label, "val")
    require_both_classes(test.label, "test")
    refuse_shared(val, test)
    guarantee, by_image = (
        guarantee_threshold(
            val.label,
            val.score,
            lesions,
            target=settings.target,
            delta=settings.delta,
        )
        if settings.target < 1
        else None
        for lesions in (val.lesion_id, None)
    )
    thresholds = {
        "empirical": choose_threshold(val.label, val.score, target=settings.target),
        "guaranteed": guarantee.threshold if guarantee else None,
    }
    threshold = thresholds[settings.policy]
    if threshold is None:
        raise UserError(_cannot_guarantee(guarantee))
    fitted = fit_calibration(
        val.label, val.score, method=settings.calibration, threshold=threshold
    )
    calibration = fitted if isinstance(fitted, Calibration) else None
    measured = {
        name: _measure(
            split, settings, threshold, thresholds, calibration, whole=name == "test"
        )
        for name, split in (("val", val), ("test", test))
    }
    return {
        **measured,
        "policy": settings.policy,
        "thresholds": thresholds,
        "guarantee": asdict(guarantee) if guarantee else None,
        "guarantee_if_images_were_independent": asdict(by_image) if by_image else None,
        "calibration": asdict(calibration) if calibration else None,
        "uncalibrated": None if isinstance(fitted, Calibration) else fitted.reason,
    }


def refuse_shared(val: Predictions, test: Predictions) -> None:
    """Refuse a test set that shares an image or a lesion with validation.

    Raises:
        UserError: it does.
    """
    for what, shared in (
        ("image", set(val.image_id) & set(test.image_id)),
        ("lesion", set(val.lesion_id) & set(test.lesion_id)),
    ):
        if shared:
            raise UserError(
                f"val and test share {len(shared)} {what}(s), for example "
                f"{min(shared)}; split by lesion so that they share none"
            )


def _cannot_guarantee(guarantee: Guarantee | None) -> str:
    if guarantee is None:
        return "a target sensitivity of 100 % cannot be guaranteed; lower the target"
    return (
        f"validation has {guarantee.units} melanoma lesions, too few to guarantee "
        f"{100 * guarantee.target:g} % sensitivity at {100 * (1 - guarantee.delta):g} %"
        f" confidence: {guarantee.units_needed} are needed, "
        f"{guarantee.units_needed - guarantee.units} more; what these could guarantee "
        f"is {100 * guarantee.most:.1f} %. Add melanomas, lower the target, or take the"
        " empirical policy"
    )


def _measure(
    split: Predictions,
    settings: Settings,
    threshold: float,
    thresholds: Mapping[str, float | None],
    calibration: Calibration | None,
    *,
    whole: bool,
) -> dict[str, Any]:
    """Return the figures of one split at thresholds that are already chosen."""
    melanoma = split.label == 1
    rates = Rates(split)
    points = {
        policy: _ask_point(rates, melanoma, split.score >= at)
        for policy, at in thresholds.items()
        if at is not None
    }
    flagged = split.score >= threshold
    groups = ask_groups(split, flagged, rates) if whole else []
    classes = ask_classes(split.classes, rates) if whole and split.classes else None
    calibrated = calibrate(calibration, split.score) if calibration else None
    probabilities = {"score": split.score, "calibrated": calibrated}
    columns = [rates.columns]
    for each in probabilities.values():
        if each is not None:
            columns += [np.square(each - split.label)[:, None]]
    briers = rates.columns.shape[1]
    curve = sum(part.shape[1] for part in columns)
    if whole and calibrated is not None:
        columns += [
            decision_curve_columns(split.label, calibrated, DECISION_THRESHOLDS)
        ]
    drawn = bootstrap(
        split.label,
        split.lesion_id,
        split.score,
        num_bootstrap=settings.num_bootstrap,
        seed=settings.seed,
        columns=np.concatenate(columns, axis=1),
        sensitivities=(*SENSITIVITIES, *BAND),
        partial_from=PARTIAL_FROM,
    )
    described = {
        policy: _describe_point(
            split, settings, points[policy], rates, drawn, thresholds[policy]
        )
        for policy in points
    }
    lesions = [
        len(np.unique(np.asarray(split.lesion_id)[split.label == value]))
        for value in (0, 1)
    ]
    known = min(lesions) > 1
    figures: dict[str, Any] = {
        "n": int(split.label.size),
        "positives": int(split.label.sum()),
        "lesions": split.num_lesions,
        "positive_lesions": lesions[1],
        "negative_lesions": lesions[0],
        "roc_auc": _area(drawn, "roc_auc", known=known),
        "pr_auc": _area(drawn, "pr_auc", known=known),
        "replicates": drawn.num_replicates,
        "roc_auc_delong": auc_interval(split.label, split.score),
        "roc_auc_by_lesion": auc_interval(split.label, split.score, split.lesion_id),
        "operating_point": described[settings.policy],
        "operating_points": described,
        "calibration": {
            name: None
            if each is None
            else _calibration(split, each, drawn, briers + column)
            for column, (name, each) in enumerate(probabilities.items())
        },
    }
    if not whole:
        return figures
    return figures | {
        "partial_auc": {
            "above_sensitivity": PARTIAL_FROM,
            **_area(drawn, "partial_auc", known=known, most=1 - PARTIAL_FROM),
        },
        "specificity_at_sensitivity": _specificities(
            drawn, 0, SENSITIVITIES, known=known
        ),
        "roc_band": _specificities(drawn, len(SENSITIVITIES), BAND, known=known),
        "prevalence": _prevalences(
            split, settings, points[settings.policy], rates, drawn
        ),
        "decision_curve": None
        if calibrated is None
        else _decision_curve(split, drawn, curve),
        "subgroups": [group_figures(split, group, rates, drawn) for group in groups],
        "false_alarms_by_dx": false_alarms_by_diagnosis(split, flagged),
        "multiclass": class_figures(split, classes, rates, drawn) if classes else None,
        "missed": list_images(split, melanoma & ~flagged, highest_first=False),
        "false_alarms": list_images(split, ~melanoma & flagged, highest_first=True),
    }


@dataclass(frozen=True)
class _Point:
    """The rates of one operating point, by their number."""

    sensitivity: int
    specificity: int
    ppv: int
    npv: int


def _ask_point(rates: Rates, melanoma: BoolArray, flagged: BoolArray) -> _Point:
    return _Point(
        sensitivity=rates.ask(flagged, among=melanoma),
        specificity=rates.ask(~flagged, among=~melanoma),
        ppv=rates.ask(melanoma, among=flagged),
        npv=rates.ask(~melanoma, among=~flagged),
    )


def _describe_point(
    split: Predictions,
    settings: Settings,
    point: _Point,
    rates: Rates,
    drawn: Resampled,
    threshold: float | None,
) -> dict[str, Any]:
    assert threshold is not None, "only points that exist are described"
    counts: Confusion = confusion(split.label, split.score, threshold)
    numbers = asdict(point)
    return {
        "target_sensitivity": settings.target,
        "threshold": threshold,
        "chosen_on": "val",
        **{name: wilson(*rates.count(rate)) for name, rate in numbers.items()},
        "confusion": asdict(counts),
        "flags_everyone": counts.flags_everyone,
        "by_lesion": {
            name: rates.interval(rate, drawn) for name, rate in numbers.items()
        },
    }


def _area(drawn: Resampled, name: str, *, known: bool, most: float = 1.0) -> Any:
    """Return an area with its interval; of one lesion of a class nothing is known."""
    observed = float(getattr(drawn.observed, name)[0])
    if not known:
        return {"value": observed, "low": 0.0, "high": most}
    return percentile_interval(observed, getattr(drawn.replicates, name))


def _specificities(
    drawn: Resampled, start: int, sensitivities: Sequence[float], *, known: bool
) -> list[dict[str, Any]]:
    observed = drawn.observed.specificity_at[0, start:]
    replicates = drawn.replicates.specificity_at[:, start:]
    return [
        {
            "sensitivity": wanted,
            "specificity": percentile_interval(float(observed[i]), replicates[:, i])
            if known
            else {"value": float(observed[i]), "low": 0.0, "high": 1.0},
        }
        for i, wanted in enumerate(sensitivities)
    ]


def _prevalences(
    split: Predictions,
    settings: Settings,
    point: _Point,
    rates: Rates,
    drawn: Resampled,
) -> list[dict[str, Any]]:
    se = rates.interval(point.sensitivity, drawn)
    sp = rates.interval(point.specificity, drawn)
    replicates: tuple[FloatArray, FloatArray] | None = (
        rates.replicates(point.sensitivity, drawn),
        rates.replicates(point.specificity, drawn),
    )
    if not (rates.varies(point.sensitivity) and rates.varies(point.specificity)):
        replicates = None
    own = float(split.label.mean())
    return [
        {**at_prevalence(p, se, sp, replicates), "own": p == own}
        for p in sorted({*settings.prevalences, own})
    ]


def _calibration(
    split: Predictions, probabilities: FloatArray, drawn: Resampled, column: int
) -> dict[str, Any]:
    """Return the calibration figures, with the Brier score's interval."""
    low, high = np.quantile(
        drawn.replicates.sums[:, column] / _sizes(drawn), [0.025, 0.975]
    )
    return calibration_figures(split, probabilities) | {
        "brier_low": float(low),
        "brier_high": float(high),
    }


def _sizes(drawn: Resampled) -> FloatArray:
    """Return the images in each replicate, which vary with the lesions drawn.

    The first two rates asked for are sensitivity and specificity, whose denominators
    make up the replicate.
    """
    return drawn.replicates.sums[:, 1] + drawn.replicates.sums[:, 3]


def _decision_curve(
    split: Predictions, drawn: Resampled, start: int
) -> dict[str, list[Any]]:
    prevalence = float(split.label.mean())
    observed = drawn.observed.sums[0, start:] / split.label.size
    spread = drawn.replicates.sums[:, start:] / _sizes(drawn)[:, None]
    low, high = np.quantile(spread, [0.025, 0.975], axis=0)
    return {
        "threshold": list(DECISION_THRESHOLDS),
        "net_benefit": observed.tolist(),
        "low": low.tolist(),
        "high": high.tolist(),
        "treat_all": [
            prevalence - (1 - prevalence) * t / (1 - t) for t in DECISION_THRESHOLDS
        ],
    }
