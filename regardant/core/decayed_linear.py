"""Causal linear attention with a scalar decay per head, exact and in linear time.

    o_t = Σ_{s≤t} λ^(t-s) (q_t·k_s) v_s

Lightning Attention-2 (Qin et al. 2024, arXiv:2401.04658): the sequence is cut into blocks of c
tokens. Inside a block the scores are formed and masked by M_rs = λ^(r-s), r ≥ s; what came before
the block is the matrix S = Σ_s λ^(·) k_s v_sᵀ, which does not grow. With r counted from 0 in a block,

    O = [(Q Kᵀ) ⊙ M] V + diag(λ^(r+1)) Q S          S ← λ^c S + (diag(λ^(c-1-r)) K)ᵀ V

and backward, with D the gradient of the state after the block, which flows from right to left,

    dQ = [(dO Vᵀ) ⊙ M] K + diag(λ^(r+1)) dO Sᵀ
    dK = [(dO Vᵀ) ⊙ M]ᵀ Q + diag(λ^(c-1-r)) V Dᵀ
    dV = [(Q Kᵀ) ⊙ M]ᵀ dO + diag(λ^(c-1-r)) K D     D ← λ^c D + (diag(λ^(r+1)) Q)ᵀ dO

Only non-negative powers of λ are formed, so no decay is too strong for the arithmetic. What differs
from the paper: a tile of many blocks is worked at once, and its states come from one product with the
matrix λ^(c(i-j)) over blocks, because a step at a time is too little work to keep a processor busy.
"""

from __future__ import annotations


import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from regardant.core.decay_tiles import Decay, carry, plan
from regardant.core.errors import require


def decayed_linear(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b g n d"],
    v: Float[Tensor, "b g n e"],
    log_decay: Float[Tensor, "h"] | None = None,
    *,
    state: Float[Tensor, "b h d e"] | None = None,
    return_state: bool = False,
    block: int = 64,
) -> Float[Tensor, "b h n e"] | tuple[Float[Tensor, "b h n e"], Float[Tensor, "b h d e"]]:
    """o_t = Σ_{s≤t} λ^(t-s) (q_t·k_s) v_s per head, and the state S_n = Σ_s λ^(n-s) k_s v_sᵀ if asked.

    `log_decay` is log λ ≤ 0, one a head (None: λ = 1); g divides h, and each key and value head serves
    h/g query heads. `state` is S before the first token. States are float32 for half-precision inputs.
    """
    _check(q, k, v, log_decay, state)
    require(block >= 1, f"block is {block}, but a block holds at least one token")
    if state is None:
        state = q.new_zeros(*q.shape[:2], q.shape[3], v.shape[3], dtype=_accurate(q.dtype))
    if log_decay is not None and log_decay.requires_grad and torch.is_grad_enabled():
        out, last = _forward_by_autograd(q, k, v, log_decay, state, block)
        out = out.to(q.dtype)
    else:
        out, last = _DecayedLinear.apply(q, k, v, log_decay, state, block)
    return (out, last) if return_state else out


def decayed_linear_reference(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b g n d"],
    v: Float[Tensor, "b g n e"],
    log_decay: Float[Tensor, "h"] | None = None,
    *,
    state: Float[Tensor, "b h d e"] | None = None,
) -> Float[Tensor, "b h n e"]:
    """The equation as it stands, with the n×n matrix of λ^(t-s) (q_t·k_s) written out."""
    _check(q, k, v, log_decay, state)
    heads, n = q.shape[1:3]
    k, v = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (k, v))
    log_decay = q.new_zeros(heads) if log_decay is None else log_decay.to(q.dtype)
    age = torch.arange(n, device=q.device)
    elapsed = (age[:, None] - age).clamp(min=0)
    decay = torch.exp(log_decay[:, None, None] * elapsed).tril()
    out = ((q @ k.mT) * decay) @ v
    if state is not None:
        out = out + torch.exp(log_decay[:, None, None] * (age[:, None] + 1)) * (q @ state.to(q.dtype))
    return out


