"""What a comparison found in one table of text: a row a system, cost beside quality, and notes."""

from __future__ import annotations

from collections.abc import Iterable

from regardant.compare.findings import BASELINE, Cost, Findings
from regardant.compare.standing import Standing, about_single_seeds
from regardant.compare.table import NONE, Table

TOP = "*"
"""Behind a value: the best, or tied with it."""

UNMEASURED = "…"
"""Planned, and not measured yet."""


def summary(findings: Findings) -> Table:
    columns, cells = ["system"], {name: [name] for name in findings.names}
    for column, own in (*_costs(findings), *_qualities(findings)):
        columns.append(column)
        for name, row in cells.items():
            row.append(own[name])
    machines = " and ".join(dict.fromkeys(each.machine for each in findings.origins))
    title = f"{len(cells)} systems; {machines or 'nothing measured'}"
    return Table(title, tuple(columns), tuple(map(tuple, cells.values())), tuple(notes(findings)))


def _costs(findings: Findings) -> Iterable[tuple[str, dict[str, str]]]:
    growths = {(each.system, each.phase, each.quantity): each for each in findings.growths()}
    crossings = {(each.system, each.phase): each for each in findings.crossovers()}
    for phase, title in (("forward", "forward"), ("backward", "with backward")):
        lengths = [cost.length for cost in findings.costs if cost.phase == phase and cost.best is not None]
        if not lengths:
            continue
        last = max(lengths)
        at = {name: _at(findings, name, phase, last) for name in findings.names}
        yield f"{title} at {last:,}, ms", {name: _cell(each, "seconds", 1e3) for name, each in at.items()}
        if phase == "forward":
            yield "time ~ n^", {name: str(growths.get((name, phase, "seconds"), NONE)) for name in at}
            yield "faster from", {name: str(crossings.get((name, phase), NONE)) for name in at}
        else:
            yield f"MB at {last:,}", {name: _cell(each, "bytes", 1e-6) for name, each in at.items()}
            yield "memory ~ n^", {name: str(growths.get((name, phase, "bytes"), NONE)) for name in at}
    positions = [cost.length for cost in findings.costs if cost.phase == "decode" and cost.best is not None]
    if positions:
        last = max(positions)
        at = {name: _at(findings, name, "decode", last) for name in findings.names}
        yield f"a token behind {last:,}, µs", {name: _cell(each, "seconds", 1e6) for name, each in at.items()}
        yield "state, kB", {name: _cell(each, "state_bytes", 1e-3) for name, each in at.items()}


def _qualities(findings: Findings) -> Iterable[tuple[str, dict[str, str]]]:
    missing = {failure.unit.split("/", 2)[1:2][0] + "/" + failure.unit.split("/")[2]: failure.outcome
               for failure in findings.failures if failure.unit.startswith("quality/")}  # fmt: skip
    for task in findings.plan.tasks:
        standings = findings.standings(task.name)
        best = standings[0] if standings else None
        own = {each.system: _quality(each, best) for each in standings}
        for name in findings.names:
            own.setdefault(name, missing.get(f"{name}/{task.name}", UNMEASURED))
            if name in findings.plan.without and own[name] == UNMEASURED:
                own[name] = "left out"
        yield f"{task.name}, {task.measure} {'↑' if task.higher_is_better else '↓'}", own


def _quality(standing: Standing, best: Standing) -> str:
    top = standing.system == best.system or standing.system in best.ties
    spread = "" if standing.spread is None else f" ± {standing.spread:.2g}"
    return f"{standing.mean:.3g}{spread}{TOP if top and standing.spread is not None else ''}"


def _at(findings: Findings, name: str, phase: str, length: int) -> Cost | None:
    return next((cost for cost in findings.costs_of(name, phase) if cost.length == length), None)


def _cell(cost: Cost | None, field: str, scale: float) -> str:
    if cost is None:
        return UNMEASURED
    value = getattr(cost, field)
    return NONE if value is None else f"{scale * value:.3g}"


def notes(findings: Findings) -> list[str]:
    """What the table does not say: ties, what was left out, skipped and failed, and what is suspicious."""
    found = []
    if any(len(each.values) > 1 for task in findings.plan.tasks for each in findings.standings(task.name)):
        found.append(f"{TOP} the best, or tied with it: the difference is inside the spread over seeds.")
    elif findings.runs:
        found.append("One seed: no spread, and so nobody is ahead of anybody.")
    for task in findings.plan.tasks:
        found.append(
            f"{task.name}: {task.about}; {task.steps} steps of {task.batch}, {task.parameters:,} parameters."
        )
        if said := about_single_seeds(findings.standings(task.name)):
            found.append(f"{task.name}: {said}")
        for name in findings.too_good(task.name):
            probed = next((run.probe for run in findings.runs_of(name, task.name) if run.probe), None)
            found.append(
                f"{name} is better than {BASELINE} by far on {task.name}: "
                + (f"the causality probe found that {probed}." if probed else "not probed yet.")
            )
    found += [f"left out: {sentence}." for sentence in findings.plan.left_out]
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for failure in findings.failures:
        if not failure.unit.startswith("maps/"):
            what = failure.unit.replace(f"/{failure.system}/", " ", 1)
            reasons.setdefault((failure.system, failure.outcome, failure.reason), []).append(what)
    for (system, outcome, reason), units in reasons.items():
        more = f" and {len(units) - 1} more" if len(units) > 1 else ""
        found.append(f"{outcome}: {system}, {units[0]}{more}: {reason}")
    return found
