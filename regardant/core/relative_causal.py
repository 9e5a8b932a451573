"""Causal softmax attention with a learned vector a distance, in blocks of rows, with a way back of its own.

    S_ij = (q_i·k_j + a_i·E[j - i]) · scale, j ≤ i        P = softmax(S)        O = P V

A block of m rows has n keys, up to the last row's own. The products X = A Eᵀ with the vectors of the n
distances are written where, read askew, they are the logits (`regardant.core.relative_logits`): m rows of
n + 1 numbers, the first of which means nothing, are behind their first m numbers m rows of n. The products
with the keys are added to them. On the way back such memory, read both ways, holds dS and dX, and all but dV
are scaled:

    dV = Pᵀ dO    dS = softmax's own way back of dO Vᵀ    dQ = dS K    dA = dX E    dK = dSᵀ Q    dE = dXᵀ A

Of a long sequence P is made again; of a short one it is kept.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

ROWS = 128, 256
"""In a block, where weights are made again and where they are kept."""
softmax_backward = torch.ops.aten._softmax_backward_data
SHORT = 128
"""The longest sequence that is one block without a way back of its own."""
KEPT = 2**22
"""Weights that are kept, in all heads together."""


def relative_causal(
    q: Float[Tensor, "b h n d"], asked: Float[Tensor, "b h n d"] | None, k: Float[Tensor, "b h n d"],
    v: Float[Tensor, "b h n e"], table: Float[Tensor, "#h p d"], *, scale: float = 1.0,
) -> Float[Tensor, "b h n e"]:  # fmt: skip
    """`q` meets the keys and `asked` the table; None: q meets both. The table's last row is for the token
    itself, its first for all that is farther back."""
    dtype, (batch, heads, n, _) = q.dtype, q.shape
    exact = torch.promote_types(dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        q, k, v = (_flat(x.to(exact)) for x in (q, k, v))
        asked = None if asked is None else _flat(asked.to(exact))
        rows = _flat(table.to(exact).expand(1, heads, -1, -1))
        attend = _short if n <= SHORT else _RelativeCausal.apply
        return attend(q, asked, k, v, rows, scale, batch).view(batch, heads, n, -1).to(dtype)


def _short(
    q: Float[Tensor, "s n d"], asked: Float[Tensor, "s n d"] | None, k: Float[Tensor, "s n d"],
    v: Float[Tensor, "s n e"], rows: Float[Tensor, "h p d"], scale: float, batch: int,
) -> Float[Tensor, "s n e"]:  # fmt: skip
    """In one block, with torch's own way back: so small that calls cost more than memory."""
    n = q.shape[1]
    products = pad(torch.bmm(q if asked is None else asked, _near(rows, n, batch)[0].mT), (1, 0))
    logits = products.flatten(1)[:, n:].unflatten(1, (n, n))
    logits = torch.baddbmm(logits, q, k.mT, beta=scale, alpha=scale)
    later = torch.ones(n, n, dtype=torch.bool, device=q.device).triu_(1)
    return torch.bmm(logits.masked_fill_(later, -torch.inf).softmax(-1), v)


