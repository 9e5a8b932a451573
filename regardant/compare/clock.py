"""Timing: interleaved repetitions, so that a slow spell of the machine falls on everything alike."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import TypeVar

import torch

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Timing:
    """Seconds a call: the median and the best of so many repetitions."""

    median: float
    best: float
    repetitions: int

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        return cls(median(seconds), min(seconds), len(seconds))


def wait_for(device: torch.device) -> Callable[[], None]:
    """What blocks until the device has done what it was asked to."""
    return (lambda: None) if device.type == "cpu" else (lambda: torch.accelerator.synchronize(device))


def clock(
    calls: Mapping[Key, Callable[[], object]], *, budget: float = 0.5, least: int = 3, most: int = 1000,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[Key, Timing]]:  # fmt: skip
    """Each call's timing as soon as it is known: after `budget` seconds and `least` repetitions.

    The calls take turns. Each is warmed up first: twice, or once where one run takes the budget.
    """
    synchronize = wait_for(torch.device(device))

    def once(call: Callable[[], object]) -> float:
        synchronize()
        start = perf_counter()
        call()
        synchronize()
        return perf_counter() - start

    for call in calls.values():
        if once(call) < budget:
            once(call)
    seconds: dict[Key, list[float]] = {key: [] for key in calls}
    while seconds:
        for key, spent in list(seconds.items()):
            spent.append(once(calls[key]))
            if len(spent) >= most or (len(spent) >= least and sum(spent) >= budget):
                yield key, Timing.of(seconds.pop(key))
