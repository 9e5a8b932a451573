"""Timing: interleaved repetitions, so that a slow spell of the machine falls on everything alike."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from statistics import quantiles
from time import perf_counter
from typing import TypeVar

import torch

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Timing:
    """Seconds a call: the median and the best of so many repetitions, and their quartiles."""

    median: float
    best: float
    repetitions: int
    quartiles: tuple[float, float]

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        if len(seconds) == 1:
            return cls(seconds[0], seconds[0], 1, (seconds[0], seconds[0]))
        low, middle, high = quantiles(seconds, n=4, method="inclusive")
        return cls(middle, min(seconds), len(seconds), (low, high))


def keep_freed_memory() -> None:
    """Have the C library keep what is freed for the next run, as torch's allocator does on a GPU.

    Left to itself, glibc gives the memory of large tensors back, and the system hands it out again page
    by page, filled with zeros: what is timed then is mostly that, and it grows by jumps.
    """
    if not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "mallopt"):
        return
    trim_threshold, mapped_chunks = -1, -4
    ctypes.CDLL(None).mallopt(trim_threshold, 2**31 - 1)
    ctypes.CDLL(None).mallopt(mapped_chunks, 0)


def wait_for(device: torch.device) -> Callable[[], None]:
    """What blocks until the device has done what it was asked to."""
    return (lambda: None) if device.type == "cpu" else (lambda: torch.accelerator.synchronize(device))


def clock(
    calls: Mapping[Key, Callable[[], object]], *, budget: float = 0.5, least: int = 3, most: int = 1000,
    device: torch.device | str = "cpu", warm: bool = False, lead: float = 0.0,
) -> Iterator[tuple[Key, Timing]]:  # fmt: skip
    """Each call's timing as soon as it is known: after `budget` seconds and `least` repetitions.

    The calls take turns. Each is warmed up first, twice where that is short, unless all are `warm`. With a
    `lead`, a turn begins with so many seconds of the same call that do not count: two libraries with pools
    of threads of their own disturb each other until the idle pool has gone to sleep.
    """
    synchronize = wait_for(torch.device(device))

    def once(call: Callable[[], object]) -> float:
        synchronize()
        start = perf_counter()
        call()
        synchronize()
        return perf_counter() - start

    if not warm:
        for call in calls.values():
            if once(call) < budget:
                once(call)
    seconds: dict[Key, list[float]] = {key: [] for key in calls}
    while seconds:
        for key, spent in list(seconds.items()):
            ahead = 0.0
            while ahead < lead and (not spent or spent[-1] < 10 * lead):
                ahead += once(calls[key])
            spent.append(once(calls[key]))
            if len(spent) >= most or (len(spent) >= least and sum(spent) >= budget):
                yield key, Timing.of(seconds.pop(key))
