"""Quality against cost, with the front of what nothing beats."""

from __future__ import annotations

from collections.abc import Mapping

from regardant.compare.findings import Findings, TaskPlan
from regardant.compare.front import Contender, Quality, beaten_by
from regardant.compare.report import figure
from regardant.compare.report.compared import band, common_length, times_at
from regardant.compare.report.figure import Figure, Label, Panel
from regardant.compare.report.look import Look
from regardant.compare.report.wording import capitalized, measure_of, spelled
from regardant.compare.standing import Standing

COSTS = (("forward", "forward", 1e3, "ms"), ("decode", "decoding", 1e6, "µs"))
"""Phase, its name here, and its unit."""

LEAD = (
    "Left is faster. Filled markers are on the front or level with it: nothing beats them. Open markers are "
    "beaten: another system is better in one and no worse in the other. Differences inside the spread, or "
    "below 5 % of the time, are ties."
)

ONE_SEED = "From one seed there is no spread: all tie in quality, and only time tells them apart."


def against_cost(findings: Findings, looks: Mapping[str, Look]) -> Panel:
    """Of every task, against the time of a call and of a decoded token."""
    drawn = [_against(findings, looks, task, *cost) for task in findings.plan.tasks for cost in COSTS]
    figures = [each for each in drawn if each is not None]
    nothing = "No two systems have both quality and cost on file."
    return Panel("Quality against cost", LEAD if figures else nothing, figures, choose=True)


def _against(
    findings: Findings,
    looks: Mapping[str, Look],
    task: TaskPlan,
    phase: str,
    named: str,
    scale: float,
    unit: str,
) -> Figure | None:
    standings = {each.system: each for each in findings.standings(task.name)}
    length = common_length(findings, phase, standings)
    times = times_at(findings, phase, length)
    costs = {system: scale * times[system] for system in standings if system in times}
    if len(costs) < 2:
        return None
    up = task.higher_is_better
    beaten = beaten_by([
        Contender(system, cost, cost, {task.name: Quality.of(standings[system], higher_is_better=up)})
        for system, cost in costs.items()
    ])  # fmt: skip
    ahead = {system: cost for system, cost in costs.items() if not beaten[system]}
    at = f"{named} {'behind' if phase == 'decode' else 'at'} {length:,} tokens"
    traces = [_steps(ahead, standings, highest=up)]
    for system, cost in costs.items():
        standing, superiors = standings[system], beaten[system]
        told = f"beaten by {', '.join(superiors)}" if superiors else "on the front or level with it"
        hover = f"<b>{system}</b><br>{task.measure} {spelled(standing)}<br>%{{x:.3~g}} {unit} {at}<br>{told}"
        marker = figure.points(
            system, looks[system], [cost], [standing.mean], hover=hover, open_=bool(superiors), size=12
        )
        traces.append(marker | {"error_y": figure.bars([standing.spread])})
    heights = [edge for system in costs for edge in band(standings[system])]
    layout = {
        "xaxis": figure.logarithmic(f"{unit} {at}, log scale", costs.values(), room=0.12, plain=True),
        "yaxis": figure.linear(measure_of(task), heights, room=0.1),
    }
    return Figure(
        f"front-{task.name}-{phase}", f"{capitalized(task.title)} against time, {named}",
        caption=ONE_SEED if all(each.spread is None for each in standings.values()) else "",
        traces=traces, layout=layout,
        labels=[Label(system, cost, standings[system].mean, system) for system, cost in costs.items()],
        placing="beside", height=480, choice=named, group=task.name,
    )  # fmt: skip


def _steps(costs: Mapping[str, float], standings: Mapping[str, Standing], *, highest: bool) -> dict:
    """The best mean so far, from the cheapest system on."""
    x: list[float] = []
    y: list[float] = []
    for system in sorted(costs, key=costs.__getitem__):
        mean = standings[system].mean
        if not y or (mean > y[-1]) == highest:
            x.append(costs[system])
            y.append(mean)
    return {
        "type": "scatter", "mode": "lines", "hoverinfo": "skip", "meta": {"role": "rule"},
        "x": figure.numbers(x), "y": figure.numbers(y), "line": {"shape": "hv", "width": 1.5, "dash": "dot"},
    }  # fmt: skip
