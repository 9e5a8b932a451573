"""One cost of a comparison: a layer at a length, its time and its peak memory, or a decoded token.

A layer of a layout is the mean of its parts, which are measured one by one (of the peak of a forward pass,
where one part is freed before the next runs, the largest).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from time import perf_counter
from typing import Any, Self

import torch

from regardant.compare.clock import clock, keep_freed_memory, wait_for
from regardant.compare.decoding import clock_steps
from regardant.compare.findings import System
from regardant.compare.peak import SHORT, OutOfMemory, PeakMeter, rise
from regardant.compare.workload import Setting, Workload, decodes


class LeftOut(Exception):
    """A cost that is not measured, with the outcome and the reason."""

    def __init__(self, outcome: str, reason: str):
        super().__init__(reason)
        self.outcome, self.reason = outcome, reason


@dataclass(frozen=True)
class Shape:
    """What the layers of a comparison are like, and how long to look at each."""

    dim: int
    heads: int
    device: str
    kind: str
    """Of the comparison: sequences are causal where a system can be; beside maps nothing is."""
    repeat: float = 0.1
    """Seconds of repetitions a point."""
    longest: float = 2.0
    """Seconds; what might take longer is left out."""

    def setting(self, spec: str) -> Setting:
        return Setting(
            spec, dim=self.dim, heads=self.heads, device=self.device, causal=self.kind == "sequence"
        )


class CostMeter:
    """Measures costs; holds the process that peaks are measured from. Use it as a context manager."""

    def __init__(self) -> None:
        self._peaks = PeakMeter()

    def __enter__(self) -> Self:
        keep_freed_memory()
        return self

    def __exit__(self, *failure: object) -> None:
        self._peaks.__exit__(*failure)

    def measure(
        self, system: System, shape: Shape, phase: str, length: int, before: tuple[int, float] | None = None
    ) -> dict[str, Any]:
        """What is found; raises `LeftOut`, or `ValueError` where the system does not take it.

        `before` is a shorter length and the seconds there, by which a run that takes too long is known.
        """
        if before is not None:
            guess = before[1] * (length / before[0]) ** 2
            if guess > shape.longest:
                raise LeftOut("skipped", f"a run might take more than {shape.longest:g} s")
        parts = [
            self._part(shape.setting(spec), shape, phase, length) for spec in system.specs or system.parts
        ]
        return _mean(parts, phase)

    def _part(self, setting: Setting, shape: Shape, phase: str, length: int) -> dict[str, Any]:
        workload = Workload(setting)
        if phase == "decode":
            if not decodes(workload.setting):
                raise LeftOut("skipped", f"{setting.system} does not decode step by step")
            timing, size = clock_steps(workload, [length], budget=shape.repeat, least=24)[length]
            return _times(timing) | {"state_bytes": size}
        try:
            size = self._peak(workload, phase, length)
        except RuntimeError:
            # It failed in a process of its own: here it says why.
            workload.call(phase, length)()
            raise
        workload.call(phase, SHORT)()
        call = workload.call(phase, length)
        began = perf_counter()
        output = call()
        wait_for(torch.device(setting.device))()
        once = perf_counter() - began
        if phase == "forward" and not output.isfinite().all():
            raise LeftOut("failed", f"its output at {length} tokens is not finite")
        least = 3 if once < shape.longest / 3 else 1
        _, timing = next(clock({0: call}, budget=shape.repeat, least=least, device=setting.device, warm=True))
        return _times(timing) | {"bytes": size}

    def _peak(self, workload: Workload, phase: str, length: int) -> int:
        try:
            if workload.setting.device == "cpu":
                threads = torch.get_num_threads()
                return self._peaks.measure(workload.setting, phase, length, threads=threads)
            return rise(workload, phase, length)
        except (OutOfMemory, torch.OutOfMemoryError) as error:
            raise LeftOut("no memory", "it takes more memory than there is") from error


def _times(timing: Any) -> dict[str, Any]:
    return {
        "seconds": timing.median, "spread": list(timing.quartiles), "best": timing.best,
        "repetitions": timing.repetitions,
    }  # fmt: skip


def _mean(parts: list[Mapping[str, Any]], phase: str) -> dict[str, Any]:
    if len(parts) == 1:
        return dict(parts[0])
    found: dict[str, Any] = {
        "seconds": fmean(part["seconds"] for part in parts),
        "spread": [fmean(ends) for ends in zip(*(part["spread"] for part in parts))],
        "best": fmean(part["best"] for part in parts),
        "repetitions": min(part["repetitions"] for part in parts),
    }
    size = "state_bytes" if phase == "decode" else "bytes"
    together = max if phase == "forward" else fmean
    return found | {size: round(together([part[size] for part in parts]))}
