"""How the figures came about: the setting, the machine, and everything that is not there, with its reason."""

from __future__ import annotations

from dataclasses import dataclass

from regardant.compare.findings import Failure, Findings
from regardant.compare.report.wording import capitalized, counted, day, duration, sentence


@dataclass(frozen=True)
class Absence:
    """Measurements of a system that there are not, for one reason."""

    system: str
    units: tuple[str, ...]
    outcome: str
    reason: str
    traceback: str | None


def heading(findings: Findings) -> str:
    """Where, when and how much, in a line."""
    plan = findings.plan
    machines = " and ".join(dict.fromkeys(each.machine for each in findings.origins))
    last = max((each.last for each in findings.origins), default="")
    tasks = counted(len(plan.tasks), "task") if plan.tasks else "cost alone"
    seeds = counted(len(plan.seeds), "seed") if plan.tasks else ""
    when = f"{day(last)} UTC" if last else ""
    parts = (machines, when, ", ".join(filter(None, (tasks, seeds))), f"a budget of {duration(plan.budget)}")
    return " · ".join(filter(None, parts))


def setting(findings: Findings) -> list[tuple[str, str]]:
    """What was measured, as pairs of a name and a text."""
    plan = findings.plan
    found = [
        ("layers", f"width {plan.dim}, {plan.heads} heads; models of {plan.layers} layers"),
        ("lengths", ", ".join(f"{length:,}" for length in plan.lengths)),
        ("decoding behind", ", ".join(f"{position:,}" for position in plan.positions)),
        ("seeds", ", ".join(map(str, plan.seeds))),
        ("budget", duration(plan.budget)),
        ("device", plan.device),
    ]
    for task in plan.tasks:
        sizes = f"{task.steps:,} steps of {task.batch} × {task.length} tokens"
        about = f"{sentence(task.about)} {sizes}; {task.parameters:,} parameters, to 2 %."
        found.append((capitalized(task.title), about))
    return [(name, text) for name, text in found if text]


def origins(findings: Findings) -> list[tuple[str, str]]:
    """Where and when, and by which versions."""
    found = []
    for each in findings.origins:
        versions = ", ".join(f"{name} {version}" for name, version in each.versions.items())
        when = (
            f"{day(each.first)} to {day(each.last)} UTC"
            if each.first != each.last
            else f"{day(each.first)} UTC"
        )
        commit = f"; commit {each.commit[:12]}" if each.commit else ""
        found.append((each.machine, f"{each.measurements:,} measurements, {when}; {versions}{commit}"))
    return found


def absences(findings: Findings) -> list[Absence]:
    """Failures of one system for one reason stand together."""
    groups: dict[tuple[str, str, str, str | None], list[Failure]] = {}
    for each in findings.failures:
        groups.setdefault((each.system, each.outcome, each.reason, each.traceback), []).append(each)
    return [
        Absence(system, tuple(_unit(each) for each in own), outcome, reason, traceback)
        for (system, outcome, reason, traceback), own in groups.items()
    ]


def _unit(failure: Failure) -> str:
    """ "cost/moh/forward/4096" without what its row says already."""
    return failure.unit.replace(f"/{failure.system}/", " ", 1).replace("/", " ")
