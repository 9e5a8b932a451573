"""What ranks hand each other, and how gradients come back: thin, differentiable uses of torch.distributed.

Each starts its collective at once and gives a `Pending`; what does not depend on it is computed before
`wait`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

Pending = Callable[[], Tensor]
"""Wait for what was asked for, and have it."""

# torch 2.13 gave these two new names, and speaks up about the old ones.
_RENAMED = hasattr(dist, "all_gather_single")
_all_gather = dist.all_gather_single if _RENAMED else dist.all_gather_into_tensor
_reduce_scatter = dist.reduce_scatter_single if _RENAMED else dist.reduce_scatter_tensor


def gather(part: Tensor, group: dist.ProcessGroup) -> Pending:
    """The parts of all ranks [ranks, …]."""
    ranks, part = group.size(), part.contiguous()
    parts = part.new_empty(ranks, *part.shape)
    work = _all_gather(parts.flatten(0, 1), part, group=group, async_op=True)

    def wait() -> Tensor:
        work.wait()
        return parts

    return wait


def turn(part: Tensor, group: dist.ProcessGroup, *, tag: int = 0) -> Pending:
    """What the rank before this one in the ring has; this one's goes to the next. Turns that are under way
    at the same time have tags of their own."""
    rank, ranks, part = group.rank(), group.size(), part.contiguous()
    if ranks == 1:  # nobody sends to itself
        return lambda: part
    got = torch.empty_like(part)
    works = dist.batch_isend_irecv(
        [
            dist.P2POp(dist.isend, part, group=group, tag=tag, group_peer=(rank + 1) % ranks),
            dist.P2POp(dist.irecv, got, group=group, tag=tag, group_peer=(rank - 1) % ranks),
        ]
    )

    def wait() -> Tensor:
        for work in works:
            work.wait()
        return got

    return wait


class Gathered(torch.autograd.Function):
    """Every rank's rows, one behind the other; a row's gradient is the sum of all ranks' (reduce-scatter)."""

    @staticmethod
    def forward(ctx, part: Float[Tensor, "b g n d"], group: dist.ProcessGroup):
        ctx.group = group
        return gather(part, group)().permute(1, 2, 0, 3, 4).flatten(2, 3)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        ranks = ctx.group.size()
        by_rank = grad.unflatten(2, (ranks, -1)).permute(2, 0, 1, 3, 4).contiguous()
        own = torch.empty_like(by_rank[0])
        _reduce_scatter(own, by_rank.flatten(0, 1), group=ctx.group)
        return own, None


class HeadsForRows(torch.autograd.Function):
    """From all heads of this rank's rows to this rank's heads of all rows, or the other way (all-to-all)."""

    @staticmethod
    def forward(ctx, x: Float[Tensor, "b h n d"], group: dist.ProcessGroup, back: bool):
        ctx.group, ctx.back = group, back
        return _rows_for_heads(x, group) if back else _heads_for_rows(x, group)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        swap = _heads_for_rows if ctx.back else _rows_for_heads
        return swap(grad, ctx.group), None, None


def _heads_for_rows(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    sent = x.unflatten(1, (group.size(), -1)).permute(1, 0, 2, 3, 4).contiguous()
    return _swapped(sent, group).permute(1, 2, 0, 3, 4).flatten(2, 3)


def _rows_for_heads(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    sent = x.unflatten(2, (group.size(), -1)).permute(2, 0, 1, 3, 4).contiguous()
    return _swapped(sent, group).permute(1, 0, 2, 3, 4).flatten(1, 2)


def _swapped(sent: Float[Tensor, "ranks b h n d"], group: dist.ProcessGroup) -> Tensor:
    got = torch.empty_like(sent)
    dist.all_to_all_single(got.flatten(0, 1), sent.flatten(0, 1), group=group)
    return got
