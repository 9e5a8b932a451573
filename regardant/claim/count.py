"""Costs that come out the same on every run: counted floating-point operations and allocated bytes."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode


def _fused(q, k, v, *_, out_shape=None, **__) -> int:
    """Scores and their product with the values, from the shapes."""
    *lead, m, d = q
    return 2 * prod(lead) * m * k[-2] * (d + v[-1])


def _fused_backward(grad, q, k, v, *_, out_shape=None, **__) -> int:
    """The scores again, and the gradients of weights, values, queries and keys."""
    *lead, m, d = q
    return 2 * prod(lead) * m * k[-2] * (3 * d + 2 * v[-1])


# torch's own table has the fused attentions of accelerators only: on a CPU they would count as nothing.
FUSED_ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _fused,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _fused_backward,
}


def flops(call: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and attentions in a call, twice the multiply-adds.

    Fused attention counts as all queries times all keys, causal or not.
    """
    with FlopCounterMode(display=False, custom_mapping=FUSED_ON_CPU) as counter:
        call()
    return counter.get_total_flops()


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
