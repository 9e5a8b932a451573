"""Who is ahead of whom over several seeds, and who ties: the one place where that is decided.

A system's band is its mean ± its spread. The spread is the standard deviation over the seeds or, where that
is larger, the pooled one of all systems on the task: with few seeds one's own may be small by luck. Two
systems tie where their bands overlap. A system with a single seed so far has no deviation of its own, and is
given the pooled one of the others. Where all have a single seed there is no spread, and nobody is ahead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev


@dataclass(frozen=True)
class Standing:
    """A system on one task."""

    system: str
    values: tuple[float, ...]
    """One a seed."""
    mean: float
    deviation: float | None
    """Over the seeds; None of a single one."""
    spread: float | None
    """Half of the band's width: the deviation, or the pooled one of the task where that is larger or, with a
    single seed, the only one. None where no system has a second seed."""
    rank: int
    """1 and up; systems that tie with the best of their group share its rank."""
    ties: tuple[str, ...]
    """All systems whose bands overlap this one's."""

    @property
    def borrowed(self) -> bool:
        """Whether the spread is that of the other systems alone."""
        return self.deviation is None and self.spread is not None


def tie(mean: float, spread: float | None, other_mean: float, other_spread: float | None) -> bool:
    """Whether the difference lies inside the spread."""
    if spread is None or other_spread is None:
        return True
    return abs(mean - other_mean) <= spread + other_spread


def rank(values: Mapping[str, Sequence[float]], *, higher_is_better: bool) -> list[Standing]:
    """The systems by their means, best first. A group is headed by the best system that is in none yet, and
    holds all that tie with it."""
    means = {name: fmean(own) for name, own in values.items()}
    deviations = {name: stdev(own) if len(own) > 1 else None for name, own in values.items()}
    pooled = _pooled(values, deviations)
    spreads = {name: None if pooled is None else max(own or 0.0, pooled) for name, own in deviations.items()}
    order = sorted(means, key=means.__getitem__, reverse=higher_is_better)
    ties = {
        name: tuple(
            other for other in order
            if other != name and tie(means[name], spreads[name], means[other], spreads[other])
        )
        for name in order
    }  # fmt: skip
    ranks: dict[str, int] = {}
    for place, name in enumerate(order, start=1):
        if name not in ranks:
            ranks[name] = place
            ranks |= {other: place for other in ties[name] if other not in ranks}
    return [
        Standing(
            name, tuple(values[name]), means[name], deviations[name], spreads[name], ranks[name], ties[name]
        )
        for name in order
    ]


def about_single_seeds(standings: Sequence[Standing]) -> str:
    """A sentence on whose spread is that of the others; empty where there is none."""
    names = ", ".join(each.system for each in standings if each.borrowed)
    return f"One seed so far, with the pooled spread of the others: {names}." if names else ""


def _pooled(values: Mapping[str, Sequence[float]], deviations: Mapping[str, float | None]) -> float | None:
    """The root of the mean variance, each weighted by its seeds less one; None of single seeds."""
    weighted = [((len(values[name]) - 1), own) for name, own in deviations.items() if own is not None]
    weight = sum(each for each, _ in weighted)
    return sqrt(sum(each * own**2 for each, own in weighted) / weight) if weight else None
