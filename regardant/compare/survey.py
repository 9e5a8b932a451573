"""From what is on file to candidates for a need, measuring what is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter

from regardant.compare.cost import Cost
from regardant.compare.journal import Journal
from regardant.compare.measurement import Measurement
from regardant.compare.on_file import JOURNAL, OnFile
from regardant.compare.outlook import outlook
from regardant.compare.pick import Candidate, Need, impossible
from regardant.compare.selection import check_options, kind_of_mixer
from regardant.compare.spec import Spec
from regardant.compare.workload import Setting, resolve
from regardant.core.errors import require
from regardant.core.supports import Supports

LADDER = (8, 4, 2, 1)
"""Lengths to measure, as parts of the one asked for: what takes too long is extrapolated from the others."""

FIRST = 4096
"""The longest length to begin with: it tells whether the next one would take too long."""

NEAR, FAR, FARTHER = (64, 8, 1), (64, 16, 4), 8192
"""The same for decoding up to `FARTHER` tokens, and beyond: all tokens before must be read first."""

VERY_FAR, FARTHEST = (64, 32, 16, 8), 2**16
"""And beyond `FARTHEST`, where they are read one position after the other, as long as that takes at most
`READING` times as long as a call may."""

READING = 10

SHORTEST = 64


def sequences(known: OnFile, names: Iterable[str], *, named: bool) -> list[str]:
    """Those that mix sequences. Of systems that were `named`, any other is an error; what is on file may be
    of systems that are no more, or that take other options now."""
    found = []
    for name in names:
        try:
            kinds = {_kind(part) for part in known.parts_of(name)}
        except ValueError:
            if named:
                raise
            continue
        if kinds == {"sequence"}:
            found.append(name)
        else:
            require(
                not named,
                f"{name!r} is of kind {' and '.join(sorted(kinds))}, but pick ranks sequence mixers",
            )
    return found


def _kind(spec: str) -> str:
    """Of a mixer whose options are seen to be such as it takes."""
    kind = kind_of_mixer(Spec.of(spec).name)
    check_options(spec)
    return kind


def candidates(known: OnFile, names: Sequence[str], need: Need) -> list[Candidate]:
    """What is declared and on file of each system."""
    return [_candidate(known, name, need) for name in names]


def _candidate(known: OnFile, name: str, need: Need) -> Candidate:
    times = known.figures(name, need.phase, "seconds")
    declared = [getattr(resolve(part), "supports", Supports()) for part in known.parts_of(name)]
    state = outlook(known.figures(name, "decode", "state_bytes"), need.length) if need.decode else None
    return Candidate(
        name,
        causal=all(each.causal for each in declared),
        noncausal=all(each.noncausal for each in declared),
        decodes=all(each.step for each in declared),
        time=outlook(times, need.length),
        measured_to=max(times, default=0),
        peak=outlook(known.figures(name, need.peak_phase, "bytes"), need.length),
        state=state,
        quality=known.quality.get(name, {}),
        unmeasured=known.failed.get(name, ""),
    )


def measure_missing(
    known: OnFile, names: Sequence[str], need: Need, setting: Setting, folder: Path, *,
    budget: float, longest: float, progress: Callable[[int, int, str], None],
) -> None:  # fmt: skip
    """Measure what a need asks for and is not on file, into the folder's journal and `known`; the parts of a
    layout instead of it."""
    missing = {each.system: _missing(need, each) for each in candidates(known, names, need)}
    missing = {name: own for name, own in missing.items() if own}
    if not missing:
        return
    cost = Cost(Journal(folder / JOURNAL), budget=budget, longest=longest, progress=progress)
    for name, phases in missing.items():
        settings = [replace(setting, system=part) for part in known.parts_of(name)]
        try:
            known.add_measurements(_measure(cost, settings, phases, need))
        except (RuntimeError, ValueError) as error:
            # One system that fails must not keep the others from being ranked.
            known.failed[name] = f"failed: {str(error).splitlines()[0]}"


def _measure(cost: Cost, settings: Sequence[Setting], phases: Sequence[str], need: Need) -> list[Measurement]:
    found, calls = [], [phase for phase in phases if phase != "decode"]
    if calls:
        memory, lengths = need.memory is not None, _lengths(need.length)
        found += cost.measure(settings, phases=calls, memory=memory, lengths=lengths)
    if "decode" in phases:
        found += _measure_decoding(cost, settings, need.length)
    return found


def _measure_decoding(cost: Cost, settings: Sequence[Setting], length: int) -> list[Measurement]:
    if length <= FARTHEST:
        positions = _parts(length, NEAR if length <= FARTHER else FAR)
        return cost.measure(settings, phases=["decode"], positions=positions)
    found, before, took = [], 0, 0.0
    for position in _parts(length, VERY_FAR):
        if before and took * (position / before) ** 2 > READING * cost.longest:
            break
        began = perf_counter()
        found += cost.measure(settings, phases=["decode"], positions=[position])
        before, took = position, perf_counter() - began
    return found


def _missing(need: Need, candidate: Candidate) -> list[str]:
    """The phases of which a figure is not on file, of a system that could serve at all."""
    if impossible(need, candidate):
        return []
    phases = {need.phase} if candidate.time is None else set()
    if need.memory is not None and candidate.memory is None:
        phases.add(need.peak_phase)
    return sorted(phases)


def _lengths(length: int) -> list[int]:
    """The ladder, with enough rungs below it to begin at `FIRST` or before."""
    parts = list(LADDER)
    while length // parts[0] > FIRST:
        parts.insert(0, 2 * parts[0])
    return _parts(length, parts)


def _parts(length: int, of: Sequence[int]) -> list[int]:
    return sorted({max(min(length, SHORTEST), length // part) for part in of})
