"""What a comparison comes to, in a few sentences."""

from __future__ import annotations

from collections.abc import Sequence

from regardant.compare.crossing import FASTER
from regardant.compare.findings import BASELINE, Findings, TaskPlan
from regardant.compare.front import Contender, Quality, beaten_by
from regardant.compare.report.compared import common_length, times_at
from regardant.compare.report.wording import capitalized, listed, spelled
from regardant.compare.standing import Standing, about_single_seeds


def brief(findings: Findings) -> list[tuple[str, str]]:
    """What a reader in a hurry should take along: a heading and a sentence each."""
    found = [(capitalized(task.title), _standing(findings, task)) for task in findings.plan.tasks]
    found.append(("Speed", _fastest(findings, "forward", 1e3, "ms", "At")))
    found.append(("Decoding", _fastest(findings, "decode", 1e6, "µs", "Behind")))
    found.append(("The front", _front(findings)))
    return [(title, sentence) for title, sentence in found if sentence]


def _standing(findings: Findings, task: TaskPlan) -> str:
    found = findings.standings(task.name)
    if len(found) < 2:
        return ""
    best = found[0]
    if best.spread is None:
        first = f"{best.system} comes out at {best.mean:.3f} {task.measure}"
        return f"{first}, but from one seed nobody is ahead."
    return " ".join(filter(None, (_ahead(task, found), about_single_seeds(found))))


def _ahead(task: TaskPlan, found: Sequence[Standing]) -> str:
    best = found[0]
    level = [each for each in found if each.system == best.system or each.system in best.ties]
    rest = [each for each in found if each not in level]
    if not rest:
        return f"All tie: from {best.mean:.3f} to {found[-1].mean:.3f} {task.measure}, inside the spread."
    first = f"{best.system} leads" if len(level) == 1 else f"{listed(each.system for each in level)} tie"
    to = f" to {level[-1].mean:.3f}" if f"{level[-1].mean:.3f}" != f"{best.mean:.3f}" else ""
    return f"{first} at {best.mean:.3f}{to} {task.measure}; {rest[0].system} follows at {spelled(rest[0])}."


def _fastest(findings: Findings, phase: str, scale: float, unit: str, where: str) -> str:
    length = common_length(findings, phase, findings.names)
    times = times_at(findings, phase, length)
    if len(times) < 2:
        return ""
    order = sorted(times, key=times.__getitem__)
    least, most = times[order[0]], times[order[-1]]
    level = [name for name in order if FASTER * times[name] <= least]
    verb = "is the fastest" if len(level) == 1 else "tie as the fastest"
    first = f"{where} {length:,} tokens {listed(level)} {verb}: {scale * least:.3g} {unit}"
    if BASELINE in times and BASELINE not in level:
        return f"{first}; {BASELINE} takes {times[BASELINE] / least:.1f} times as long."
    return f"{first}; {order[-1]} takes {most / least:.1f} times as long."


def _front(findings: Findings) -> str:
    """Which systems nothing beats in the time of a call and in all tasks together."""
    qualities = {
        task.name: {
            each.system: Quality.of(each, higher_is_better=task.higher_is_better)
            for each in findings.standings(task.name)
        }
        for task in findings.plan.tasks
    }
    times = times_at(findings, "forward", common_length(findings, "forward", findings.names))
    contenders = [
        Contender(system, time, time, {task: own[system] for task, own in qualities.items() if system in own})
        for system, time in times.items()
    ]
    beaten = beaten_by([each for each in contenders if each.quality])
    ahead = [name for name, superiors in beaten.items() if not superiors]
    told_apart = any(own.spread is not None for each in contenders for own in each.quality.values())
    if len(beaten) < 2 or not told_apart:
        return ""
    verb = "is beaten" if len(ahead) == 1 else "are beaten"
    return (
        f"{listed(ahead)} {verb} by nothing here: no other is as fast and as good, and ahead in one of them."
    )
