"""How settings and figures are put into words in the report of a study."""

from collections.abc import Iterable, Mapping
from typing import Any

from mela_jax.report import words

FIGURE_NAMES = {
    "roc_auc": "ROC-AUC",
    "pr_auc": "PR-AUC",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "ppv": "PPV",
    "npv": "NPV",
    "specificity_at_target": "Specificity at the target sensitivity",
}


def short_name(field: str) -> str:
    """Return a config field as it is shown: the student's without their prefix."""
    return field.removeprefix("student.")


def value_text(value: Any) -> str:
    """Return a level as it is shown.

    >>> [value_text(v) for v in (True, 0.001, 2.0, "focal")]
    ['yes', '0.001', '2', 'focal']
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def in_force(setting: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a setting that do something, beside its other fields.

    Without distillation nothing hangs on the teacher; only the focal loss has a gamma.

    >>> in_force({"distill.enabled": False, "distill.alpha": 0.5})
    {'distill.enabled': False}
    >>> in_force({"student.loss": "cross_entropy", "student.focal_gamma": 2.0})
    {'student.loss': 'cross_entropy'}
    """
    idle = set()
    if setting.get("distill.enabled") is False:
        idle = {k for k in setting if k.startswith(("distill.", "teacher."))}
        idle.remove("distill.enabled")
    for stage in ("teacher", "student"):
        if setting.get(f"{stage}.loss", "focal") != "focal":
            idle |= {f"{stage}.focal_gamma", f"{stage}.focal_alpha"}
    return {field: value for field, value in setting.items() if field not in idle}


def setting_text(
    setting: Mapping[str, Any], reference: Mapping[str, Any] | None = None
) -> str:
    """Return in one line what does something in a setting, or what a reference lacks.

    >>> setting_text({"student.loss": "focal", "distill.alpha": 0.5})
    'loss focal, distill.alpha 0.5'
    >>> setting_text({"student.pool": "max"}, {"student.pool": "avg"})
    'pool max'
    """
    known = in_force(reference or {}).items()
    shown = [pair for pair in in_force(setting).items() if pair not in known]
    texts = [f"{short_name(field)} {value_text(value)}" for field, value in shown]
    return ", ".join(texts) or "nothing that has an effect"


def setting_cells(setting: Mapping[str, Any], fields: Iterable[str]) -> list[str]:
    """Return a setting as cells of a table, a dash where a field does nothing."""
    shown = in_force(setting)
    return [value_text(shown[f]) if f in shown else "\N{EN DASH}" for f in fields]


def figure_cells(figures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return figures with intervals: areas as numbers, rates in percent."""
    return [
        "undefined"
        if figure["value"] is None
        else (words.number if name.endswith("auc") else words.rate)(figure)
        for name, figure in figures.items()
    ]


def difference_text(figure: Mapping[str, Any], name: str = "rate") -> str:
    """Return a difference with its interval: of areas as it is, of rates in points."""
    digits, scale = (3, 1) if name == "roc_auc" else (1, 100)
    difference, low, high = (
        words.signed(scale * figure[part], digits)
        for part in ("difference", "low", "high")
    )
    # No line ends within the interval.
    return f"{difference} ({low}\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}{high})"
