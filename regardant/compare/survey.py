"""From what is on file to candidates for a need, measuring what is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from regardant.compare.cost import Cost
from regardant.compare.journal import Journal
from regardant.compare.on_file import JOURNAL, OnFile
from regardant.compare.outlook import outlook
from regardant.compare.pick import Candidate, Need, impossible
from regardant.compare.workload import Setting, kind_of, resolve
from regardant.core.errors import require
from regardant.core.supports import Supports

LADDER = (8, 4, 2, 1)
"""Lengths to measure, as parts of the one asked for: what takes too long is extrapolated from the others."""

NEAR, FAR, FARTHER = (64, 8, 1), (64, 16, 4), 8192
"""The same for decoding up to `FARTHER` tokens, and beyond: all tokens before must be read first."""

SHORTEST = 64


def sequences(known: OnFile, names: Iterable[str], *, named: bool) -> list[str]:
    """Those that mix sequences. Of systems that were `named`, any other is an error; what is on file may be
    of systems that are no more."""
    found = []
    for name in names:
        try:
            kinds = {kind_of(part) for part in known.parts_of(name)}
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


def candidates(known: OnFile, names: Sequence[str], need: Need) -> list[Candidate]:
    """What is declared and on file of each system."""
    return [_candidate(known, name, need) for name in names]


def _candidate(known: OnFile, name: str, need: Need) -> Candidate:
    declared = [getattr(resolve(part), "supports", Supports()) for part in known.parts_of(name)]
    state = outlook(known.figures(name, "decode", "state_bytes"), need.length) if need.decode else None
    return Candidate(
        name,
        causal=all(each.causal for each in declared),
        noncausal=all(each.noncausal for each in declared),
        decodes=all(each.step for each in declared),
        time=outlook(known.figures(name, need.phase, "seconds"), need.length),
        peak=outlook(known.figures(name, need.peak_phase, "bytes"), need.length),
        state=state,
        quality=known.quality.get(name, {}),
        unmeasured=known.failed.get(name, ""),
    )


def measure_missing(
    known: OnFile, names: Sequence[str], need: Need, setting: Setting, folder: Path, *,
    budget: float, longest: float, progress: Callable[[int, int, str], None],
) -> None:  # fmt: skip
    """Measure what a need asks for and is not on file, into the folder's journal and `known`.

    Layouts of several systems are measured by comparisons alone.
    """
    positions = NEAR if need.length <= FARTHER else FAR
    missing = {each.system: _missing(need, each) for each in candidates(known, names, need)}
    missing = {name: own for name, own in missing.items() if own and len(known.parts_of(name)) == 1}
    if not missing:
        return
    cost = Cost(Journal(folder / JOURNAL), budget=budget, longest=longest, progress=progress)
    for name, phases in missing.items():
        try:
            measured = cost.measure(
                [replace(setting, system=name)], phases=phases, memory=need.memory is not None,
                lengths=_parts(need.length, LADDER), positions=_parts(need.length, positions),
            )  # fmt: skip
        except (RuntimeError, ValueError) as error:
            # One system that fails must not keep the others from being ranked.
            known.failed[name] = f"failed: {str(error).splitlines()[0]}"
            continue
        known.add_measurements(measured)


def _missing(need: Need, candidate: Candidate) -> list[str]:
    """The phases of which a figure is not on file, of a system that could serve at all."""
    if impossible(need, candidate):
        return []
    phases = {need.phase} if candidate.time is None else set()
    if need.memory is not None and candidate.memory is None:
        phases.add(need.peak_phase)
    return sorted(phases)


def _parts(length: int, of: Sequence[int]) -> list[int]:
    return sorted({max(min(length, SHORTEST), length // part) for part in of})
