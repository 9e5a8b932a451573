"""What a layer costs when its sequence is split over ranks: what it sends, and how long it takes.

These run on every rank (`regardant.parallel.processes.on_ranks`), so each begins with the mesh.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter, sleep
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from regardant.atlas.catalog import create
from regardant.parallel.linear import AllGather, Exchange, Ring, linear_over_ranks
from regardant.parallel.traffic import Traffic


@dataclass(frozen=True)
class Sent:
    """By one rank, in one pass forward and backward."""

    steps: int
    """Collectives, and sends from rank to rank."""
    payload: int
    """Bytes handed over."""
    sent: int
    """Bytes that leave the rank."""


def sent(
    mesh: DeviceMesh, system: str, layer: str, lengths: Sequence[int], *, dim: int, heads: int
) -> list[Sent]:
    """What a causal layer sends, length by length."""
    split, found = create(system, mesh=mesh), []
    mixer = create(layer, dim=dim, heads=heads, causal=True)
    for length in lengths:
        x = torch.randn(1, length // split.ranks, dim, requires_grad=True)
        with Traffic() as seen:
            split.mix(mixer, x).sum().backward()
        found.append(Sent(seen.steps, seen.payload, seen.sent))
    return found


def seconds(
    mesh: DeviceMesh, contestants: Sequence[tuple[str, str]], length: int, *, dim: int, heads: int,
    repetitions: int = 5,
) -> list[float]:  # fmt: skip
    """Median time of a causal layer, forward and backward, of each (system, layer), taken by turns."""
    calls = []
    for system, layer in contestants:
        split, mixer = create(system, mesh=mesh), create(layer, dim=dim, heads=heads, causal=True)
        x = torch.randn(1, length // split.ranks, dim, requires_grad=True)
        calls.append(lambda split=split, mixer=mixer, x=x: split.mix(mixer, x).sum().backward())
    return _by_turns(calls, mesh, repetitions)


class LateAllGather(AllGather):
    """Over a slow network: what was gathered is there so many seconds later."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def begin(self, own, first, fade, group, *, back):
        pending = super().begin(own, first, fade, group, back=back)

        def wait() -> tuple[Tensor, Tensor]:
            sleep(self.seconds)
            return pending()

        return wait


class LateRing(Ring):
    """Over a slow network: what is handed on arrives so many seconds later."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def hand_on(self, state, rank, group):
        sleep(self.seconds)
        super().hand_on(state, rank, group)


def over_a_slow_network(mesh: DeviceMesh, length: int, *, step: float, repetitions: int = 9) -> list[float]:
    """Median times of linear attention by LASP-2's exchange and by LASP's, with `step` seconds a step."""
    group, generator = mesh.get_group(), torch.Generator().manual_seed(mesh.get_local_rank())
    shape = (1, 2, length // mesh.size(), 16)
    inputs = [torch.randn(shape, generator=generator, requires_grad=True) for _ in range(3)]

    def run(exchange: Exchange) -> Callable[[], Any]:
        return lambda: linear_over_ranks(*inputs, group=group, exchange=exchange)[0].sum().backward()

    return _by_turns([run(LateAllGather(step)), run(LateRing(step))], mesh, repetitions)


@dataclass
class Watched:
    """LASP-2's exchange, and the seconds that the rank spent on handing over and on standing still."""

    seconds: float = 0.0

    def begin(self, own, first, fade, group, *, back):
        began = perf_counter()
        pending = AllGather().begin(own, first, fade, group, back=back)
        self.seconds += perf_counter() - began

        def wait() -> tuple[Tensor, Tensor]:
            began = perf_counter()
            found = pending()
            self.seconds += perf_counter() - began
            return found

        return wait


def waiting(
    mesh: DeviceMesh, length: int, *, heads: int, width: int, repetitions: int = 15
) -> tuple[float, float]:
    """Seconds that LASP-2's exchanges cost a rank, forward and backward: while it works on its own part, and
    with nothing else to do."""
    group, generator = mesh.get_group(), torch.Generator().manual_seed(mesh.get_local_rank())
    shape = (1, heads, length // mesh.size(), width)
    inputs = [torch.randn(shape, generator=generator, requires_grad=True) for _ in range(3)]
    own, fade = torch.randn(1, heads, width, width), torch.ones(heads, 1, 1)
    beside_work, alone = [], []
    for _ in range(repetitions + 2):
        dist.barrier(group)
        watched = Watched()
        linear_over_ranks(*inputs, group=group, exchange=watched)[0].sum().backward()
        beside_work.append(watched.seconds)
        dist.barrier(group)
        watched = Watched()
        for back in (False, True):
            watched.begin(own, own, fade, group, back=back)()
        alone.append(watched.seconds)
    return median(beside_work[2:]), median(alone[2:])


def _by_turns(calls: Sequence[Callable[[], Any]], mesh: DeviceMesh, repetitions: int) -> list[float]:
    """Each is begun by all ranks together and has ended when the last rank is through."""
    taken: list[list[float]] = [[] for _ in calls]
    for _ in range(repetitions + 1):
        for call, its in zip(calls, taken):
            dist.barrier(mesh.get_group())
            began = perf_counter()
            call()
            dist.barrier(mesh.get_group())
            its.append(perf_counter() - began)
    return [median(its[1:]) for its in taken]
