"""Costs that come out the same on every run: counted floating-point operations and allocated bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import log

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from regardant.core.operations import flops as flops


def peak_bytes(call: Callable[[], object]) -> int:
    """The most bytes that a call holds allocated at once on the CPU, beyond what was there before.

    Every allocation and release of torch's allocator counts, those inside fused kernels too. What the
    call returns is held.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    changes = [
        event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"
    ]  # fmt: skip
    held = most = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        held += change.nbytes()
        most = max(most, held)
    return most


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def area_exponent(layers: Sequence[nn.Module], width: int, *, sides: tuple[int, int] = (28, 112)) -> float:
    """The power of the number of positions with which the work of layers on maps grows, between two sides."""
    small, large = (
        sum(flops(partial(layer, torch.zeros(1, side, side, width))) for layer in layers) for side in sides
    )
    return log(large / small) / log((sides[1] / sides[0]) ** 2)
