"""A cost at a length that was not measured: along the power law of the nearest lengths that were."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, log

from regardant.compare import growth

NEAREST = 3
"""Lengths that the exponent is fitted to."""

REACH = 8
"""How many times the longest measured length is as far as anything is extrapolated."""

BELIEVED = 3.0
"""The factor by which an extrapolation may be off at most: figures that scatter more tell nothing."""

UNKNOWN_ERROR = 0.1
"""Of an exponent that only two lengths tell."""


@dataclass(frozen=True)
class Outlook:
    """A figure at a length: measured there, or else between `low` and `high`, with the exponent that it grows
    by from the length `origin`."""

    value: float
    low: float
    high: float
    origin: int
    exponent: float | None = None

    @property
    def measured(self) -> bool:
        return self.exponent is None

    def __str__(self) -> str:
        """Where it comes from."""
        if self.measured:
            return "measured"
        # Not "-0.00".
        return f"extrapolated from {self.origin:,} by n^{round(self.exponent, 2) + 0.0:.2f}"


def outlook(figures: Mapping[int, float], length: int) -> Outlook | None:
    """From length → figure; None where two lengths are not there, none is near enough, or they scatter.

    The exponent is fitted to the nearest three, and the line goes through the nearest one. `low` and `high`
    are two standard errors of the exponent away.
    """
    if length in figures:
        return Outlook(figures[length], figures[length], figures[length], length)
    near = sorted(
        (at for at in figures if figures[at] > 0), key=lambda at: abs(log(length / at))
    )[:NEAREST]  # fmt: skip
    if len(near) < 2 or not 1 / REACH <= near[0] / length <= REACH:
        return None
    fitted = growth.fit(near, [figures[at] for at in near])
    steps = log(length / near[0])
    value = figures[near[0]] * exp(fitted.exponent * steps)
    doubt = exp(2 * abs(steps) * (UNKNOWN_ERROR if fitted.error is None else fitted.error))
    if doubt > BELIEVED:
        return None
    return Outlook(value, value / doubt, value * doubt, near[0], fitted.exponent)
