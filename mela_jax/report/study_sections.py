"""The parts of a study's report, and the words that all of them share."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mela_jax.report import words
from mela_jax.report.page import Plot, make_environment

FIGURE_NAMES = {
    "roc_auc": "ROC-AUC",
    "pr_auc": "PR-AUC",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "ppv": "PPV",
    "npv": "NPV",
    "specificity_at_target": "Specificity at the target sensitivity",
}
MINUTE = 60.0


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        head: of the columns.
        rows: of cells, as many as the head has.
        title: above it; empty: none.
        is_text: every column is text, and not only the first.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    is_text: bool = False


@dataclass(frozen=True)
class Section:
    """A section of the report; its parts are shown in the order of the attributes.

    Attributes:
        key: of the link to it.
        title: heading.
        boxes: texts that must not be missed.
        before: paragraphs before the tables.
        bullets: items of a list.
        tables: tables.
        after: small print.
        plots: name of the file, without suffix -> plot.
    """

    key: str
    title: str
    boxes: Sequence[str] = ()
    before: Sequence[str] = ()
    bullets: Sequence[str] = ()
    tables: Sequence[Table] = ()
    after: Sequence[str] = ()
    plots: Mapping[str, Plot] = field(default_factory=dict)


@dataclass(frozen=True)
class View:
    """The whole report.

    Attributes:
        title: of the page.
        warnings: what a reader must know first.
        lead: what was found, in a few sentences.
        sections: in order.
    """

    title: str
    warnings: Sequence[str]
    lead: Sequence[str]
    sections: Sequence[Section]

    @property
    def plots(self) -> dict[str, Plot]:
        """All plots by the name of their file."""
        return {n: plot for part in self.sections for n, plot in part.plots.items()}


def render(view: View, suffix: str) -> str:
    """Return the report as a text.

    Args:
        view: what it shows.
        suffix: "html" (one file, plots inside) or "md" (plots in files beside it).
    """
    environment = make_environment()
    environment.filters["cell"] = lambda text: text.replace("|", "\\|")
    text = environment.get_template(f"study.{suffix}.j2").render(
        title=view.title, warnings=view.warnings, lead=view.lead, sections=view.sections
    )
    # Plain text is searched and compared: nothing invisible in it.
    return text if suffix == "html" else text.replace("\N{WORD JOINER}", "")


def view_of(
    results: Mapping[str, Any],
    *,
    lead: Sequence[str],
    sections: Sequence[Section | None],
) -> View:
    """Return a report with its title and warnings; None is no section.

    Args:
        results: what results.json holds.
        lead: what was found, in a few sentences.
        sections: in order.
    """
    return View(
        title=f"Study: {results['name']}",
        warnings=_warnings(results),
        lead=lead,
        sections=[part for part in sections if part is not None],
    )


def _warnings(results: Mapping[str, Any]) -> list[str]:
    """Return what must be known before any figure."""
    found = []
    if results["made_up_data"]:
        found.append(
            "MADE-UP LESIONS. Every figure here is about drawings made by a program. "
            "It shows that the software runs. It says nothing about skin."
        )
    counts, planned = results["counts"], results["planned"]
    if not results["finished"]:
        found.append(
            f"UNFINISHED STUDY: {counts['complete']} of {planned} runs are complete, "
            f"{counts['running']} running, {counts['waiting']} waiting. Figures and "
            "verdicts may change."
        )
    if counts["failed"]:
        found.append(
            f"{counts['failed']} of {planned} runs failed; they are listed under "
            "“Runs”. What is missing may not be missing by chance."
        )
    return found


def runs_section(results: Mapping[str, Any]) -> Section:
    """Return how many runs are in which state, and why some failed."""
    counts = results["counts"]
    tables = [
        Table(
            [*counts, "planned"],
            [[*map(str, counts.values()), str(results["planned"])]],
        )
    ]
    if results["failed"]:
        tables.append(
            Table(
                ["Trial", "Setting", "Seed", "Fold", "Error"],
                [
                    [
                        str(trial["trial"]),
                        setting_text(trial["setting"]),
                        str(trial["seed"]),
                        fold_text(trial["fold"]),
                        trial["error"] or "no message",
                    ]
                    for trial in results["failed"]
                ],
                title="Trials that failed",
                is_text=True,
            )
        )
    note = "A run is one training: a setting with a seed" + (
        " on a fold. A run that was tried several times counts once, by the trial that "
        "got furthest."
    )
    return Section("runs", "Runs", tables=tables, after=[note])


def short_names(axes: Sequence[str]) -> dict[str, str]:
    """Return the name under which each config field is shown; the student's are bare.

    >>> short_names(["student.loss", "distill.alpha", "teacher.loss"]).values()
    dict_values(['loss', 'distill.alpha', 'teacher.loss'])
    """
    return {axis: axis.removeprefix("student.") for axis in axes}


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the config fields of all settings, with their short names."""
    return short_names(list(dict.fromkeys(k for row in rows for k in row["setting"])))


