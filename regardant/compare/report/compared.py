"""At which length systems are compared with each other, and what they take there."""

from __future__ import annotations

from collections.abc import Iterable

from regardant.compare.findings import Cost, Findings
from regardant.compare.standing import Standing


def common_length(findings: Findings, phase: str, systems: Iterable[str]) -> int | None:
    """The longest length at which the most of these systems have a figure; None where none has any."""
    measured: dict[int, int] = {}
    for system in systems:
        for cost in findings.costs_of(system, phase):
            measured[cost.length] = measured.get(cost.length, 0) + (cost.best is not None)
    most = max(measured.values(), default=0)
    return max((length for length, count in measured.items() if count == most > 0), default=None)


def costs_at(findings: Findings, phase: str, length: int | None) -> dict[str, Cost]:
    """By system, those without figures too."""
    found = ((name, cost) for name in findings.names for cost in findings.costs_of(name, phase))
    return {name: cost for name, cost in found if cost.length == length}


def times_at(findings: Findings, phase: str, length: int | None) -> dict[str, float]:
    """By system the seconds of the least disturbed repetition."""
    costs = costs_at(findings, phase, length)
    return {name: cost.best for name, cost in costs.items() if cost.best is not None}


def band(standing: Standing) -> tuple[float, float]:
    """From the mean less the spread to the mean and the spread."""
    spread = standing.spread or 0.0
    return standing.mean - spread, standing.mean + spread
