"""What a system looks like in all figures and tables: a colour, a marker and a dash that are its own.

The baseline has the colour of ink. The others take the eight colours of `page/report.css` in their order,
which can be told apart under the common kinds of colour blindness too; from the ninth on, colours come again
with another marker and a dashed line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

COLOURS = 8
INK = 0
"""The baseline's slot; the colours have 1 to 8."""

MARKERS = (
    "circle", "square", "diamond", "triangle-up", "cross", "triangle-down", "hexagon", "star", "pentagon",
    "x", "hourglass", "bowtie",
)  # fmt: skip
DASHES = ("solid", "dash", "dot", "dashdot")


@dataclass(frozen=True)
class Look:
    """A slot of the palette, a marker and a dash, by plotly's names."""

    slot: int
    marker: str
    dash: str


def looks(names: Sequence[str], *, baseline: str) -> dict[str, Look]:
    """Each system's own look, by the order of the names."""
    others = [name for name in names if name != baseline]
    found = {
        name: Look(1 + place % COLOURS, MARKERS[1 + place % (len(MARKERS) - 1)], DASHES[place // COLOURS % 4])
        for place, name in enumerate(others)
    }
    return {baseline: Look(INK, MARKERS[0], DASHES[0])} | found
