"""Decayed linear attention of short sequences, in one block.

    O = S V,   S = (Q Kᵀ) ⊙ M,   M_ts = λ^(t-s) where t ≥ s, else 0

Cutting a short sequence into blocks costs more than it saves: with few hundred tokens the n² scores are soon
made, and kept for the way back, which then takes four products,

    dV = Sᵀ dO      dS = (dO Vᵀ) ⊙ M      dQ = dS K      dK = dSᵀ Q
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from regardant.core.decay_tiles import SMALLEST_LOG, triangle

WHOLE = 256
"""Up to this many tokens; beyond, blocks are faster."""


def decayed_whole(
    q: Float[Tensor, "b h n d"], k: Float[Tensor, "b g n d"], v: Float[Tensor, "b g n e"],
    log_decay: Float[Tensor, "h"] | None,
) -> Float[Tensor, "b h n e"]:  # fmt: skip
    """o_t = Σ_{s≤t} λ^(t-s) (q_t·k_s) v_s, in float32 at least, in the dtype of q."""
    return _DecayedWhole.apply(q, k, v, log_decay)


class _DecayedWhole(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, log_decay):
        shape, dtype = q.shape, q.dtype
        exact = torch.promote_types(dtype, torch.float32)
        within = _within(log_decay, k.shape[1], shape[1], shape[2], like=q.new_empty(0, dtype=exact))
        q, k, v = _rows(q, k).to(exact), k.to(exact), v.to(exact)
        scores = (q @ k.mT).mul_(within)
        ctx.save_for_backward(q, k, v, scores, within)
        ctx.shape, ctx.dtype = shape, dtype
        return (scores @ v).view(*shape[:3], v.shape[3]).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        q, k, v, scores, within = ctx.saved_tensors
        grad_out = _rows(grad_out, k).to(q.dtype)
        grad_scores = (grad_out @ v.mT).mul_(within)
        grads = (grad_scores @ k).view(ctx.shape), grad_scores.mT @ q, scores.mT @ grad_out
        return *(each.to(ctx.dtype) for each in grads), None


def _rows(x: Float[Tensor, "b h n w"], k: Float[Tensor, "b g n d"]) -> Float[Tensor, "b g share*n w"]:
    """The heads that share a key head, one below the other."""
    return x if x.shape[1] == k.shape[1] else x.reshape(x.shape[0], k.shape[1], -1, x.shape[3])


def _within(
    log_decay: Tensor | None, groups: int, heads: int, length: int, *, like: Tensor
) -> Float[Tensor, "g share*n n"]:
    """M, for the heads as `_rows` has them."""
    if log_decay is None:
        within = like.new_ones(length, length).tril().expand(heads, -1, -1)
    else:
        logs = log_decay.to(like.dtype).clamp(min=SMALLEST_LOG)[:, None]
        within = triangle(torch.exp(logs * torch.arange(length, device=like.device)))
    return within.reshape(groups, -1, length)
