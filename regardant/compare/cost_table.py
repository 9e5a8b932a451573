"""Cost measurements as tables for people: one for each phase."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from regardant.compare.measurement import Measurement, growth
from regardant.compare.table import NONE, Table

YARDSTICK = "softmax"
LEFT_OUT = "left out"


def tables(measurements: Iterable[Measurement]) -> list[Table]:
    """Forward, forward with backward, and decoding, as far as they were measured."""
    by_phase: dict[str, dict[str, list[Measurement]]] = {}
    for each in measurements:
        by_phase.setdefault(each.phase, {}).setdefault(each.system, []).append(each)
    titles = {"forward": "forward, ms", "backward": "forward and backward, ms"}
    found = [_runs(title, by_phase[phase]) for phase, title in titles.items() if phase in by_phase]
    return found + ([_decoding(by_phase["decode"])] if "decode" in by_phase else [])


def _runs(title: str, systems: dict[str, list[Measurement]]) -> Table:
    lengths = sorted({each.length for own in systems.values() for each in own})
    with_memory = any(each.quantity == "bytes" for own in systems.values() for each in own)
    columns = ("system", *(f"{length:,}" for length in lengths), "time ~ n^", "at the end", "faster from")
    if with_memory:
        columns += (f"MB at {lengths[-1]:,}", "memory ~ n^")
    rows = []
    for name, own in systems.items():
        phase, times, sizes = own[0].phase, _by_length(own, "seconds"), _by_length(own, "bytes")
        row = [name, *(_milliseconds(times.get(length)) for length in lengths)]
        row += [*_growth(own, phase, "seconds"), _crossover(times, systems.get(YARDSTICK), name)]
        if with_memory:
            row += [_megabytes(sizes.get(lengths[-1])), _growth(own, phase, "bytes")[0]]
        rows.append(tuple(row))
    absent = [
        each for own in systems.values() for each in own if each.left_out and each.quantity == "seconds"
    ]
    notes = [f"{LEFT_OUT}: {each.system} at {each.length:,}, {each.left_out}." for each in absent]
    return Table(title, columns, tuple(rows), tuple(notes))


def _decoding(systems: dict[str, list[Measurement]]) -> Table:
    positions = sorted({each.length for own in systems.values() for each in own})
    columns = ("system", *(f"{at:,}" for at in positions), "last / first", "state, kB", "last / first")
    rows = []
    for name, own in systems.items():
        steps = [_by_length(own, "seconds").get(at) for at in positions]
        row = [name, *(NONE if step is None else f"{step.seconds * 1e6:.0f}" for step in steps)]
        first, last = steps[0], steps[-1]
        if first is None or last is None:
            row += [NONE] * 3
        else:
            row += [f"{last.seconds / first.seconds:.2f}", f"{last.bytes / 1e3:.1f}"]
            row.append(f"{last.bytes / first.bytes:.2f}" if first.bytes else NONE)
        rows.append(tuple(row))
    return Table("decoding: µs a token, behind so many", columns, tuple(rows))


def _by_length(own: Sequence[Measurement], quantity: str) -> dict[int, Measurement]:
    return {each.length: each for each in own if each.quantity == quantity}


def _growth(own: Sequence[Measurement], phase: str, quantity: str) -> tuple[str, str]:
    """The exponent over all lengths, and between the last two."""
    found = growth(own, phase=phase, quantity=quantity)
    return (NONE, NONE) if found is None else (str(found), f"{found.last:.2f}")


def _milliseconds(entry: Measurement | None) -> str:
    if entry is None:
        return NONE
    return LEFT_OUT if entry.left_out else f"{entry.seconds * 1e3:.3g}"


def _megabytes(entry: Measurement | None) -> str:
    if entry is None:
        return NONE
    return LEFT_OUT if entry.left_out else f"{entry.bytes / 1e6:.1f}"


def _crossover(times: dict[int, Measurement], yardstick: Sequence[Measurement] | None, name: str) -> str:
    """The shortest length from which on the system always took at most 95% of softmax's time."""
    if yardstick is None or name == YARDSTICK:
        return NONE
    theirs = _by_length(yardstick, "seconds")
    both = [n for n in sorted(times) if n in theirs and None not in (times[n].best, theirs[n].best)]
    slower = [n for n in both if times[n].best > 0.95 * theirs[n].best]
    faster = [n for n in both if not slower or n > slower[-1]]
    return f"{faster[0]:,}" if faster else "never here"
