"""What an experiment found: figures with their spread, and criteria that were fixed before it ran.

The verdict follows from the criteria; nobody types it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

from regardant.core.errors import require

HOLDS = "holds"
FAILS = "does not hold here"
COST_ONLY = "cost only"
VERDICTS = (HOLDS, FAILS, COST_ONLY)


@dataclass(frozen=True)
class Spread:
    """A figure measured once a seed."""

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        require(len(self.values) >= 1, "values is empty, but a figure was measured at least once")

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float:
        """The standard deviation over seeds (of a sample); 0 for a single one."""
        if not all(map(math.isfinite, self.values)):
            return math.nan
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0

    @property
    def error(self) -> float:
        """The standard error of the mean."""
        return self.deviation / math.sqrt(len(self.values))

    def __str__(self) -> str:
        if len(self.values) == 1:
            return f"{self.mean:.4g}"
        return f"{self.mean:.4g} ± {self.deviation:.2g}"


Found = Mapping[str, Mapping[str, Spread]]
"""Variant → the name of a figure → its spread over the seeds."""


@dataclass(frozen=True)
class Figure:
    """One quantity, of the paper's systems and of the baselines that ran beside them."""

    quantity: str
    ours: Mapping[str, Spread]
    baseline: Mapping[str, Spread] = field(default_factory=dict)

    @classmethod
    def of(cls, quantity: str, found: Found, key: str, *, ours: str | Sequence[str]) -> Self:
        """From what was measured: the variants called `ours`, and all others as baselines."""
        own = (ours,) if isinstance(ours, str) else tuple(ours)
        return cls(
            quantity,
            {name: found[name][key] for name in own},
            {name: each[key] for name, each in found.items() if name not in own and key in each},
        )

    @classmethod
    def once(
        cls, quantity: str, ours: Mapping[str, float], baseline: Mapping[str, float] | None = None
    ) -> Self:
        """What no seed changes."""
        ours, baseline = (
            {name: Spread((value,)) for name, value in (side or {}).items()} for side in (ours, baseline)
        )
        return cls(quantity, ours, baseline)


About = Literal["quality", "cost", "exact"]


@dataclass(frozen=True)
class Criterion:
    """What must hold, in words and as `found ≤ bound` or `found ≥ bound`. A NaN never holds."""

    about: About
    rule: str
    found: float
    sense: Literal["at most", "at least"]
    bound: float

    @property
    def holds(self) -> bool:
        return self.found <= self.bound if self.sense == "at most" else self.found >= self.bound


def quality(
    rule: str, found: float, *, at_most: float | None = None, at_least: float | None = None
) -> Criterion:
    """How well the system does: only with one of these can a claim hold."""
    return _criterion("quality", rule, found, at_most, at_least)


def cost(
    rule: str, found: float, *, at_most: float | None = None, at_least: float | None = None
) -> Criterion:
    """What the system takes: time, memory, operations, parameters."""
    return _criterion("cost", rule, found, at_most, at_least)


def exact(
    rule: str, found: float, *, at_most: float | None = None, at_least: float | None = None
) -> Criterion:
    """What follows from the equations: equalities, counts."""
    return _criterion("exact", rule, found, at_most, at_least)


def _criterion(
    about: About, rule: str, found: float, at_most: float | None, at_least: float | None
) -> Criterion:
    require(
        (at_most is None) != (at_least is None),
        f"the criterion {rule!r} has at_most={at_most} and at_least={at_least}, but it takes one bound",
    )
    if at_most is not None:
        return Criterion(about, rule, float(found), "at most", float(at_most))
    return Criterion(about, rule, float(found), "at least", float(at_least))


@dataclass(frozen=True)
class Outcome:
    """What an experiment returns.

    `setting` says what ran here, and how much smaller than the paper's it is. `ours` and `baseline`
    of every figure come from the same run; the paper's own figure is on the card.
    """

    setting: str
    figures: Sequence[Figure]
    criteria: Sequence[Criterion]
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        require(len(self.criteria) >= 1, "criteria is empty, but a claim holds or fails by at least one")

    @property
    def verdict(self) -> str:
        """`holds` when all criteria do; `cost only` when all do and none is about quality."""
        if not all(criterion.holds for criterion in self.criteria):
            return FAILS
        about_quality = any(criterion.about == "quality" for criterion in self.criteria)
        return HOLDS if about_quality else COST_ONLY

    def as_json(self) -> dict[str, Any]:
        """Everything, in the types of JSON."""
        return {
            "verdict": self.verdict,
            "setting": self.setting,
            "figures": [
                {
                    "quantity": figure.quantity,
                    "ours": {name: _numbers(spread) for name, spread in figure.ours.items()},
                    "baseline": {name: _numbers(spread) for name, spread in figure.baseline.items()},
                }
                for figure in self.figures
            ],
            "criteria": [
                {
                    **asdict(criterion),
                    "found": _number(criterion.found),
                    "bound": _number(criterion.bound),
                    "holds": criterion.holds,
                }
                for criterion in self.criteria
            ],
            "notes": list(self.notes),
        }


def _numbers(spread: Spread) -> dict[str, Any]:
    return {
        "mean": _number(spread.mean),
        "deviation": _number(spread.deviation),
        "values": [_number(value) for value in spread.values],
    }


def _number(value: float) -> float | str:
    """JSON has no NaN and no infinity: those are spelled."""
    return value if math.isfinite(value) else str(value)
