"""Softmax attention in a ring: keys and values go from rank to rank, queries stay.

At step s rank t holds the keys of rank t - s, attends to them alone, and merges what it finds with what it
has (`regardant.core.partial_softmax`). While it works, the next keys are on their way. Backward the keys go
round once more, and the gradients that they collect go with them and home. No rank ever holds more than two
ranks' keys; what is sent grows with the length.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from regardant.core.errors import require
from regardant.core.partial_softmax import merge, partial_attention, partial_gradients
from regardant.parallel.exchange import turn


def ring_attention(
    q: Float[Tensor, "b h n d"], k: Float[Tensor, "b g n d"], v: Float[Tensor, "b g n d"],
    *, group: dist.ProcessGroup, causal: bool, scale: float | None = None,
) -> Float[Tensor, "b h n d"]:  # fmt: skip
    """This rank's rows of softmax attention over the whole sequence, of which every rank holds n tokens."""
    require(
        q.shape[-1] == k.shape[-1] == v.shape[-1],
        f"q, k, v are {q.shape[-1]}, {k.shape[-1]}, {v.shape[-1]} wide, but in the ring they are alike",
    )
    return _RingAttention.apply(q, k, v, group, causal, q.shape[-1] ** -0.5 if scale is None else scale)


class _RingAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, group, causal, scale):
        exact = torch.promote_types(q.dtype, torch.float32) if q.device.type == "cpu" else q.dtype
        held = torch.stack([k, v])
        query, out, lse = q.to(exact), None, None
        for step in range(group.size()):
            pending = turn(held, group) if step < group.size() - 1 else None
            if (whole := _sees(step, group, causal)) is not None:
                part = partial_attention(query, *held.to(exact), scale=scale, causal=not whole)
                out, lse = part if out is None else merge([(out, lse), part])
            held = held if pending is None else pending()
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.group, ctx.causal, ctx.scale = group, causal, scale
        return out.to(q.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        q, k, v, out, lse = ctx.saved_tensors
        group = ctx.group
        held, query, grad_out = torch.stack([k, v]), q.to(out.dtype), grad_out.to(out.dtype)
        grad_q, grad_held = torch.zeros_like(query), torch.zeros_like(held, dtype=out.dtype)
        for step in range(group.size()):
            pending = turn(held, group) if step < group.size() - 1 else None
            if (whole := _sees(step, group, ctx.causal)) is not None:
                keys = held.to(out.dtype)
                parts = partial_gradients(
                    grad_out, query, *keys, out, lse, scale=ctx.scale, causal=not whole
                )  # fmt: skip
                grad_q += parts[0]
                grad_held += torch.stack(parts[1:])
            # After the last step one more turn brings every gradient to the rank that owns the keys.
            grad_held = turn(grad_held, group, tag=1)()
            held = held if pending is None else pending()
        return grad_q.to(q.dtype), grad_held[0].to(k.dtype), grad_held[1].to(v.dtype), None, None, None


def _sees(step: int, group: dist.ProcessGroup, causal: bool) -> bool | None:
    """Whether the keys at this step are all visible (True), up to the diagonal (False), or not at all."""
    if not causal or step > 0:
        return True if not causal or step <= group.rank() else None
    return False
