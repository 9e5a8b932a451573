"""A figure as plain data in plotly's terms, without a colour: the page's script adds those of the theme.

A trace names its system in `meta`; the script paints it, dims it while others are picked, and puts the labels
where there is room for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import floor, isfinite, log10
from typing import Any

from regardant.compare.report.look import Look

DIGITS = 4
"""Significant digits of what is drawn."""

MOST_TICKS = 8


@dataclass(frozen=True)
class Label:
    """A system's name at a point: at the end of its line, or beside its marker."""

    system: str
    x: float
    y: float
    text: str

    def drawn(self) -> dict[str, Any]:
        return {"system": self.system, "x": rounded(self.x), "y": rounded(self.y), "text": self.text}


@dataclass(frozen=True)
class Figure:
    """What is drawn, what it is called and what one must know to read it. `choice` is its name among the
    figures of its `group` that are shown one at a time; where `empty` says why there is nothing to draw,
    there are no traces."""

    name: str
    title: str
    caption: str = ""
    traces: Sequence[Mapping[str, Any]] = ()
    layout: Mapping[str, Any] = field(default_factory=dict)
    labels: Sequence[Label] = ()
    placing: str = "end"
    """Where labels stand: at the `end` of lines, in the right margin, or `beside` their points."""
    height: int = 400
    choice: str = ""
    group: str = ""
    empty: str = ""

    def drawn(self) -> dict[str, Any]:
        return {
            "data": list(self.traces),
            "layout": dict(self.layout),
            "labels": [label.drawn() for label in self.labels],
            "placing": self.placing,
            "height": self.height,
        }


@dataclass(frozen=True)
class Panel:
    """Figures under one heading: all of them in columns, or with `choose`, one at a time. Where there is no
    figure, the lead says why."""

    title: str
    lead: str
    figures: Sequence[Figure]
    choose: bool = False
    columns: int = 2

    @property
    def groups(self) -> list[tuple[str, list[str]]]:
        """The names to choose among, by group, in their order."""
        found: dict[str, list[str]] = {}
        for each in self.figures:
            found.setdefault(each.group, []).append(each.choice)
        return list(found.items())


def rounded(value: float | str | None) -> float | str | None:
    """To so many significant digits, for a small page; None for what is not finite. Categories stay."""
    if isinstance(value, str):
        return value
    if value is None or not isfinite(value):
        return None
    if value == 0:
        return 0
    short = round(value, DIGITS - 1 - floor(log10(abs(value))))
    return int(short) if short == int(short) and abs(short) < 1e15 else short


def numbers(values: Iterable[float | str | None]) -> list[float | str | None]:
    return [rounded(value) for value in values]


def line(
    system: str, look: Look, x: Sequence[float], y: Sequence[float], *, hover: str = "",
    faint: bool = False, dash: str | None = None, markers: bool = False, **more: Any,
) -> dict[str, Any]:  # fmt: skip
    """A line of a system; a faint one stands behind, for single seeds and fits."""
    trace = {
        "type": "scatter", "mode": "lines+markers" if markers else "lines", "name": system,
        "x": numbers(x), "y": numbers(y), "meta": {"system": system, "faint": faint},
        "line": {"dash": dash or look.dash, "width": 1.25 if faint else 2.25},
    }  # fmt: skip
    if markers:
        trace["marker"] = {"symbol": look.marker, "size": 8}
    return trace | _hovered(hover) | more


def points(
    system: str, look: Look, x: Sequence[float], y: Sequence[float | str], *, hover: str = "",
    open_: bool = False, size: int = 9, **more: Any,
) -> dict[str, Any]:  # fmt: skip
    """Markers of a system, filled or open."""
    return {
        "type": "scatter", "mode": "markers", "name": system, "x": numbers(x), "y": numbers(y),
        "meta": {"system": system, "faint": False},
        "marker": {"symbol": look.marker + ("-open" if open_ else ""), "size": size, "line": {"width": 1}},
    } | _hovered(hover) | more  # fmt: skip


def _hovered(template: str) -> dict[str, Any]:
    return {"hovertemplate": template + "<extra></extra>"} if template else {"hoverinfo": "skip"}


def bars(up: Sequence[float | None], down: Sequence[float | None] | None = None) -> dict[str, Any]:
    """Error bars: as far up and as far down; the same where only one is given."""
    shown = {"type": "data", "array": numbers(up), "thickness": 1.25, "width": 0}
    return shown | ({} if down is None else {"symmetric": False, "arrayminus": numbers(down)})


def logarithmic(
    title: str,
    values: Iterable[float],
    *,
    ticks: Sequence[float] = (),
    room: float = 0.06,
    plain: bool = False,
) -> dict[str, Any]:
    """A log axis around the values, with a little room. `ticks` are spelled with thousands; `plain` ticks are
    1, 2, 5 and their decades, or the decades alone where there are many."""
    exponents = [log10(value) for value in values if value > 0]
    low, high = min(exponents), max(exponents)
    more = room * (high - low) or 0.1
    low, high = low - more, high + more
    axis: dict[str, Any] = {"type": "log", "title": {"text": title}, "range": numbers((low, high))}
    if plain:
        wide = high - low
        digits = (1, 1.5, 2, 3, 5, 7) if wide < 0.9 else (1, 2, 5) if wide < 3.2 else (1,)
        decades = range(floor(low) - 1, floor(high) + 2)
        ticks = [digit * 10.0**k for k in decades for digit in digits if low <= log10(digit) + k <= high]
    if ticks:
        axis |= {"tickvals": numbers(ticks), "ticktext": [f"{tick:,.10g}" for tick in ticks]}
    return axis


def linear(title: str, values: Iterable[float], *, room: float = 0.06, **more: Any) -> dict[str, Any]:
    """A plain axis around the values, with a little room."""
    given = [value for value in values if isfinite(value)]
    low, high = min(given), max(given)
    wide = room * (high - low) or 0.05 * max(abs(high), 1e-3)
    return {"title": {"text": title}, "range": numbers((low - wide, high + wide))} | more


def ticks_for(values: Iterable[float]) -> list[float]:
    """Of a log axis of lengths: the values themselves, or powers of two among them where they are many."""
    found = sorted(set(values))
    if len(found) > MOST_TICKS:
        found = [2.0**k for k in range(40) if found[0] <= 2**k <= found[-1]]
    while len(found) > MOST_TICKS:
        found = found[::-1][::2][::-1]
    return found


def near(value: float, values: Sequence[float]) -> bool:
    """Whether a figure of these values may show this one too without being squeezed."""
    reach = max(values) - min(values)
    return min(values) - reach <= value <= max(values) + reach


def rule_at(axis: str, value: float, text: str) -> dict[str, Any]:
    """A dotted line across the figure, at a value of this axis, and what it means."""
    if axis == "x":
        ends = {"yref": "paper", "x0": value, "x1": value, "y0": 0, "y1": 1}
        label = {"textposition": "end", "textangle": 0, "xanchor": "left", "yanchor": "top"}
    else:
        ends = {"xref": "paper", "x0": 0, "x1": 1, "y0": value, "y1": value}
        label = {"textposition": "start"}
    return {"type": "line", "name": "rule", **ends, "label": {"text": text, **label}}


def panel(
    title: str, lead: str, figures: Sequence[Figure], nothing: str, *, choose: bool = False, columns: int = 2
) -> Panel:  # fmt: skip
    """A panel, or where none of its figures has anything to draw, the sentence `nothing` in their place."""
    if all(each.empty for each in figures):
        return Panel(title, nothing, ())
    return Panel(title, lead, figures, choose, columns)
