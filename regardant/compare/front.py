"""Which systems no other one beats: the front of quality against cost, ties counted as ties.

One beats another when it is worse in nothing and better in something. A difference inside the spread of
quality, or of less than 5 % of the time, is none. What was measured of only one of the two is not held
against the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from regardant.compare.crossing import FASTER
from regardant.compare.standing import Standing, tie


@dataclass(frozen=True)
class Quality:
    """A system's mean on a task, turned so that higher is better, and its spread (None of a single seed)."""

    mean: float
    spread: float | None

    @classmethod
    def of(cls, standing: Standing, *, higher_is_better: bool) -> Self:
        return cls(standing.mean if higher_is_better else -standing.mean, standing.spread)


@dataclass(frozen=True)
class Contender:
    """A system's cost, between a lowest and a highest figure (the same where it was measured), and its
    quality by task."""

    system: str
    low: float
    high: float
    quality: Mapping[str, Quality] = field(default_factory=dict)


def cheaper(one: Contender, other: Contender) -> bool:
    """By more than measurements of the same thing may differ."""
    return one.high <= FASTER * other.low


def better(one: Contender, other: Contender) -> list[str]:
    """The tasks in which the difference is to the advantage of `one`, and larger than the spread."""
    return [
        task for task, own in one.quality.items()
        if (theirs := other.quality.get(task)) is not None
        and own.mean > theirs.mean
        and not tie(own.mean, own.spread, theirs.mean, theirs.spread)
    ]  # fmt: skip


def beats(one: Contender, other: Contender) -> bool:
    """Whether `one` is worse in nothing and better in something. Without a task in common, nobody beats."""
    if not one.quality.keys() & other.quality.keys():
        return False
    worse = cheaper(other, one) or better(other, one)
    return not worse and (cheaper(one, other) or bool(better(one, other)))


def beaten_by(contenders: Sequence[Contender]) -> dict[str, list[str]]:
    """Each system's superiors; the front are those that have none."""
    return {each.system: [other.system for other in contenders if beats(other, each)] for each in contenders}
