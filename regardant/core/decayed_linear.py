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

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

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
        # dq_t = Σ_{s≤t} λ^(t-s) (dO_t·v_s) k_s is the forward equation again, with other operands.
        grad_q, _ = _sweep_right(grad_out, v, k, log_decay, state.mT, ctx.block)
        grad_k, grad_v, grad_state = _sweep_left(q, k, v, grad_out, log_decay, grad_last, ctx.block)
        return grad_q.to(q.dtype), grad_k, grad_v, None, grad_state.to(state.dtype), None


def _sweep_right(q, k, v, log_decay, state, block):
    """The outputs [b h n e] and the state behind the last token, tile after tile from the first token."""
    out = torch.empty(*q.shape[:3], v.shape[3], dtype=q.dtype, device=q.device)
    last = torch.empty(state.shape, dtype=_accurate(q.dtype), device=q.device)
    d, e = state.shape[2:]
    grouped = [x.unflatten(1, (k.shape[1], -1)) for x in (q, k, v, out, state, last)]
    rate = None if log_decay is None else log_decay.view(k.shape[1], -1)
    for samples, groups, runs in _plan(q, k, block):
        *rows, before_all, after_all = (x[samples, groups] for x in grouped)
        carried = before_all.to(last.dtype)
        for run in runs:
            decay = _Decay.over(None if rate is None else rate[groups], run, carried)
            q_, k_, v_, o_, scores, gained, states = run.buffers(carried, d, d, e, e, run.size, (d, e), (d, e))
            for q_i, k_i, v_i, out_i in zip(*(run.cut(x) for x in rows)):
                q_.blocks.copy_(q_i)
                k_.blocks.copy_(k_i)
                v_.blocks.copy_(v_i)
                torch.bmm(q_.slots, k_.slots.mT, out=scores.slots)
                scores.fade(decay.within)
                torch.bmm(scores.slots, v_.slots, out=o_.slots)
                k_.fade(decay.until)
                torch.bmm(k_.slots.mT, v_.slots, out=gained.slots)
                before, carried = _carry(carried, gained, states, decay.across)
                q_.fade(decay.since)
                o_.slots.baddbmm_(q_.slots, before)
                out_i.copy_(o_.blocks)
        after_all.copy_(carried)
    return out, last


def _sweep_left(q, k, v, grad_out, log_decay, grad_last, block):
    """dK, dV and the gradient of the state before the first token, tile after tile from the last one."""
    grad_k, grad_v = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (k, v))
    first = torch.empty(grad_last.shape, dtype=_accurate(q.dtype), device=q.device)
    d, e = grad_last.shape[2:]
    grouped = [x.unflatten(1, (k.shape[1], -1)) for x in (q, k, v, grad_out, grad_k, grad_v, grad_last, first)]
    rate = None if log_decay is None else log_decay.view(k.shape[1], -1)
    for samples, groups, runs in _plan(q, k, block):
        *rows, before_all, after_all = (x[samples, groups] for x in grouped)
        carried = before_all.to(first.dtype)
        for run in reversed(runs):
            decay = _Decay.over(None if rate is None else rate[groups], run, carried)
            q_, k_, v_, o_, dk, dv, scores, gained, states = run.buffers(
                carried, d, d, e, e, d, e, run.size, (d, e), (d, e)
            )
            cuts = [run.cut(x)[::-1] for x in rows]
            for q_i, k_i, v_i, o_i, grad_k_i, grad_v_i in zip(*cuts):
                q_.blocks.copy_(q_i)
                k_.blocks.copy_(k_i)
                v_.blocks.copy_(v_i)
                o_.blocks.copy_(o_i)
                torch.bmm(q_.slots, k_.slots.mT, out=scores.slots)
                scores.fade(decay.within)
                torch.bmm(scores.slots.mT, o_.slots, out=dv.slots)
                torch.bmm(o_.slots, v_.slots.mT, out=scores.slots)
                scores.fade(decay.within)
                torch.bmm(scores.slots.mT, q_.slots, out=dk.slots)
                o_.fade(decay.since)
                torch.bmm(q_.slots.mT, o_.slots, out=gained.slots)
                behind, carried = _carry(carried, gained, states, decay.across.mT)
                v_.fade(decay.until)
                dk.slots.baddbmm_(v_.slots, behind.mT)
                k_.fade(decay.until)
                dv.slots.baddbmm_(k_.slots, behind)
                grad_k_i.copy_(dk.blocks.sum(2, keepdim=True) if q.shape[1] > k.shape[1] else dk.blocks)
                grad_v_i.copy_(dv.blocks.sum(2, keepdim=True) if q.shape[1] > k.shape[1] else dv.blocks)
        after_all.copy_(carried)
    return grad_k, grad_v, first


def _carry(carried, gained, states, across):
    """The state at each block, and behind them all."""
    *lanes, d, e = carried.shape
    if states.blocks.shape[3] == 1:
        after = torch.addcmul(gained.slots.view(carried.shape), carried, across)
        return carried.reshape(-1, d, e), after
    gained.slots.view(*lanes, -1, d, e).select(3, -1).copy_(carried)
    flat = states.slots.view(math.prod(lanes), -1, d * e)
    across = across.flatten(0, 1)
    torch.bmm(across if lanes[0] == 1 else across.repeat(lanes[0], 1, 1), gained.slots.view(flat.shape), out=flat)
    return states.slots, states.slots.view(*lanes, -1, d, e).select(3, -1)


