"""What systems cost here: time and peak memory at growing lengths, and each token in decoding.

Every figure is a line of a journal, put there as soon as it is known. What the journal already has,
for the same setting, machine, versions and code, is not measured again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from time import perf_counter

import torch

from regardant.compare.clock import clock, wait_for
from regardant.compare.decoding import clock_steps
from regardant.compare.journal import Journal
from regardant.compare.measurement import Measurement
from regardant.compare.peak import OutOfMemory, PeakMeter, rise
from regardant.compare.workload import PHASES, Setting, Workload, decodes, settle
from regardant.core.errors import require

LENGTHS = (1024, 2048, 4096, 8192, 16384)
POSITIONS = (100, 1000, 10000)
LONGEST_RUN = 8.0
"""Seconds. A run that might take longer, going by the shorter ones, is left out and said to be."""

Progress = Callable[[int, int, str], None]


class Cost:
    """Measures into a journal, or finds there what was measured before."""

    def __init__(
        self, journal: Journal, *, budget: float = 0.4, progress: Progress = lambda done, total, text: None
    ):
        self.journal, self.budget, self.progress = journal, budget, progress
        self.known = {entry.identity: entry for entry in (Measurement(**line) for line in journal)}
        self.done = self.total = 0

    def measure(
        self, settings: Sequence[Setting], *, lengths: Sequence[int] = LENGTHS,
        positions: Sequence[int] = POSITIONS, phases: Sequence[str] = PHASES, memory: bool = True,
    ) -> list[Measurement]:  # fmt: skip
        """All figures that are asked for, system by system."""
        lengths, positions = sorted(set(lengths)), sorted(set(positions))
        check(lengths, positions, phases)
        quantities = ("bytes", "seconds") if memory else ("seconds",)
        wanted: dict[Setting, list[Measurement]] = {}
        for setting in map(settle, settings):
            asked = [(phase, quantity, n) for phase in phases for quantity in quantities for n in lengths
                     if phase != "decode"]  # fmt: skip
            if "decode" in phases and decodes(setting):
                asked += [("decode", "seconds", at) for at in positions]
            wanted[setting] = [Measurement.blank(setting, *each) for each in asked]
        self.done, self.total = 0, sum(map(len, wanted.values()))
        found = []
        with PeakMeter() as meter:
            for setting, blanks in wanted.items():
                found += self._system(setting, blanks, meter)
        return found

    def _system(self, setting: Setting, blanks: list[Measurement], meter: PeakMeter) -> list[Measurement]:
        missing = {(each.phase, each.quantity, each.length): each for each in blanks if each.identity not in self.known}
        self.done += len(blanks) - len(missing)
        self.progress(self.done, self.total, setting.system)
        found = {each.identity: self.known[each.identity] for each in blanks if each.identity in self.known}
        if missing:
            workload = Workload(setting)
            for phase in PHASES:
                here = {key[1:]: blank for key, blank in missing.items() if key[0] == phase}
                lengths = sorted({each.length for each in blanks if each.phase == phase})
                measure = self._steps if phase == "decode" else partial(self._runs, lengths=lengths, meter=meter)
                ...
        return [found[each.identity] for each in blanks]