def decayed_linear_step(
    q: Float[Tensor, "b h d"],
    k: Float[Tensor, "b g d"],
    v: Float[Tensor, "b g e"],
    state: Float[Tensor, "b h d e"],
    log_decay: Float[Tensor, "h"] | None = None,
) -> tuple[Float[Tensor, "b h e"], Float[Tensor, "b h d e"]]:
    """One token: S ← λS + k vᵀ, o = q S. The given state is left as it was."""
    if k.shape[1] != q.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    kept = state if log_decay is None else state * log_decay.exp()[:, None, None]
    state = torch.addcmul(kept, k[..., None], v[..., None, :])
    return (q[..., None, :].to(state.dtype) @ state).squeeze(-2).to(v.dtype), state


class _DecayedLinear(torch.autograd.Function):
    """The forward sweep, and the exact backward sweeps from q, k, v and the initial state alone."""

    @staticmethod
    def forward(ctx, q, k, v, log_decay, state, block):
        ctx.save_for_backward(q, k, v, log_decay, state)
        ctx.block = block
        ctx.set_materialize_grads(False)
        return _sweep_right(q, k, v, log_decay, state, block)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out, grad_last):
        q, k, v, log_decay, state = ctx.saved_tensors
        if grad_out is None:
            grad_out = v.new_zeros(()).expand(*q.shape[:3], v.shape[3])
        if grad_last is None:
            grad_last = torch.zeros_like(state)
        # dq_t = Σ_{s≤t} λ^(t-s) (dO_t·v_s) k_s is the forward equation with its operands renamed.
        grad_q, _ = _sweep_right(grad_out, v, k, log_decay, state.mT, ctx.block)
        grad_k, grad_v, grad_state = _sweep_left(q, k, v, grad_out, log_decay, grad_last, ctx.block)
        return grad_q, grad_k, grad_v, None, grad_state.to(state.dtype), None


def _sweep_right(q, k, v, log_decay, state, block):
    """The outputs [b h n e] and the state behind the last token, tile after tile from the first token."""
    out = torch.empty(*q.shape[:3], v.shape[3], dtype=q.dtype, device=q.device)
    last = torch.empty(state.shape, dtype=_accurate(q.dtype), device=q.device)
    d, e = state.shape[2:]
    runs, together = _plan(q, k, block)
    by_group = _by_group(k.shape[1], q, k, v, out, state, last)
    for samples, groups in together:
        *whole, state_in, state_out = (x[samples, groups] for x in by_group)
        carried = state_in.to(last.dtype)
        for run in runs:
            c = run.size
            decay = Decay.over(_decay_of(groups, log_decay, k), run, carried)
            tile = run.buffers(carried, (c, d), (c, d), (c, e), (c, e), (c, c), (d, e), (d, e))
            qs, ks, vs, outs, scores, gained, states = (x.flatten(0, 3) for x in tile)
            for rows in zip(*(run.cut(x) for x in whole)):
                for x, row in zip(tile, rows[:3]):
                    x.copy_(row)
                torch.bmm(qs, ks.mT, out=scores)
                tile[4].mul_(decay.within)
                torch.bmm(scores, vs, out=outs)
                _fade(tile[1], decay.until)
                torch.bmm(ks.mT, vs, out=gained)
                met, carried = carry(carried, tile[5], tile[6], decay)
                _fade(tile[0], decay.since)
                outs.baddbmm_(qs, met)
                rows[3].copy_(tile[3])
        state_out.copy_(carried)
    return out, last


