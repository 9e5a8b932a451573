"""How figures and standings are put into words."""

from __future__ import annotations

from collections.abc import Iterable

from regardant.compare.findings import TaskPlan
from regardant.compare.standing import Standing


def capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


def sentence(text: str) -> str:
    """With a capital, and with a full stop where nothing ends it."""
    return capitalized(text if text.endswith((".", "?", "!")) else f"{text}.")


def listed(names: Iterable[str]) -> str:
    """ "a, b and c"."""
    given = list(names)
    return given[0] if len(given) == 1 else f"{', '.join(given[:-1])} and {given[-1]}"


def counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def measure_of(task: TaskPlan) -> str:
    """The measure with its direction."""
    direction = "higher" if task.higher_is_better else "lower"
    return f"{capitalized(task.measure)} ({direction} is better)"


def spelled(standing: Standing) -> str:
    """ "0.981 ± 0.010", without the deviation where there is a single seed."""
    return f"{standing.mean:.3f}" + ("" if standing.deviation is None else f" ± {standing.deviation:.3f}")


def level_with(standing: Standing) -> str:
    return f"level with {listed(standing.ties)}" if standing.ties else "level with none"


def day(moment: str) -> str:
    """An ISO date and time, to the minute."""
    return moment[:16].replace("T", " ")


def duration(seconds: float) -> str:
    if seconds < 90:
        return counted(round(seconds), "second")
    if seconds < 5400:
        return f"{seconds / 60:.3g} minutes"
    return f"{seconds / 3600:.3g} hours"