class _Buffer(NamedTuple):
    slots: Tensor
    blocks: Tensor

    def fade(self, by):
        if by is not None:
            self.blocks.mul_(by)


class _Run(NamedTuple):
    """`count` segments of `blocks` blocks of `size` tokens, one behind the other from token `first` on."""

    first: int
    count: int
    blocks: int
    size: int

    def cut(self, x: Float[Tensor, "b g share n w"]) -> list[Float[Tensor, "b g share blocks size w"]]:
        tokens = self.count * self.blocks * self.size
        rows = x.narrow(3, self.first, tokens).unflatten(3, (self.count, self.blocks, self.size))
        return rows.unbind(3)

    def buffers(self, like, *shapes):
        slots = self.blocks + (self.blocks > 1)
        lead = (*like.shape[:3], slots)
        shapes = [s if isinstance(s, tuple) else (self.size, s) for s in shapes]
        sizes = [math.prod(lead) * math.prod(s) for s in shapes]
        parts = torch.empty(sum(sizes), dtype=like.dtype, device=like.device).split(sizes)
        return [
            _Buffer(part.view(-1, *s), part.view(*lead, *s)[:, :, :, : self.blocks]) for part, s in zip(parts, shapes)
        ]


MAXM, BUDGET, SIDE = 8, 32, 16


def _plan(q, k, block):
    b, h, n, _ = q.shape
    g = k.shape[1]
    share = h // g
    whole, rest = divmod(n, block)
    blocks = 1 if b * h >= SIDE else max(1, min(MAXM, whole))
    lanes = max(1, BUDGET // blocks)
    groups = min(g, max(1, lanes // share))
    size = max(1, lanes // h) if groups == g else 1
    runs = [
        _Run(0, whole // blocks, blocks, block),
        _Run(whole // blocks * blocks * block, 1, whole % blocks, block),
        _Run(whole * block, 1, 1, rest),
    ]
    runs = [run for run in runs if run.count * run.blocks * run.size]
    return [
        (slice(i, min(i + size, b)), slice(j, min(j + groups, g)), runs)
        for i in range(0, b, size)
        for j in range(0, g, groups)
    ]


class _Decay(NamedTuple):
    within: Float[Tensor, "g share 1 c c"]
    since: Float[Tensor, "g share 1 c 1"] | None
    until: Float[Tensor, "g share 1 c 1"] | None
    across: Float[Tensor, "h m+1 m+1"] | Float[Tensor, "h 1 1"]

    @classmethod
    def over(cls, log_decay, run, like):
        rate = torch.zeros(like.shape[1:3], device=like.device) if log_decay is None else log_decay
        rate = rate.to(like.dtype)[..., None]
        powers = torch.exp(rate * torch.arange(run.size + 1, device=like.device))
        within = _triangle(powers[..., :-1]).unsqueeze(2)
        if run.blocks == 1:
            across = powers[..., -1:, None]
        else:
            age = torch.arange(0, (run.blocks + 1) * run.size, run.size, device=like.device)
            across = _triangle(torch.exp(rate * age)).roll(-1, dims=-1)
        if log_decay is None:
            return cls(within, None, None, across)
        return cls(within, powers[..., None, 1:, None], powers[..., None, :-1, None].flip(3), across)


def _triangle(powers: Float[Tensor, "h size"]) -> Float[Tensor, "h size size"]:
    """λ^(i-j) where i ≥ j, else 0, from λ^0, λ^1, …"""
    size = powers.shape[-1]
    return torch.nn.functional.pad(powers, (size - 1, 0)).unfold(-1, size, 1).flip(-1)


def _forward_by_autograd(q, k, v, log_decay, state, block):
    """The same forward out of plain operations, for when the decay itself is learned."""
    b, h, _, d = q.shape
    e = v.shape[3]
    k, v = (x.repeat_interleave(h // x.shape[1], dim=1) for x in (k, v))
    q_, k_, v_, state = (x.to(_accurate(q.dtype)).unsqueeze(2) for x in (q, k, v, state))
    outs = []
    for run in _plan(q, q, block)[0][2]:
        decay = _Decay.over(log_decay[:, None], run, state)
        for q_i, k_i, v_i in zip(*(run.cut(x) for x in (q_, k_, v_))):
            gained = (k_i * decay.until).mT @ v_i
            if run.blocks == 1:
                before, state = state[:, :, :, None], decay.across * state + gained[:, :, :, 0]
            else:
                stack = torch.cat([gained, state[:, :, :, None]], dim=3).flatten(4)
                states = (decay.across @ stack).unflatten(4, (d, e))
                before, state = states[:, :, :, :-1], states[:, :, :, -1]
            scores = (q_i @ k_i.mT) * decay.within
            outs.append((scores @ v_i + (q_i * decay.since) @ before).reshape(b, h, -1, e))
    return torch.cat(outs, dim=2).to(v.dtype), state.squeeze(2)


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
