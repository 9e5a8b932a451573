"""The standings of each task: every seed, the mean, the spread, and the band of the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from regardant.compare.findings import Findings, TaskPlan
from regardant.compare.report import figure
from regardant.compare.report.compared import band
from regardant.compare.report.figure import Figure, Panel
from regardant.compare.report.look import Look
from regardant.compare.report.wording import capitalized, level_with, measure_of, sentence, spelled
from regardant.compare.standing import Standing, about_single_seeds

LEAD = (
    "Each small dot is a seed, the marker their mean, the bar the spread: the standard deviation, or that of "
    "the task as a whole where that is larger or there is one seed so far. Systems whose bars overlap are "
    "ties; the shaded band is the best's."
)


def standings(findings: Findings, looks: Mapping[str, Look]) -> Panel:
    """A figure a task."""
    figures = [_standing(findings, looks, task) for task in findings.plan.tasks]
    return figure.panel("Standings", LEAD, figures, "No quality was measured in this comparison.")


def _standing(findings: Findings, looks: Mapping[str, Look], task: TaskPlan) -> Figure:
    name, found = f"standing-{task.name}", findings.standings(task.name)
    if not found:
        return Figure(name, capitalized(task.title), empty="No model was trained on it to the end.")
    traces = []
    for each in found:
        look = looks[each.system]
        hover = (
            f"<b>{each.system}</b><br>{task.measure} {spelled(each)}<br>rank {each.rank}, {level_with(each)}"
        )
        if len(each.values) > 1:
            seeds = [each.system] * len(each.values)
            traces.append(figure.points(each.system, look, each.values, seeds, size=5) | {"opacity": 0.45})
        mean = figure.points(each.system, look, [each.mean], [each.system], hover=hover, size=11)
        traces.append(mean | {"error_x": figure.bars([each.spread])})
    edges = [edge for each in found for edge in (*band(each), *each.values)]
    shapes = []
    if found[0].spread is not None:
        low, high = band(found[0])
        shapes.append(
            {"type": "rect", "yref": "paper", "x0": low, "x1": high, "y0": 0, "y1": 1, "name": "band"}
        )
    if task.chance is not None and figure.near(task.chance, edges):
        edges.append(task.chance)
        shapes.append(figure.rule_at("x", task.chance, "chance"))
    names = [each.system for each in reversed(found)]
    layout = {
        "xaxis": figure.linear(measure_of(task), edges),
        "yaxis": {
            "type": "category", "categoryorder": "array", "categoryarray": names,
            "range": [-0.7, len(names) - 0.3], "title": {"text": ""},
        },
        "shapes": shapes,
    }  # fmt: skip
    caption = f"{sentence(task.about)} {_seeds(found)}"
    return Figure(name, capitalized(task.title), caption, traces, layout, height=110 + 30 * len(found))


def _seeds(found: Sequence[Standing]) -> str:
    fewest, most = (which(len(each.values) for each in found) for which in (min, max))
    if most == 1:
        return "One seed: there is no spread, and nobody is ahead of anybody."
    if fewest == most:
        return f"{most} seeds each."
    return f"{fewest} to {most} seeds each. {about_single_seeds(found)}".rstrip()