def value_text(value: Any) -> str:
    """Return a level as it is shown.

    >>> [value_text(v) for v in (True, 0.001, 2.0, "focal", (1, 2))]
    ['yes', '0.001', '2', 'focal', '1, 2']
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(value_text, value))
    return str(value)


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


def setting_text(setting: Mapping[str, Any]) -> str:
    """Return a setting in one line, without what does nothing in it.

    >>> setting_text({"student.loss": "focal", "distill.alpha": 0.5})
    'loss focal, distill.alpha 0.5'
    """
    shown = in_force(setting)
    names = short_names(list(shown))
    return ", ".join(f"{names[k]} {value_text(v)}" for k, v in shown.items())


def change_text(setting: Mapping[str, Any], reference: Mapping[str, Any]) -> str:
    """Return in one line what a setting changes in the reference.

    >>> change_text({"student.pool": "max"}, {"student.pool": "avg"})
    'pool max'
    """
    base = in_force(reference)
    changes = {
        field: value
        for field, value in in_force(setting).items()
        if field not in base or base[field] != value
    }
    return setting_text(changes) or "nothing that has an effect"


def setting_cells(setting: Mapping[str, Any], fields: Iterable[str]) -> list[str]:
    """Return a setting as cells of a table, a dash where a field does nothing.

    Args:
        setting: config field -> value.
        fields: of all settings, in order.
    """
    shown = in_force(setting)
    return [
        value_text(shown[field]) if field in shown else "\N{EN DASH}"
        for field in fields
    ]


def fold_text(fold: int) -> str:
    """Return a fold as it is shown."""
    return "fixed split" if fold < 0 else str(fold)


def list_text(items: Sequence[Any]) -> str:
    """Return "0, 1 and 2"."""
    texts = [str(item) for item in items]
    if len(texts) < 2:
        return "".join(texts)
    return f"{', '.join(texts[:-1])} and {texts[-1]}"


def figure_text(name: str, figure: Mapping[str, Any]) -> str:
    """Return a figure with its interval: areas as numbers, rates in percent."""
    if figure["value"] is None:
        return "undefined"
    return words.number(figure) if name.endswith("auc") else words.rate(figure)


def difference_text(name: str, figure: Mapping[str, Any]) -> str:
    """Return a difference with its interval: areas as numbers, rates in points."""
    digits, scale = (3, 1) if name.endswith("auc") else (1, 100)
    difference, low, high = (
        words.signed(scale * figure[part], digits)
        for part in ("difference", "low", "high")
    )
    # No line ends within the interval.
    interval = f"({low} to {high})".replace(" ", "\N{NO-BREAK SPACE}")
    return f"{difference} {interval}"


def cost_cells(row: Mapping[str, Any]) -> list[str]:
    """Return parameters, FLOPs and training time as cells."""
    sizes = [words.amount(row[k]) if row[k] else "unknown" for k in ("params", "flops")]
    seconds = row["seconds"]
    if seconds is None:
        return [*sizes, "unknown"]
    time = f"{seconds / MINUTE:.1f} min" if seconds >= MINUTE else f"{seconds:.0f} s"
    return [*sizes, time]


def plot_prefix(results: Mapping[str, Any]) -> str:
    """Return what every plot's title must begin with."""
    return "MADE-UP LESIONS: " if results["made_up_data"] else ""


def coverage_bullets(seeds: int, folds: int) -> list[str]:
    """Say what the intervals cover and what they do not.

    Args:
        seeds: of the study.
        folds: of the study; 1 for a fixed split.
    """
    covered = (
        "Intervals hold 95 % and cover which lesions happened to be in validation and "
        "test: in every resampling of lesions the threshold is chosen anew on "
        "validation, so they are wider than those of a run's own report, which take "
        "the threshold as given."
    )
    if seeds < 2:
        luck = (
            "There is one seed, so nothing is known of the luck of training: the "
            "intervals do not cover it, and a verdict is about these trained models, "
            "not about the settings. Another seed may turn it around."
        )
    else:
        luck = (
            f"They also cover the luck of the seed, as far as {seeds} seeds can show "
            "it. Seeds and lesions are both taken as drawn at random, as readers and "
            "cases are in a reader study. So few seeds know their own spread badly, "
            "which the intervals allow for by being wider; a rare bad seed that did "
            "not come up is not in them."
        )
    data = (
        f"The {folds} folds' models share most of their training lesions. The "
        "intervals treat them as given; how much the figures would change with other "
        "training lesions is not in them, and no unbiased estimate of it exists."
        if folds > 1
        else "All runs learn from the same training lesions. How much the figures "
        "would change with others is not in the intervals."
    )
    return [
        covered,
        luck,
        data,
        "They do not cover: other clinics, cameras or people; several lesions of one "
        "patient, where that is not known; the luck of a teacher, where runs share "
        "one.",
    ]
