"""What the report of a search says, from its results."""

from collections.abc import Mapping
from typing import Any

from mela_jax.evaluation.cross_validation import RATES
from mela_jax.report import words
from mela_jax.report.page import Plot
from mela_jax.report.plots import png_bytes
from mela_jax.report.study_plots import draw_tuning
from mela_jax.report.study_sections import (
    FIGURE_NAMES,
    Section,
    Table,
    View,
    columns_of,
    cost_cells,
    coverage_bullets,
    figure_text,
    list_text,
    plot_prefix,
    runs_section,
    setting_cells,
    setting_text,
    view_of,
)


def describe_tuning(results: Mapping[str, Any]) -> View:
    """Return the report of a search.

    Args:
        results: what results.json holds.
    """
    return view_of(results, lead=_lead(results), sections=_sections(results))


def _lead(results: Mapping[str, Any]) -> list[str]:
    tried = [row for row in results["tried"] if row["complete"]]
    lead = [
        f"{len(results['tried'])} settings tried, {len(tried)} to the end; the best "
        f"is chosen by {_selection(results)} on validation."
    ]
    chosen = results["chosen"]
    if chosen is None:
        return [*lead, "No setting is complete yet, so none is chosen."]
    return [
        *lead,
        f"Chosen: number {chosen['number']}, {setting_text(chosen['setting'])}.",
    ]


def _selection(results: Mapping[str, Any]) -> str:
    name = FIGURE_NAMES[results["select_by"]]
    return name if name[1].isupper() else name[0].lower() + name[1:]


def _sections(results: Mapping[str, Any]) -> list[Section | None]:
    return [
        _chosen_section(results),
        _tried_section(results),
        _tuned_section(results),
        runs_section(results),
        Section(
            "cover",
            "What the intervals cover",
            bullets=coverage_bullets(
                len(results["chosen"]["seeds"]) if results["chosen"] else 1,
                len(results["chosen"]["folds"]) if results["chosen"] else 1,
            ),
        ),
    ]


def _chosen_section(results: Mapping[str, Any]) -> Section | None:
    chosen = results["chosen"]
    if chosen is None:
        return None
    figures = chosen["figures"]
    val = next(r for r in results["tried"] if r["number"] == chosen["number"])["val"]
    count = sum(row["complete"] for row in results["tried"])
    boxes = [
        f"The best of {count} on validation is partly the luckiest of {count} on "
        "validation, so its validation figure flatters. Test lesions chose nothing, so "
        "its test figures do not, as long as nobody goes on tuning after having read "
        "them. Test figures of the other settings are not shown for that reason."
    ]
    if chosen["flags_everyone"]:
        boxes.append(
            "The chosen setting flags every image: its threshold is worthless."
        )
    return Section(
        "chosen",
        "The chosen setting",
        boxes=boxes,
        tables=[
            Table(
                ["Figure", "validation (flatters)", "test"],
                [
                    [
                        "ROC-AUC",
                        f"{val['roc_auc']:.3f}",
                        figure_text("roc_auc", figures["roc_auc"]),
                    ],
                    [
                        "PR-AUC",
                        f"{val['pr_auc']:.3f}",
                        figure_text("pr_auc", figures["pr_auc"]),
                    ],
                    *(
                        [
                            FIGURE_NAMES[name],
                            words.percent(val["specificity_at_target"])
                            if name == "specificity"
                            else "",
                            figure_text(name, figures[name]),
                        ]
                        for name in RATES
                    ),
                    *(
                        [name, "", cell]
                        for name, cell in zip(
                            ("Parameters", "FLOPs", "Training"),
                            cost_cells(chosen),
                            strict=True,
                        )
                    ),
                ],
            )
        ],
        after=[
            "Rates on test are at the threshold that was to keep "
            f"{words.target(results['target_sensitivity'])} sensitivity, chosen on "
            "validation and frozen."
        ],
    )


def _tried_section(results: Mapping[str, Any]) -> Section:
    names = columns_of(results["tried"])
    best = results["chosen"]["number"] if results["chosen"] else None
    ranked = sorted(
        results["tried"],
        key=lambda row: -row["val"][results["select_by"]] if row["val"] else 1.0,
    )
    rows = []
    for row in ranked:
        val = row["val"]
        rows.append(
            [
                f"{row['number']}{' (chosen)' if row['number'] == best else ''}",
                *setting_cells(row["setting"], names),
                f"{val['roc_auc']:.3f}" if val else "",
                f"{val['pr_auc']:.3f}" if val else "",
                words.percent(val["specificity_at_target"]) if val else "",
                row["state"],
                list_text(row["trials"]),
            ]
        )
    return Section(
        "tried",
        "All that was tried, by validation",
        tables=[
            Table(
                [
                    "Setting",
                    *names.values(),
                    "ROC-AUC",
                    "PR-AUC",
                    "Specificity at the target",
                    "State",
                    "Trials",
                ],
                rows,
            )
        ],
        after=[
            "On validation, best first; mean over runs. Pruned trials were stopped "
            "early because they lagged behind.",
            "Fields without a prefix are the student's: loss is student.loss.",
        ],
    )


def _tuned_section(results: Mapping[str, Any]) -> Section | None:
    shown = [row for row in results["tried"] if row["complete"]]
    if len(shown) < 2:
        return None
    chosen = [row["number"] for row in shown].index(results["chosen"]["number"])
    plots = {}
    for axis in columns_of(shown):
        values = [row["setting"].get(axis, "") for row in shown]
        if len(set(map(str, values))) < 2:
            continue
        title = f"{plot_prefix(results)}{axis}"
        figure = draw_tuning(
            axis,
            values,
            [row["val"][results["select_by"]] for row in shown],
            chosen,
            label=FIGURE_NAMES[results["select_by"]],
            title=title,
        )
        plots[f"tuned_{axis.replace('.', '_')}"] = Plot(
            title,
            "Every complete setting. The other fields differ from point to point, so a "
            "trend here is a hint, not a finding.",
            png_bytes(figure),
        )
    if not plots:
        return None
    return Section("tuned", "What was tuned", plots=plots)
