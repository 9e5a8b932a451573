"""Floating-point operations of a call, the same on every run: counted, not timed."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
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