class _RelativeCausal(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, asked, k, v, rows, scale, batch):
        n, asks = q.shape[1], q if asked is None else asked
        keep = len(q) * n * n <= KEPT
        out, kept = v.new_empty(len(q), n, v.shape[2]), []
        for begin in range(0, n, ROWS[keep]):
            end = min(begin + ROWS[keep], n)
            weights = _weights(q, asks, k, _near(rows, end, batch)[0], begin, end, scale)
            torch.bmm(weights, v[:, :end], out=out[:, begin:end])
            if keep:
                kept.append(weights)
        ctx.save_for_backward(q, asked, k, v, rows, *kept)
        ctx.scale, ctx.batch = scale, batch
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        q, asked, k, v, rows, *kept = ctx.saved_tensors
        n, scale, batch = q.shape[1], ctx.scale, ctx.batch
        asks = q if asked is None else asked
        grad_q, grad_asked = torch.empty_like(q), None if asked is None else torch.empty_like(q)
        grad_rows, size = torch.zeros_like(rows), ROWS[bool(kept)]
        for begin in reversed(range(0, n, size)):  # the last block first: it has met every key
            end = min(begin + size, n)
            mine, its, near = slice(begin, end), slice(0, end), _near(rows, end, batch)
            weights = kept[begin // size] if kept else _weights(q, asks, k, near[0], begin, end, scale)
            grad_i = grad_out[:, mine]
            products, logits = _room(q, end - begin, end)
            grad_weights = torch.bmm(grad_i, v[:, its].mT)
            logits.copy_(softmax_backward(grad_weights, weights, -1, weights.dtype))
            grad_q[:, mine].baddbmm_(logits, k[:, its], beta=0, alpha=scale)
            if grad_asked is None:
                grad_q[:, mine].baddbmm_(products, near[0], alpha=scale)
            else:
                grad_asked[:, mine].baddbmm_(products, near[0], beta=0, alpha=scale)
            if end == n:
                grad_k = torch.baddbmm(q.new_empty(()), logits.mT, q[:, mine], beta=0, alpha=scale)
                grad_v = torch.bmm(weights.mT, grad_i)
            else:
                grad_k[:, its].baddbmm_(logits.mT, q[:, mine], alpha=scale)
                grad_v[:, its].baddbmm_(weights.mT, grad_i)
            by_row = torch.baddbmm(q.new_empty(()), products.mT, asks[:, mine], beta=0, alpha=scale)
            by_row = by_row if batch == 1 else by_row.unflatten(0, (batch, -1)).sum(0)
            if near[1] is None:
                grad_rows[:, -end:] += by_row
            else:
                grad_rows.index_add_(1, near[1], by_row)
        return grad_q, grad_asked, grad_k, grad_v, grad_rows, None, None


def _weights(
    q: Float[Tensor, "s n d"], asked: Float[Tensor, "s n d"], k: Float[Tensor, "s n d"],
    near: Float[Tensor, "s n d"], begin: int, end: int, scale: float,
) -> Float[Tensor, "s m n"]:  # fmt: skip
    """P of the rows `begin` … `end`, for the keys up to there."""
    products, logits = _room(q, end - begin, end)
    products.baddbmm_(asked[:, begin:end], near.mT, beta=0)
    logits = torch.baddbmm(logits, q[:, begin:end], k[:, :end].mT, beta=scale, alpha=scale)
    later = torch.ones(end - begin, end - begin, dtype=torch.bool, device=q.device).triu_(1)
    logits[..., begin:].masked_fill_(later, -torch.inf)
    return logits.softmax(-1)


def _near(rows: Float[Tensor, "h p d"], end: int, batch: int) -> tuple[Tensor, Tensor | None]:
    """The vectors of the distances 1 - `end` … 0; and which rows of the table they are, if not its last."""
    which, beyond = None, end - rows.shape[1]
    if beyond <= 0:
        near = rows[:, -beyond:]
    else:
        which = (torch.arange(end, device=rows.device) - beyond).clamp(min=0)
        near = rows[:, which]
    return (near if batch == 1 else near.repeat(batch, 1, 1)), which


def _room(
    like: Float[Tensor, "s n d"], rows: int, keys: int
) -> tuple[Float[Tensor, "s m n"], Float[Tensor, "s m n"]]:
    """Memory for numbers by row and distance, and the same memory by row and key."""
    room = like.new_empty(len(like), rows * (keys + 1))
    room[:, :rows] = 0
    return room.unflatten(-1, (rows, keys + 1))[..., 1:], room[:, rows:].unflatten(-1, (rows, keys))


def _flat(x: Float[Tensor, "b h n w"]) -> Float[Tensor, "b*h n w"]:
    return x.reshape(-1, *x.shape[2:])
