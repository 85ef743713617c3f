"""What the report of a grid says, from its results."""

from collections.abc import Mapping
from statistics import median
from typing import Any

from mela_jax.evaluation.cross_validation import RATES
from mela_jax.evaluation.study_figures import JUDGED, NO_DIFFERENCE
from mela_jax.report import words
from mela_jax.report.page import Plot
from mela_jax.report.plots import png_bytes
from mela_jax.report.study_plots import draw_effect, draw_front
from mela_jax.report.study_sections import (
    FIGURE_NAMES,
    Section,
    Table,
    View,
    change_text,
    columns_of,
    cost_cells,
    coverage_bullets,
    difference_text,
    figure_text,
    list_text,
    plot_prefix,
    runs_section,
    setting_cells,
    setting_text,
    short_names,
    value_text,
    view_of,
)

_COSTS = {
    "params": ("Size", "parameters", "Parameters of the student"),
    "flops": ("Arithmetic", "FLOPs", "FLOPs per image (a multiply-add is two)"),
    "latency": (
        "Latency on the host",
        "latency",
        "Median latency of the float32 file, XNNPACK (ms)",
    ),
}


def describe_grid(results: Mapping[str, Any]) -> View:
    """Return the report of a grid.

    Args:
        results: what results.json holds.
    """
    return view_of(results, lead=_lead(results), sections=_sections(results))


def _lead(results: Mapping[str, Any]) -> list[str]:
    seeds, folds = results["seeds"], results["folds"]
    split = f"{len(folds)} folds" if len(folds) > 1 else "one fixed split"
    lead = [
        f"{len(results['rows'])} setting{'s' * (len(results['rows']) != 1)}, seed"
        f"{'s' * (len(seeds) != 1)} {list_text(seeds)}, {split}."
    ]
    found = results["comparisons"]
    for name in JUDGED if found else ():
        verdicts = [row[name]["verdict"] for row in found]
        better, worse = verdicts.count("better"), verdicts.count("worse")
        primary = " (primary)" if name == JUDGED[0] else ""
        lead.append(
            f"{FIGURE_NAMES[name]}{primary}, against the reference: {better} better, "
            f"{worse} worse, {verdicts.count(NO_DIFFERENCE)} with no difference shown."
        )
    return lead


def _sections(results: Mapping[str, Any]) -> list[Section | None]:
    return [
        _settings_section(results),
        _comparison_section(results) if len(results["rows"]) > 1 else None,
        _effects_section(results),
        _fronts_section(results),
        _pooled_section(results),
        runs_section(results),
        Section(
            "cover",
            "What the intervals cover",
            bullets=coverage_bullets(len(results["seeds"]), len(results["folds"])),
        ),
    ]


def _settings_section(results: Mapping[str, Any]) -> Section:
    rows = results["rows"]
    names = columns_of(rows)
    complete = [row for row in rows if row["figures"] is not None]
    target = words.target(results["target_sensitivity"])
    cells = []
    for row in rows:
        own = setting_cells(row["setting"], names)
        first = f"{row['number']}{' (reference)' if row['number'] == 1 else ''}"
        if row["figures"] is None:
            done = f"{row['runs_complete']} of {row['runs_planned']} runs complete"
            cells.append([first, *own, done, *[""] * 9])
            continue
        cells.append(
            [
                first,
                *own,
                *(figure_text(n, f) for n, f in row["figures"].items()),
                *cost_cells(row),
                list_text(row["seeds"]),
            ]
        )
    folds = len(results["folds"]) > 1
    notes = [
        "Mean over seeds"
        + (" and folds" if folds else "")
        + ", 95 % interval in brackets. Sensitivity and the figures right of it are at "
        f"the threshold that was to keep {target} sensitivity. It was chosen on "
        + ("each fold's own validation set" if folds else "validation")
        + ", by each run for itself, and frozen before test was scored."
        + (
            " Areas are means over folds, rates those of all folds' decisions together:"
            " every lesion is judged by a model and at a threshold that have not seen "
            "it."
            if folds
            else ""
        ),
        "PPV and NPV hold at the prevalence of these data. PR-AUC is average "
        "precision. A specificity is worth no more than the sensitivity beside it. "
        "Training time is that of the student alone, in its last uninterrupted "
        "stretch; machines may differ.",
        "Fields without a prefix are the student's: loss is student.loss. A dash: the "
        "field does nothing in that row.",
    ]
    boxes = [
        f"Row {row['number']} flags every image with at least one seed: its threshold "
        "tells nothing from anything."
        for row in complete
        if row["flags_everyone"]
    ]
    if len(complete) > 2:
        boxes.append(
            "The best row of a table is the best partly by luck. Read the comparisons "
            "below before choosing one."
        )
    return Section(
        "settings",
        "Settings",
        boxes=boxes,
        tables=[
            Table(
                [
                    "Row",
                    *names.values(),
                    *(FIGURE_NAMES[n] for n in ("roc_auc", "pr_auc", *RATES)),
                    "Parameters",
                    "FLOPs",
                    "Training",
                    "Seeds",
                ],
                cells,
            )
        ],
        after=notes,
    )


