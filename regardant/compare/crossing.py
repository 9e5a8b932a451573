"""How costs grow, as lines that can be drawn; from which length on a system is faster than the baseline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, log

from regardant.compare import growth

NOISE = 2**20
"""Bytes. The system counts a process's pages by processor, and knows their sum only so well."""

FASTER = 0.95
"""A system is faster where it takes at most this share of the baseline's time."""

BELIEVED = 64
"""How many times the longest measured length an extrapolated crossover is believed."""


@dataclass(frozen=True)
class FittedGrowth:
    """A fitted exponent: cost ≈ a·lengthᵖ."""

    system: str
    phase: str
    quantity: str
    """seconds, bytes or state_bytes."""
    exponent: float
    error: float | None
    """The standard error; None where two points leave nothing over."""
    last: float
    """Between the two longest lengths, where constant parts weigh least."""
    factor: float
    """a, so that the fitted line can be drawn."""

    def __str__(self) -> str:
        return f"{self.exponent:.2f}" + ("" if self.error is None else f" ± {self.error:.2f}")


@dataclass(frozen=True)
class Crossover:
    """From which length on a system takes at most 95 % of the baseline's time."""

    system: str
    phase: str
    length: float | None
    how: str
    """measured (faster at that length and all longer ones), extrapolated (where the lines through the two
    longest lengths cross, beyond all that was measured), never (nowhere, or too far to be believed), or
    unknown (slower at the one length that both were measured at, where it takes two to draw the lines)."""

    def __str__(self) -> str:
        if self.length is None:
            return "never" if self.how == "never" else "takes two lengths"
        return f"{self.length:,.0f}" if self.how == "measured" else f"~{self.length:,.0f} (extrapolated)"


def fit_growth(figures: Mapping[int, float], system: str, phase: str, quantity: str) -> FittedGrowth | None:
    """From length → figure; None where less than two stand above the noise."""
    least = NOISE if quantity == "bytes" else 0
    points = sorted((length, value) for length, value in figures.items() if value > least)
    if len(points) < 2:
        return None
    lengths, values = zip(*points)
    fitted = growth.fit(lengths, values)
    middle = sum(map(log, values)) - fitted.exponent * sum(map(log, lengths))
    factor = exp(middle / len(points))
    return FittedGrowth(system, phase, quantity, fitted.exponent, fitted.error, fitted.last, factor)


def find_crossover(
    own: Mapping[int, float], baseline: Mapping[int, float], system: str, phase: str
) -> Crossover | None:
    """From length → seconds of both; None where they have no length in common."""
    both = sorted(own.keys() & baseline.keys())
    if not both:
        return None
    slower = [length for length in both if own[length] > FASTER * baseline[length]]
    faster = [length for length in both if not slower or length > slower[-1]]
    if faster:
        return Crossover(system, phase, float(faster[0]), "measured")
    if len(both) < 2:
        return Crossover(system, phase, None, "unknown")
    never = Crossover(system, phase, None, "never")
    before, last = both[-2:]
    gains = log(baseline[last] / baseline[before] * own[before] / own[last]) / log(last / before)
    if gains <= 0:
        return never
    behind = log(own[last] / (FASTER * baseline[last]))
    if behind > gains * log(BELIEVED):
        return never
    return Crossover(system, phase, last * exp(behind / gains), "extrapolated")
