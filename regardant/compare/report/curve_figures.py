"""Curves of trained models: learning, and the measure over distance and beyond the training length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev

from regardant.compare.findings import Curve, Findings, Run
from regardant.compare.report import figure
from regardant.compare.report.figure import Figure, Label, Panel
from regardant.compare.report.look import Look
from regardant.compare.report.wording import capitalized

Points = Sequence[tuple[float, float]]
Looks = Mapping[str, Look]


def learning(findings: Findings, looks: Looks) -> Panel:
    """Loss against the tokens seen: the mean of the seeds, and each seed thin behind it."""
    figures = []
    for task in findings.plan.tasks:
        drawn = _drawn({
            name: [run.learning for run in findings.runs_of(name, task.name) if run.learning]
            for name in findings.names
        })  # fmt: skip
        name = f"learning-{task.name}"
        if not drawn:
            figures.append(Figure(name, capitalized(task.title), empty="No learning curve is on file."))
            continue
        traces, xs, ys = [], [], []
        for system, seeds in drawn.items():
            look, (mean, _) = looks[system], _mean(seeds)
            if len(seeds) > 1:
                traces += [figure.line(system, look, *zip(*seed), faint=True, opacity=0.35) for seed in seeds]
            hover = f"<b>{system}</b><br>training loss %{{y:.3~f}}<br>after %{{x:,}} tokens"
            traces.append(figure.line(system, look, list(mean), list(mean.values()), hover=hover))
            xs += mean
            ys += [value for seed in seeds for _, value in seed]
        layout = {
            "xaxis": figure.linear("Tokens seen", xs, room=0.0),
            "yaxis": figure.linear("Training loss", ys),
        }
        caption = (
            f"{task.steps:,} steps of {task.batch} × {task.length} tokens; every model has "
            f"{task.parameters:,} parameters, to 2 %."
        )
        figures.append(Figure(name, capitalized(task.title), caption, traces, layout, height=380))
    lead = "The same recipe, the same tokens, the same number of parameters. Thin lines are single seeds."
    return figure.panel("Learning", lead, figures, "No model was trained in this comparison.")


def over_length(findings: Findings, looks: Looks) -> Panel:
    """Trained at one length, tested at longer ones."""
    figures = _over(findings, looks, "length", "Length tested at, tokens, log scale")
    lead = (
        "Models tested beyond the length that they were trained at, which the vertical line marks. Bars are "
        "the deviation over seeds."
    )
    nothing = "No model was tested beyond its training length here."
    return figure.panel("Extrapolation", lead, figures, nothing, columns=1)


def over_distance(findings: Findings, looks: Looks) -> Panel:
    """The measure by how far back the answer stands."""
    figures = _over(findings, looks, "distance", "Distance to the answer, tokens, log scale")
    lead = "How well a model finds what stands so many tokens back. Bars are the deviation over seeds."
    return figure.panel(
        "Recall against distance", lead, figures, "Nothing was measured over distance here.", columns=1
    )


def _over(findings: Findings, looks: Looks, over: str, title: str) -> list[Figure]:
    figures = []
    for task in findings.plan.tasks:
        curves = {name: _of(findings.runs_of(name, task.name), over) for name in findings.names}
        drawn = _drawn({name: [curve.points for curve in own] for name, own in curves.items()})
        if not drawn:
            continue
        first = next(curve for own in curves.values() for curve in own)
        chance = task.chance if first.measure == task.measure else None
        traces, labels, xs, ys = [], [], [], []
        for system, seeds in drawn.items():
            mean, deviation = _mean(seeds)
            x, y = list(mean), list(mean.values())
            hover = f"<b>{system}</b><br>{first.measure} %{{y:.3~f}}<br>{over} %{{x:,}} tokens"
            trace = figure.line(system, looks[system], x, y, hover=hover, markers=True)
            traces.append(trace | ({"error_y": figure.bars(deviation)} if len(seeds) > 1 else {}))
            labels.append(Label(system, x[-1], y[-1], system))
            xs += x
            ys += [edge for value, spread in zip(y, deviation) for edge in (value - spread, value + spread)]
        shapes = []
        if first.trained_at is not None and min(xs) <= first.trained_at <= max(xs):
            shapes.append(figure.rule_at("x", first.trained_at, "trained here"))
        if chance is not None and figure.near(chance, ys):
            ys.append(chance)
            shapes.append(figure.rule_at("y", chance, "chance"))
        layout = {
            "xaxis": figure.logarithmic(title, xs, ticks=figure.ticks_for(xs)),
            "yaxis": figure.linear(capitalized(first.measure), ys),
            "shapes": shapes,
        }
        figures.append(
            Figure(
                f"{over}-{task.name}",
                capitalized(task.title),
                traces=traces,
                layout=layout,
                labels=labels,
                height=400,
            )
        )
    return figures


def _of(runs: Sequence[Run], over: str) -> list[Curve]:
    return [curve for run in runs for curve in run.curves if curve.over == over and curve.points]


def _drawn(seeds: Mapping[str, Sequence[Points]]) -> dict[str, Sequence[Points]]:
    """Those systems whose seeds have points in common."""
    return {name: own for name, own in seeds.items() if own and _mean(own)[0]}


def _mean(seeds: Sequence[Points]) -> tuple[dict[float, float], list[float]]:
    """The mean over seeds at the points that all of them have, and the deviation there."""
    tables = [dict(seed) for seed in seeds]
    shared = sorted(set.intersection(*map(set, tables)))
    values = [[table[at] for table in tables] for at in shared]
    return dict(zip(shared, map(fmean, values))), [stdev(own) if len(own) > 1 else 0.0 for own in values]
