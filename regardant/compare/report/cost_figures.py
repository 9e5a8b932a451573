"""Cost against length: time and memory with fitted lines, on logarithmic axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from regardant.compare.crossing import FittedGrowth
from regardant.compare.findings import Cost, Findings
from regardant.compare.report.figure import (
    Figure,
    Label,
    Panel,
    bars,
    line,
    logarithmic,
    panel,
    points,
    ticks_for,
)
from regardant.compare.report.look import Look

PHASES = {"forward": "Forward", "backward": "Forward and backward", "decode": "Decoding"}

SCATTERED = 0.5
"""The standard error of an exponent that tells nothing about lengths beyond."""

MARKS = (
    "Markers are the least disturbed repetition, bars reach up to the upper quartile. Lines are fits of "
    "a·lengthᵖ, dashed where they go beyond what was measured; two points, or such that scatter, are not "
    "continued."
)
PEAK = (
    "Measured, not estimated: the rise of the process's peak, output included. Below a megabyte a process's "
    "pages are counted too coarsely for a fit."
)


def time(findings: Findings, looks: Mapping[str, Look]) -> Panel:
    figures = []
    for phase, choice in PHASES.items():
        scale, unit, of = (1e6, "µs", "a token") if phase == "decode" else (1e3, "ms", "a call")
        figures.append(
            _against_length(
                findings, looks, phase, "seconds", name=f"time-{phase}", choice=choice, scale=scale,
                unit=unit, title=f"{choice}: {unit} {of}", caption=MARKS,
            )
        )  # fmt: skip
    plan = findings.plan
    lead = (
        f"One layer of width {plan.dim} with {plan.heads} heads, timed on this machine. On these axes a "
        "slope of 1 is linear growth and a slope of 2 is quadratic."
    )
    nothing = "No time was measured in this comparison."
    return panel("Time against length", lead, figures, nothing, choose=True)


def memory(findings: Findings, looks: Mapping[str, Look]) -> Panel:
    figures = [
        _against_length(
            findings, looks, phase, quantity, name=f"memory-{phase}", choice=choice, scale=scale, unit=unit,
            title=f"{choice}, {unit}", caption=caption,
        )
        for phase, quantity, choice, scale, unit, caption in (
            ("forward", "bytes", "Peak, forward", 1e-6, "MB", PEAK),
            ("backward", "bytes", "Peak, forward and backward", 1e-6, "MB", PEAK),
            ("decode", "state_bytes", "Decoding state", 1e-3, "kB", "What a layer carries along."),
        )
    ]  # fmt: skip
    lead = (
        "How far the peak memory of a process of its own rises while the layer runs once; and the state that "
        "a layer carries from token to token in decoding."
    )
    nothing = "No memory was measured in this comparison."
    return panel("Memory against length", lead, figures, nothing, choose=True)


def _against_length(
    findings: Findings, looks: Mapping[str, Look], phase: str, quantity: str, *,
    name: str, choice: str, scale: float, unit: str, title: str, caption: str,
) -> Figure:  # fmt: skip
    growths = {
        each.system: each for each in findings.growths() if (each.phase, each.quantity) == (phase, quantity)
    }
    measured = {system: _measured(findings.costs_of(system, phase), quantity) for system in findings.names}
    measured = {system: own for system, own in measured.items() if own}
    if not measured:
        why = "No system's decoding was measured" if phase == "decode" else "This was not measured"
        return Figure(name, title, choice=choice, empty=f"{why} in this comparison.")
    lengths = sorted({length for own in measured.values() for length in own})
    traces, labels, heights = [], [], []
    for system, own in measured.items():
        look, values = looks[system], {length: scale * value for length, (value, _) in own.items()}
        grown, at_end = growths.get(system), max(own)
        if grown is not None:
            ends = lengths[-1] if _continues(grown) else at_end
            fitted = {
                length: scale * grown.factor * length**grown.exponent
                for length in lengths if min(own) <= length <= ends
            }  # fmt: skip
            inside = {length: value for length, value in fitted.items() if length <= at_end}
            beyond = {length: value for length, value in fitted.items() if length >= at_end}
            traces.append(line(system, look, list(inside), list(inside.values()), dash="solid"))
            if len(beyond) > 1:
                x, y = list(beyond), list(beyond.values())
                traces.append(line(system, look, x, y, dash="dash", faint=True))
            at_end, height = ends, fitted[ends]
        else:
            height = values[at_end]
        traces.append(_markers(system, look, own, scale, unit, grown, decoding=phase == "decode"))
        labels.append(Label(system, at_end, height, _ending(system, grown)))
        heights += [*values.values(), height]
    over = {"decode": "Tokens before, log scale"}.get(phase, "Length, tokens, log scale")
    layout = {
        "xaxis": logarithmic(over, lengths, ticks=ticks_for(lengths)),
        "yaxis": logarithmic(f"{unit}, log scale", heights, plain=True),
    }
    return Figure(name, title, caption, traces, layout, labels, choice=choice, height=460)


def _continues(grown: FittedGrowth) -> bool:
    """Whether a line may go on beyond what was measured: not from two points, nor where they scatter."""
    return grown.error is not None and grown.error <= SCATTERED


def _measured(costs: Sequence[Cost], quantity: str) -> dict[int, tuple[float, float | None]]:
    """Length → what is drawn, and the upper end of its bar."""
    if quantity == "seconds":
        return {
            each.length: (each.best, each.spread[1] if each.spread else None) for each in costs if each.best
        }
    return {each.length: (value, None) for each in costs if (value := getattr(each, quantity))}


def _markers(
    system: str, look: Look, own: Mapping[int, tuple[float, float | None]], scale: float, unit: str,
    grown: FittedGrowth | None, *, decoding: bool,
) -> dict:  # fmt: skip
    where = "behind %{x:,} tokens" if decoding else "at %{x:,} tokens"
    rate = "" if grown is None else f"<br>grows as length to the {grown}"
    hover = f"<b>{system}</b><br>%{{y:.3~g}} {unit} {where}{rate}"
    found = points(system, look, list(own), [scale * value for value, _ in own.values()], hover=hover, size=8)
    if any(upper is not None for _, upper in own.values()):
        up = [scale * max(0.0, (upper or value) - value) for value, upper in own.values()]
        found["error_y"] = bars(up, [0.0] * len(up))
    return found


def _ending(system: str, grown: FittedGrowth | None) -> str:
    return system if grown is None else f"{system}  n<sup>{grown.exponent:.2f}</sup>"