def _comparison_section(results: Mapping[str, Any]) -> Section:
    found = results["comparisons"]
    settings = {row["number"]: row["setting"] for row in results["rows"]}
    before = [
        f"Reference: row 1, {setting_text(settings[1])}. Each row is named by what it "
        "changes there; the figures are the row's minus the reference's."
    ]
    if not found:
        before.append("Nothing to compare yet: no seed is complete in both.")
        return Section("compare", "Against the reference", before=before)
    rows = []
    for row in found:
        changes = change_text(settings[row["number"]], settings[1])
        cells = [f"{row['number']}: {changes}"]
        for name in JUDGED:
            figure = row[name]
            cells += [
                difference_text(name, figure),
                words.p_value(figure["p_holm"]),
                figure["verdict"],
            ]
        if row["trade"]:
            cells[-1] += ", paid for in sensitivity"
        cells.append(difference_text("sensitivity", row["sensitivity"]))
        rows.append(cells)
    widths = {
        name: median((row[name]["high"] - row[name]["low"]) / 2 for row in found)
        for name in JUDGED
    }
    boxes = [
        "“No difference shown” is not “the same”. With these lesions and seeds, "
        "differences smaller than about "
        f"{widths['roc_auc']:.3f} in ROC-AUC or {100 * widths['specificity']:.1f} "
        "points in specificity cannot be told from luck."
    ]
    fewest = min(len(row["seeds"]) for row in found)
    if fewest == 1:
        boxes.insert(
            0,
            "Only one seed stands behind some of these comparisons. Their verdicts are "
            "about those trained models, not about the settings: another seed may turn "
            "them around.",
        )
    planned = results["comparisons_planned"]
    return Section(
        "compare",
        "Against the reference",
        boxes=boxes,
        before=before,
        tables=[
            Table(
                [
                    "Row",
                    "ROC-AUC",
                    "p (Holm)",
                    "in words",
                    "Specificity, points",
                    "p (Holm)",
                    "in words",
                    "Sensitivity, points",
                ],
                rows,
            )
        ],
        after=[
            "ROC-AUC is the primary figure; specificity at the operating point comes "
            "second. Differences are paired: same lesions, same seeds"
            + (", same folds" if len(results["folds"]) > 1 else "")
            + ". A difference is called better or worse when its p-value, corrected by "
            f"Holm for all {planned} comparisons of the study"
            + (", those still to come included" if not results["finished"] else "")
            + ", is below 0.05; the chance that any such verdict in this table is "
            "wrong is then at most about 5 %. Intervals are 95 % each, not corrected. "
            "Sensitivity is not tested; it is there because specificity can be bought "
            "with it."
        ],
    )


def _effects_section(results: Mapping[str, Any]) -> Section | None:
    if not results["main_effects"]:
        return None
    names = short_names([effect["axis"] for effect in results["main_effects"]])
    plots, missing = {}, []
    for effect in results["main_effects"]:
        name = names[effect["axis"]]
        if not effect["levels"]:
            missing.append(
                f"{name}: no plot, because no combination of the other axes is "
                "complete at all of its levels."
            )
            continue
        count, num_seeds = effect["combinations"], len(effect["seeds"])
        title = f"{plot_prefix(results)}{effect['axis']}"
        figure = draw_effect(
            effect, [value_text(level["level"]) for level in effect["levels"]], title
        )
        plots[f"effect_{effect['axis'].replace('.', '_')}"] = Plot(
            title,
            (
                "One setting at each level, "
                if count == 1
                else f"Each level averaged over the same {count} settings of the other "
                "axes, "
            )
            + f"{num_seeds} seed{'s' * (num_seeds != 1)}.",
            png_bytes(figure),
        )
    return Section(
        "effects",
        "What each axis does",
        before=missing,
        tables=_effect_tables(results, names),
        after=[
            "Levels are measured on the same lesions, so their intervals in the plots "
            "may overlap though the levels differ. The differences here are paired, "
            "each averaged over the same settings of the other axes, with 95 % "
            "intervals each. They are no tests and not corrected: of twenty such "
            "intervals one leaves out 0 by luck alone.",
        ],
        plots=plots,
    )