def _sweep_left(q, k, v, grad_out, log_decay, grad_last, block):
    """dK, dV and the gradient of the state before the first token, tile after tile from the last one."""
    grad_k, grad_v = torch.empty_like(k), torch.empty_like(v)
    first = torch.empty(grad_last.shape, dtype=_accurate(q.dtype), device=q.device)
    d, e = grad_last.shape[2:]
    runs, together = _plan(q, k, block)
    by_group = _by_group(k.shape[1], q, k, v, grad_out, grad_k, grad_v, grad_last, first)
    for samples, groups in together:
        *whole, grad_in, grad_first = (x[samples, groups] for x in by_group)
        carried = grad_in.to(first.dtype)
        for run in reversed(runs):
            c = run.size
            decay = Decay.over(_decay_of(groups, log_decay, k), run, carried)
            tile = run.buffers(
                carried, (c, d), (c, d), (c, e), (c, e), (c, d), (c, e), (c, c), (d, e), (d, e)
            )
            qs, ks, vs, gs, dk, dv, scores, gained, states = (x.flatten(0, 3) for x in tile)
            for rows in reversed(list(zip(*(run.cut(x) for x in whole)))):
                for x, row in zip(tile, rows[:4]):
                    x.copy_(row)
                torch.bmm(qs, ks.mT, out=scores)
                tile[6].mul_(decay.within)
                torch.bmm(scores.mT, gs, out=dv)
                torch.bmm(gs, vs.mT, out=scores)
                tile[6].mul_(decay.within)
                torch.bmm(scores.mT, qs, out=dk)
                _fade(tile[3], decay.since)
                torch.bmm(qs.mT, gs, out=gained)
                met, carried = carry(carried, tile[7], tile[8], decay, leftwards=True)
                _fade(tile[2], decay.until)
                dk.baddbmm_(vs, met.mT)
                _fade(tile[1], decay.until)
                dv.baddbmm_(ks, met)
                for row, x in zip(rows[4:], tile[4:6]):
                    row.copy_(x if row.shape == x.shape else x.sum(2, keepdim=True))
        grad_first.copy_(carried)
    return grad_k, grad_v, first


def _forward_by_autograd(q, k, v, log_decay, state, block):
    """The same forward out of plain operations, for when the decay itself is learned."""
    exact = _accurate(q.dtype)
    q, k, v, state = (x.to(exact) for x in _by_group(k.shape[1], q, k, v, state))
    runs, _ = plan(*state.shape[:3], q.shape[3], block=block, device=q.device)
    outs = []
    for run in runs:
        decay = Decay.over(log_decay.view(state.shape[1:3]), run, state)
        for q_i, k_i, v_i in zip(*(run.cut(x) for x in (q, k, v))):
            gained = (k_i * decay.until).mT @ v_i
            known = torch.cat([gained[:, :, :, :-1], state[:, :, :, None]], dim=3)
            met = (decay.across @ known.flatten(4)).view(known.shape)
            state = decay.step * met[:, :, :, -1] + gained[:, :, :, -1]
            scores = (q_i @ k_i.mT) * decay.within
            outs.append((scores @ v_i + (q_i * decay.since) @ met).flatten(3, 4))
    return torch.cat(outs, dim=3).flatten(1, 2), state.flatten(1, 2)


def _plan(q, k, block):
    (b, h, n, _), g = q.shape, k.shape[1]
    return plan(b, g, h // g, n, block=block, device=q.device)


def _by_group(g, *xs):
    return [x.unflatten(1, (g, -1)) for x in xs]


def _decay_of(groups, log_decay, k):
    return None if log_decay is None else log_decay.view(k.shape[1], -1)[groups]


def _fade(x, by):
    if by is not None:
        x.mul_(by)


def _accurate(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32


def _check(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor | None) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        require(x.ndim == 4, f"{name} has shape {tuple(x.shape)}, but it must be [b, heads, n, width]")
    (b, h, n, d), g, e = q.shape, k.shape[1], v.shape[3]
    require(k.shape == (b, g, n, d), f"k has shape {tuple(k.shape)}, but q takes [{b}, g, {n}, {d}]")
    require(v.shape == (b, g, n, e), f"v has shape {tuple(v.shape)}, but k takes [{b}, {g}, {n}, e]")
    require(h % g == 0, f"k and v have {g} heads, but their number must divide the {h} heads of q")
    if log_decay is not None:
        require(log_decay.shape == (h,), f"log_decay has shape {tuple(log_decay.shape)}, not [{h}]")
    if state is not None:
        require(
            state.shape == (b, h, d, e),
            f"state has shape {tuple(state.shape)}, but q and v take [{b}, {h}, {d}, {e}]",
        )
