"""What systems cost here: time and peak memory at growing lengths, and each token in decoding.

Every figure is a line of a journal, put there as soon as it is known. What the journal already has,
for the same setting, machine, versions and code, is not measured again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from time import perf_counter

import torch

from regardant.compare.clock import clock, keep_freed_memory, wait_for
from regardant.compare.decoding import clock_steps
from regardant.compare.journal import Journal
from regardant.compare.measurement import Measurement
from regardant.compare.peak import SHORT, OutOfMemory, PeakMeter, rise
from regardant.compare.workload import PHASES, Setting, Workload, decodes, settle
from regardant.core.errors import require

LENGTHS = (1024, 2048, 4096, 8192, 16384)
POSITIONS = (100, 1000, 10000)


class Cost:
    """Measures into a journal, or finds there what was measured before.

    A point has `budget` seconds of repetitions. A run that might take more than `longest` seconds, going
    by the shorter lengths, is left out, and said to be. `progress` hears how many figures are known, how
    many are asked for, and what is done now.
    """

    def __init__(
        self, journal: Journal, *, budget: float = 0.2, longest: float = 3.0,
        progress: Callable[[int, int, str], None] = lambda known, asked, now: None,
    ):  # fmt: skip
        self.journal, self.budget, self.longest, self.progress = journal, budget, longest, progress
        self.known = {entry.identity: entry for entry in (Measurement(**line) for line in journal)}
        self.asked: list[Measurement] = []

    def measure(
        self, settings: Sequence[Setting], *, lengths: Sequence[int] = LENGTHS,
        positions: Sequence[int] = POSITIONS, phases: Sequence[str] = PHASES, memory: bool = True,
    ) -> list[Measurement]:  # fmt: skip
        """All figures that are asked for, system by system."""
        _check(lengths, positions, phases)
        lengths, positions = sorted(set(lengths)), sorted(set(positions))
        quantities = ("bytes", "seconds") if memory else ("seconds",)
        wanted: dict[Setting, list[Measurement]] = {}
        for setting in map(settle, settings):
            runs = [(phase, quantity, length) for phase in phases if phase != "decode"
                    for quantity in quantities for length in lengths]  # fmt: skip
            if "decode" in phases and decodes(setting):
                runs += [("decode", "seconds", position) for position in positions]
            wanted[setting] = [Measurement.blank(setting, *run) for run in runs]
        self.asked = [blank for blanks in wanted.values() for blank in blanks]
        # All layers are made before any is measured: what is wrong with the last is told at once.
        workloads = {
            setting: Workload(setting)
            for setting, blanks in wanted.items()
            if not all(map(self._has, blanks))
        }
        keep_freed_memory()
        with PeakMeter() as meter:
            for setting, workload in workloads.items():
                self._measure(workload, wanted[setting], meter)
        return [self.known[blank.identity] for blank in self.asked]

    def _measure(self, workload: Workload, blanks: list[Measurement], meter: PeakMeter) -> None:
        self._tell(workload.setting.system)
        for phase in PHASES:
            here = [blank for blank in blanks if blank.phase == phase]
            if all(map(self._has, here)):
                continue
            if phase == "decode":
                self._decode(workload, here)
            else:
                self._run(workload, here, meter)

    def _run(self, workload: Workload, blanks: list[Measurement], meter: PeakMeter) -> None:
        """A phase at every length: the peaks one by one, then the times by turns."""
        by_quantity = {(blank.length, blank.quantity): blank for blank in blanks}
        calls, before, reason = {}, None, None
        workload.call(blanks[0].phase, SHORT)()
        for length in sorted({blank.length for blank in blanks}):
            size, time = by_quantity.get((length, "bytes")), by_quantity[length, "seconds"]
            reason = reason or self._too_long(before, length) or self._peak(workload, size, meter)
            if reason is not None:
                for blank in filter(None, (size, time)):
                    self.known.setdefault(blank.identity, replace(blank, left_out=reason))
                continue
            if self._has(time):
                before = (length, self.known[time.identity].best)
                continue
            calls[length] = workload.call(time.phase, length)
            before = (length, _once(calls[length], workload))
        for length, timing in clock(calls, budget=self.budget, device=workload.setting.device, warm=True):
            self._remember(by_quantity[length, "seconds"].filled(timing=timing))

    def _peak(self, workload: Workload, blank: Measurement | None, meter: PeakMeter) -> str | None:
        """Measure the peak memory, where it is asked for and not known; why there is none, or None."""
        if blank is None or self._has(blank):
            return None
        self._tell(f"{blank.system}: memory, {blank.phase}, {blank.length}")
        try:
            if blank.device == "cpu":
                size = meter.measure(workload.setting, blank.phase, blank.length, threads=blank.threads)
            else:
                size = rise(workload, blank.phase, blank.length)
        except (OutOfMemory, torch.OutOfMemoryError):
            return "it takes more memory than there is"
        self._remember(blank.filled(size=size))
        return None

    def _decode(self, workload: Workload, blanks: list[Measurement]) -> None:
        self._tell(f"{workload.setting.system}: decode")
        by_position = {blank.length: blank for blank in blanks}
        for position, (timing, size) in clock_steps(workload, list(by_position), budget=self.budget).items():
            self._remember(by_position[position].filled(timing=timing, size=size))

    def _too_long(self, before: tuple[int, float] | None, length: int) -> str | None:
        """Why a run is left out, going by the one before it and by quadratic growth; None where it is not."""
        if before is None:
            return None
        guess = before[1] * (length / before[0]) ** 2
        return f"a run might take {guess:.0f} s" if guess > self.longest else None

    def _has(self, blank: Measurement) -> bool:
        return blank.identity in self.known

    def _remember(self, entry: Measurement) -> None:
        self.known[entry.identity] = entry
        self.journal.append(asdict(entry))
        self._tell(f"{entry.system}: {entry.phase}, {entry.length}")

    def _tell(self, now: str) -> None:
        self.progress(sum(map(self._has, self.asked)), len(self.asked), now)


def _check(lengths: Sequence[int], positions: Sequence[int], phases: Sequence[str]) -> None:
    require(len(phases) > 0, f"phases is empty, but there are {', '.join(PHASES)}")
    for phase in phases:
        require(phase in PHASES, f"phases holds {phase!r}, but there are only {', '.join(PHASES)}")
    for name, given in (("lengths", lengths), ("positions", positions)):
        require(len(given) > 0, f"{name} is empty, but something must be measured")
        require(min(given) >= 1, f"{name} holds {min(given)}, but the shortest is 1")


def _once(call: Callable[[], object], workload: Workload) -> float:
    start = perf_counter()
    call()
    wait_for(torch.device(workload.setting.device))()
    return perf_counter() - start