def _effect_tables(results: Mapping[str, Any], names: Mapping[str, str]) -> list[Table]:
    """Return how the levels of each axis, by its short name, differ."""
    rows = [
        [
            f"{names[effect['axis']]}: {value_text(level['level'])} instead of "
            f"{value_text(effect['against'])}",
            str(effect["combinations"]),
            *(
                difference_text(name, level["difference"][name])
                for name in ("roc_auc", "specificity", "sensitivity")
            ),
        ]
        for effect in results["main_effects"]
        for level in effect["levels"]
        if level["difference"] is not None
    ]
    if not rows:
        return []
    return [
        Table(
            [
                "Axis",
                "Settings",
                "ROC-AUC",
                "Specificity, points",
                "Sensitivity, points",
            ],
            rows,
            title="Differences between the levels",
        )
    ]


def _fronts_section(results: Mapping[str, Any]) -> Section:
    fronts = results["fronts"]
    plots, before = {}, []
    for cost, (title, word, label) in _COSTS.items():
        points = fronts[cost]["points"]
        if cost == "latency" and not points:
            machines = fronts[cost]["machines"]
            before.append(
                "Latency was measured on different machines "
                f"({'; '.join(machines)}) and cannot be compared."
                if machines
                else "Latency was not measured: no run holds a file of host timings."
            )
        elif not points:
            before.append(f"No complete setting has its {word} recorded.")
        elif len({point["cost"] for point in points}) == 1:
            best = fronts[cost]["on_front"]
            before.append(
                f"All settings have the same {word}, so the front is what is most "
                f"specific: row{'s' * (len(best) > 1)} {list_text(best)}. The "
                "comparisons say whether that is more than luck."
            )
        else:
            shown = [number - 1 for number in fronts[cost]["on_front"]]
            order = [p["number"] - 1 for p in points]
            heading = f"{plot_prefix(results)}Specificity against {word}"
            figure = draw_front(points, [order.index(i) for i in shown], label, heading)
            plots[f"front_{cost}"] = Plot(
                f"{title}: {heading}" if not plot_prefix(results) else heading,
                "Numbers are rows of the table; rows of one cost are drawn side by "
                "side. Up and left is better. The front goes by the means; where "
                "intervals overlap, it may be luck.",
                png_bytes(figure),
            )
    if fronts["latency"]["points"]:
        before.append(f"Latency: {fronts['latency']['machines'][0]}.")
    return Section(
        "front", "Specificity against size and latency", before=before, plots=plots
    )


def _pooled_section(results: Mapping[str, Any]) -> Section | None:
    if not results["pooled_thresholds"]:
        return None
    own = {row["number"]: row for row in results["rows"]}
    rows = [
        [
            f"{row['number']}: {setting_text(own[row['number']]['setting'])}",
            how,
            *(figure_text(n, figures[n]) for n in RATES),
        ]
        for row in results["pooled_thresholds"]
        for how, figures in (
            ("own validation", own[row["number"]]["figures"]),
            ("pooled", row["figures"]),
        )
    ]
    return Section(
        "folds",
        "The cross-validated operating point",
        before=[
            "Every lesion is in the test set of one fold, and its decision is made by "
            "that fold's model. Two ways of choosing the threshold:"
        ],
        bullets=[
            "Own validation (used everywhere else in this report): the validation set "
            "of the same fold. Neither model nor threshold has seen the lesion in any "
            "way.",
            "Pooled: out-of-fold validation scores of all folds together, without the "
            "lesions of the fold that is judged. It rests on more melanomas. The "
            "threshold has not seen the lesion's score or label, but the models that "
            "gave the other scores were trained on it; and scores of different models "
            "are taken as being on one scale.",
        ],
        tables=[
            Table(["Row", "Threshold from", *(FIGURE_NAMES[n] for n in RATES)], rows)
        ],
    )
