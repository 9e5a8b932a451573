"""What papers print about the size of their models, as they print it: "31M", "5.6G".

On a card:

    [figures]
    "maxvit_tiny" = { parameters = "31M", multiply_adds = "5.6G" }
    "hat_base" = { parameters = "20.8M", multiply_adds = "102.4G", side = 64, note = "why ours differ" }

`side` is that of the square image that the multiply-adds are for, 224 unless said; `fused = true` says that
the paper counts what `fuse()` leaves of the network. `note` says how the paper counts, where ours differ by
more than a percent and by more than the paper's last digit can tell.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from regardant.core.errors import require

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
TOLERANCE = 0.01
SIDE = 224
PRINTED = ("parameters", "multiply_adds")


@dataclass(frozen=True)
class Printed:
    """A number as it stands in a paper."""

    text: str

    def __post_init__(self) -> None:
        require(
            re.fullmatch(r"\d+(\.\d+)?[KMG]?", self.text) is not None,
            f"a figure is {self.text!r}, but it is a number with K, M or G behind it, like '5.6G'",
        )

    @cached_property
    def unit(self) -> int:
        return UNITS[self.text.lstrip("0123456789.")]

    @cached_property
    def value(self) -> float:
        return float(self.text.rstrip("KMG")) * self.unit

    @property
    def rounding(self) -> float:
        """Half a unit of the last digit."""
        decimals = len(self.text.rstrip("KMG").partition(".")[2])
        return 0.5 * 10**-decimals * self.unit

    def difference(self, found: float) -> float:
        """By which share `found` is more."""
        return found / self.value - 1

    def agrees(self, found: float) -> bool:
        """To a percent, or to the last digit that is printed."""
        return abs(found - self.value) <= max(TOLERANCE * self.value, self.rounding * (1 + 1e-9))


@dataclass(frozen=True)
class PaperFigures:
    """One model's."""

    parameters: Printed | None = None
    multiply_adds: Printed | None = None
    side: int = SIDE
    fused: bool = False
    note: str = ""

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> PaperFigures:
        """From a card's entry."""
        known = [each.name for each in fields(cls)]
        unknown = sorted(set(entry) - set(known))
        require(
            not unknown,
            f"the figures of a variant hold {', '.join(unknown)}, but they are {', '.join(known)}",
        )
        require(
            any(name in entry for name in (*PRINTED, "note")),
            "the figures of a variant hold no parameters, multiply_adds or note",
        )
        printed = {name: Printed(entry[name]) for name in PRINTED if name in entry}
        return cls(**{**entry, **printed})

    def as_entry(self) -> dict[str, str | int | bool]:
        """What a card holds: all that is not as it is where nothing is said."""
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        return {
            name: value.text if isinstance(value, Printed) else value
            for name, value in given.items()
            if value not in (None, "", False) and (name, value) != ("side", SIDE)
        }
