"""What a rank sends: every collective of torch.distributed that is called while it watches.

with Traffic() as traffic:
    loss.backward()
traffic.steps, traffic.sent
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from regardant.core.errors import unknown


@dataclass(frozen=True)
class Exchange:
    """One call: `payload` is what this rank handed over, `sent` what leaves it for others."""

    name: str
    payload: int
    sent: float


@dataclass(frozen=True)
class Call:
    """A collective of torch.distributed: which of its arguments is sent, and how many times, among so many
    ranks, what is sent leaves a rank where the collective runs as well as it can."""

    name: str
    argument: int
    times: Callable[[int], float]


CALLS = {
    "_allgather_base_": Call("all_gather", 1, lambda ranks: ranks - 1),
    "allgather_": Call("all_gather", 1, lambda ranks: ranks - 1),
    "_reduce_scatter_base_": Call("reduce_scatter", 1, lambda ranks: (ranks - 1) / ranks),
    "alltoall_base_": Call("all_to_all", 1, lambda ranks: (ranks - 1) / ranks),
    "allreduce_": Call("all_reduce", 0, lambda ranks: 2 * (ranks - 1) / ranks),
    "broadcast_": Call("broadcast", 0, lambda ranks: 1),
    "send": Call("send", 0, lambda ranks: 1),
}
RECEIVES = {"recv_", "recv_any_source_", "barrier"}
"""What is received here was counted where it was sent."""


class Traffic(TorchDispatchMode):
    """Counts this rank's calls to collectives, in the way back, too."""

    def __init__(self) -> None:
        super().__init__()
        self.exchanges: list[Exchange] = []

    @property
    def steps(self) -> int:
        """Collectives, and sends from rank to rank: each has to wait for a network once."""
        return len(self.exchanges)

    @property
    def payload(self) -> int:
        """Bytes that this rank handed over."""
        return sum(each.payload for each in self.exchanges)

    @property
    def sent(self) -> int:
        """Bytes that leave this rank."""
        return round(sum(each.sent for each in self.exchanges))

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.__name__.partition(".")[0]
        if function.namespace == "c10d" and name not in RECEIVES:
            if name not in CALLS:
                raise unknown("collective", name, CALLS)
            call = CALLS[name]
            payload = sum(part.nbytes for part in _tensors(args[call.argument]))
            self.exchanges.append(Exchange(call.name, payload, payload * call.times(_ranks(args))))
        return function(*args, **(kwargs or {}))


def _ranks(args: Sequence[Any]) -> int:
    """Of the process group, the first of the arguments that is no tensor and no plain value."""
    boxed = next(each for each in args if isinstance(each, torch.ScriptObject))
    return dist.ProcessGroup.unbox(boxed).size()


def _tensors(value: Tensor | Sequence[Any]) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [part for each in value for part in _tensors(each)]
