"""One measured figure, with all that must be said for it to mean something."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Self

import torch

from regardant.atlas import catalog, source
from regardant.compare.clock import Timing
from regardant.compare.growth import Growth, fit
from regardant.compare.machine import machine, versions
from regardant.compare.spec import Spec
from regardant.compare.workload import Setting, kind_of, resolve


@dataclass(frozen=True)
class Measurement:
    """A quantity ("seconds" or "bytes") of a system in a phase at a length.

    `seconds` and `best` are of one call, the median and the fastest of the repetitions. `bytes` is the
    rise of the peak memory; in decoding, where `length` is the tokens before, the size of the state.
    """

    system: str
    kind: str
    phase: str
    quantity: str
    length: int
    dim: int
    heads: int
    batch: int
    causal: bool
    dtype: str
    device: str
    seed: int
    threads: int
    machine: str
    code: str
    versions: dict[str, str]
    seconds: float | None = None
    best: float | None = None
    repetitions: int | None = None
    bytes: int | None = None
    left_out: str | None = None
    date: str = ""

    @classmethod
    def blank(cls, setting: Setting, phase: str, quantity: str, length: int) -> Self:
        """What is to be measured, without the figures."""
        return cls(
            **setting.asdict(), kind=kind_of(setting.system), phase=phase, quantity=quantity, length=length,
            threads=torch.get_num_threads(), machine=machine(setting.device), code=code(setting.system),
            versions=versions(),
        )  # fmt: skip

    @property
    def identity(self) -> tuple[object, ...]:
        """What must be equal for one measurement to stand for another."""
        found = ("versions", "seconds", "best", "repetitions", "bytes", "left_out", "date")
        asked = (getattr(self, field.name) for field in fields(self) if field.name not in found)
        return (*asked, *sorted(self.versions.items()))

    def filled(self, *, timing: Timing | None = None, size: int | None = None) -> Self:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        if timing is None:
            return replace(self, bytes=size, date=now)
        given = dict(seconds=timing.median, best=timing.best, repetitions=timing.repetitions)
        return replace(self, **given, bytes=size, date=now)


@cache
def code(name: str) -> str:
    """Changes with the code of the system and of the core under it: older figures are not its own."""
    name = Spec.of(name).name
    if ":" in name:
        return sha256(Path(sys.modules[resolve(name).__module__].__file__).read_bytes()).hexdigest()[:16]
    core = sorted(path.stem for path in (catalog.PACKAGE / "core").glob("*.py") if path.stem != "__init__")
    modules = [catalog.system(name).module, *(f"regardant.core.{stem}" for stem in core)]
    return sha256(" ".join(map(source.fingerprint, modules)).encode()).hexdigest()[:16]


NOISE = 2**20
"""Bytes. The system counts a process's pages by processor, and knows their sum only so well."""


def growth(measurements: Iterable[Measurement], *, phase: str, quantity: str) -> Growth | None:
    """How a system's time (of the least disturbed repetition) or memory (above the noise) grows.

    None where there are less than two points.
    """
    points = [
        (each.length, each.best if quantity == "seconds" else each.bytes)
        for each in measurements
        if each.phase == phase and each.quantity == quantity
    ]
    least = NOISE if quantity == "bytes" else 0
    points = [(length, value) for length, value in points if value is not None and value > least]
    return fit(*zip(*points)) if len(points) > 1 else None
