"""Causal softmax attention with a learned vector a distance, in blocks of rows, with a way back of its own.

    S_ij = q_i·k_j + a_i·E[j - i], j ≤ i        P = softmax(S)        O = P V

A block of m rows has n keys, up to the last row's own. The products X = A Eᵀ with the vectors of the n
distances are written where, read askew, they are the logits (`regardant.core.relative_logits`): m rows of
n + 1 numbers, the first of which means nothing, are behind their first m numbers m rows of n. The products
with the keys are added to them in place. On the way back the same memory, read both ways, holds dS and dX:

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
    q: Float[Tensor, "b h n d"], asked: Float[Tensor, "b h n d"], k: Float[Tensor, "b h n d"],
    v: Float[Tensor, "b h n e"], table: Float[Tensor, "#h p d"],
) -> Float[Tensor, "b h n e"]:  # fmt: skip
    """`q` meets the keys and `asked` the table, both scaled as the logits are. The table's last row is for
    the token itself, its first for all that is farther back."""
    with torch.autocast(q.device.type, enabled=False):
        if q.shape[2] <= SHORT:
            return _short(q, asked, k, v, table)
        return _RelativeCausal.apply(q, asked, k, v, table)


def _short(q: Tensor, asked: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
    """The same in one block, with torch's own way back: so small that calls cost more than memory."""
    dtype, (batch, heads, n, _) = q.dtype, q.shape
    exact = torch.promote_types(dtype, torch.float32)
    q, asked, k, v = (_flat(x.to(exact)) for x in (q, asked, k, v))
    near, _ = _near(_flat(table.to(exact).expand(1, heads, -1, -1)), n, batch)
    products = pad(torch.bmm(asked, near.mT), (1, 0)).flatten(1)[:, n:].unflatten(1, (n, n))
    later = torch.ones(n, n, dtype=torch.bool, device=q.device).triu_(1)
    logits = torch.baddbmm(products, q, k.mT).masked_fill_(later, -torch.inf)
    return torch.bmm(logits.softmax(-1), v).view(batch, heads, n, -1).to(dtype)


class _RelativeCausal(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, asked, k, v, table):
        dtype, (batch, heads, n, _) = q.dtype, q.shape
        exact = torch.promote_types(dtype, torch.float32)
        q, asked, k, v = (_flat(x.to(exact)) for x in (q, asked, k, v))
        rows = _flat(table.to(exact).expand(1, heads, -1, -1))
        keep = batch * heads * n * n <= KEPT
        shape = (batch, heads, n, -1)
        out, kept = v.new_empty(len(q), n, v.shape[2]), []
        for begin in range(0, n, ROWS[keep]):
            end = min(begin + ROWS[keep], n)
            weights = _weights(q, asked, k, _near(rows, end, batch)[0], begin, end)
            torch.bmm(weights, v[:, :end], out=out[:, begin:end])
            if keep:
                kept.append(weights)
        ctx.save_for_backward(q, asked, k, v, rows, *kept)
        ctx.about = shape, dtype, table.shape, table.dtype
        return out.view(shape).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        q, asked, k, v, rows, *kept = ctx.saved_tensors
        shape, dtype, table_shape, table_dtype = ctx.about
        grad_out = _flat(grad_out.to(asked.dtype))
        grad_q, grad_asked = torch.empty_like(q), torch.empty_like(q)
        grad_rows, size = torch.zeros_like(rows), ROWS[bool(kept)]
        for begin in reversed(range(0, shape[2], size)):  # the last block first: it has met every key
            end = min(begin + size, shape[2])
            mine, its, near = slice(begin, end), slice(0, end), _near(rows, end, shape[0])
            weights = kept[begin // size] if kept else _weights(q, asked, k, near[0], begin, end)
            grad_i = grad_out[:, mine]
            products, logits = _room(q, end - begin, end)
            grad_weights = torch.bmm(grad_i, v[:, its].mT)
            logits.copy_(softmax_backward(grad_weights, weights, -1, weights.dtype))
            torch.bmm(logits, k[:, its], out=grad_q[:, mine])
            torch.bmm(products, near[0], out=grad_asked[:, mine])
            if end == shape[2]:
                grad_k, grad_v = torch.bmm(logits.mT, q[:, mine]), torch.bmm(weights.mT, grad_i)
            else:
                grad_k[:, its].baddbmm_(logits.mT, q[:, mine])
                grad_v[:, its].baddbmm_(weights.mT, grad_i)
            by_row = torch.bmm(products.mT, asked[:, mine])
            by_row = by_row if shape[0] == 1 else by_row.unflatten(0, (shape[0], -1)).sum(0)
            if near[1] is None:
                grad_rows[:, -end:] += by_row
            else:
                grad_rows.index_add_(1, near[1], by_row)
        grads = (grad_q, grad_asked, grad_k, grad_v)
        grad_table = grad_rows[None].sum_to_size(1, *table_shape)[0]
        return *(each.view(shape).to(dtype) for each in grads), grad_table.to(table_dtype)


def _weights(
    q: Float[Tensor, "s n d"], asked: Float[Tensor, "s n d"], k: Float[Tensor, "s n d"],
    near: Float[Tensor, "s n d"], begin: int, end: int,
) -> Float[Tensor, "s m n"]:  # fmt: skip
    """P of the rows `begin` … `end`, for the keys up to there."""
    products, logits = _room(q, end - begin, end)
    products.copy_(torch.bmm(asked[:, begin:end], near.mT))
    logits = torch.baddbmm(logits, q[:, begin:end], k[:, :end].mT)
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
