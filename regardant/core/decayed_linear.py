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
matrix λ^(c(i-j)) over blocks, because a step at a time is too little work to keep a processor busy; a short
sequence is one block (`regardant.core.decayed_whole`).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from regardant.core.decay_tiles import SMALLEST_LOG, Decay, carry, tiling
from regardant.core.decayed_whole import WHOLE, decayed_whole
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
    check_operands(q, k, v, log_decay, state)
    require(block >= 1, f"block is {block}, but a block holds at least one token")
    learned = log_decay is not None and log_decay.requires_grad and torch.is_grad_enabled()
    if state is None and not return_state and not learned and 0 < q.shape[2] <= WHOLE:
        with torch.autocast(q.device.type, enabled=False):
            return decayed_whole(q, k, v, log_decay)
    if state is None:
        state = q.new_zeros((), dtype=sum_dtype(q.dtype)).expand(*q.shape[:2], q.shape[3], v.shape[3])
    if learned:
        with torch.autocast(q.device.type, enabled=False):
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
    check_operands(q, k, v, log_decay, state)
    heads, n = q.shape[1:3]
    k, v = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (k, v))
    log_decay = q.new_zeros(heads) if log_decay is None else log_decay.to(q.dtype).clamp(min=SMALLEST_LOG)
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
    """One token: S ← λS + k vᵀ, o = q S. The given state is left as it was.

    A few microseconds in all, so the calls are counted: nothing here is done twice or checked.
    """
    if q.dtype != state.dtype or (log_decay is not None and log_decay.dtype != state.dtype):
        exact = [x if x is None else x.to(state.dtype) for x in (q, k, v, state, log_decay)]
        out, state = decayed_linear_step(*exact)
        return out.to(q.dtype), state
    _, h, d, e = state.shape
    if k.shape[1] != h:
        k, v = (x.repeat_interleave(h // x.shape[1], dim=1) for x in (k, v))
    kept = state.clone() if log_decay is None else state * log_decay.exp().view(h, 1, 1)
    flat = kept.view(-1, d, e).baddbmm_(k.reshape(-1, d, 1), v.reshape(-1, 1, e))
    return torch.bmm(q.reshape(-1, 1, d), flat).view(-1, h, e), kept


class _DecayedLinear(torch.autograd.Function):
    """The forward sweep, and the exact backward sweeps from q, k, v and the initial state alone."""

    @staticmethod
    def forward(ctx, q, k, v, log_decay, state, block):
        ctx.save_for_backward(q, k, v, log_decay, state)
        ctx.block = block
        ctx.set_materialize_grads(False)
        return sweep_right(q, k, v, log_decay, state, block)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out, grad_last):
        q, k, v, log_decay, state = ctx.saved_tensors
        if grad_out is None:
            grad_out = q.new_zeros(()).expand(*q.shape[:3], v.shape[3])
        if grad_last is None:
            grad_last = torch.zeros_like(state)
        # dq_t = Σ_{s≤t} λ^(t-s) (dO_t·v_s) k_s is the forward equation with its operands renamed.
        grad_q, _ = sweep_right(grad_out, v, k, log_decay, state.mT, ctx.block)
        grad_k, grad_v, grad_state = sweep_left(q, k, v, grad_out, log_decay, grad_last, ctx.block)
        return grad_q, grad_k, grad_v, None, grad_state.to(state.dtype), None


def sweep_right(q, k, v, log_decay, state, block):
    """The outputs [b h n e] and the state behind the last token, tile after tile from the first token."""
    out = q.new_empty(*q.shape[:3], v.shape[3])
    last = q.new_empty(state.shape, dtype=sum_dtype(q.dtype))
    d, e = state.shape[2:]
    runs, together = _tiling(q, k, block)
    by_group = _by_group(k, q, k, v, out, state, last)
    for samples, groups in together:
        *whole, state_in, state_out = (x[samples, groups] for x in by_group)
        carried = state_in.to(last.dtype)
        for run in runs:
            c = run.size
            decay = Decay.over(_decay_of(groups, log_decay, k), run, carried)
            turns = ((c, d),), ((c, d), (d, e)), ((c, e),), ((c, c),), ((d, e), (c, e))
            q_, k_, room, v_, scores, gained, out_ = run.buffers(carried, *turns)
            for q_i, k_i, v_i, out_i in zip(*map(run.cut, whole)):
                q_.tiled.copy_(q_i)
                k_.tiled.copy_(k_i)
                v_.tiled.copy_(v_i)
                torch.bmm(q_.flat, k_.flat.mT, out=scores.flat)
                scores.fade(decay.within)
                k_.fade(decay.until)
                torch.bmm(k_.flat.mT, v_.flat, out=gained.flat)
                met, carried = carry(carried, gained.tiled, room.tiled, decay)
                q_.fade(decay.since)
                torch.bmm(scores.flat, v_.flat, out=out_.flat)
                out_.flat.baddbmm_(q_.flat, met)
                out_i.copy_(out_.tiled)
        state_out.copy_(carried)
    return out, last


def sweep_left(q, k, v, grad_out, log_decay, grad_last, block):
    """dK, dV and the gradient of the state before the first token, tile after tile from the last one."""
    grad_k, grad_v = torch.empty_like(k), torch.empty_like(v)
    grad_first = q.new_empty(grad_last.shape, dtype=sum_dtype(q.dtype))
    d, e = grad_last.shape[2:]
    runs, together = _tiling(q, k, block)
    by_group = _by_group(k, q, k, v, grad_out, grad_k, grad_v, grad_last, grad_first)
    for samples, groups in together:
        *whole, grad_at_end, grad_at_start = (x[samples, groups] for x in by_group)
        carried = grad_at_end.to(grad_first.dtype)
        for run in reversed(runs):
            c = run.size
            decay = Decay.over(_decay_of(groups, log_decay, k), run, carried)
            turns = ((c, d), (d, e)), ((c, d),), ((c, e),), ((c, e),), ((c, d),), ((c, e),), ((c, c), (d, e))
            q_, room, k_, v_, go_, gk_, gv_, scores, gained = run.buffers(carried, *turns)
            for q_i, k_i, v_i, go_i, gk_i, gv_i in reversed([*zip(*map(run.cut, whole))]):
                q_.tiled.copy_(q_i)
                k_.tiled.copy_(k_i)
                v_.tiled.copy_(v_i)
                go_.tiled.copy_(go_i)
                torch.bmm(q_.flat, k_.flat.mT, out=scores.flat)
                scores.fade(decay.within)
                torch.bmm(scores.flat.mT, go_.flat, out=gv_.flat)
                torch.bmm(go_.flat, v_.flat.mT, out=scores.flat)
                scores.fade(decay.within)
                torch.bmm(scores.flat.mT, q_.flat, out=gk_.flat)
                go_.fade(decay.since)
                torch.bmm(q_.flat.mT, go_.flat, out=gained.flat)
                met, carried = carry(carried, gained.tiled, room.tiled, decay, leftwards=True)
                v_.fade(decay.until)
                gk_.flat.baddbmm_(v_.flat, met.mT)
                k_.fade(decay.until)
                gv_.flat.baddbmm_(k_.flat, met)
                # A key head has one gradient from each query head that it serves.
                gk_i.copy_(gk_.tiled.sum_to_size(gk_i.shape))
                gv_i.copy_(gv_.tiled.sum_to_size(gv_i.shape))
        grad_at_start.copy_(carried)
    return grad_k, grad_v, grad_first


def _forward_by_autograd(q, k, v, log_decay, state, block):
    """The same forward out of plain operations, for when the decay itself is learned."""
    runs, _ = _tiling(q, k, block)
    dtype, exact = q.dtype, sum_dtype(q.dtype)
    q, k, v, state = (x.to(exact) for x in _by_group(k, q, k, v, state))
    outs = []
    for run in runs:
        decay = Decay.over(log_decay.view(state.shape[1:3]), run, state)
        for q_i, k_i, v_i in zip(*map(run.cut, (q, k, v))):
            gained = (k_i * decay.until).mT @ v_i
            known = torch.cat([gained[:, :, :, :-1], state[:, :, :, None]], dim=3)
            met = (decay.across @ known.flatten(4)).view(known.shape)
            state = decay.step * met[:, :, :, -1] + gained[:, :, :, -1]
            scores = (q_i @ k_i.mT) * decay.within
            outs.append((scores @ v_i + (q_i * decay.since) @ met).flatten(3, 4))
    return torch.cat(outs, dim=3).flatten(1, 2).to(dtype), state.flatten(1, 2)


def _tiling(q, k, block):
    (b, h, n, _), g = q.shape, k.shape[1]
    return tiling(b, g, h // g, n, block=block, device=q.device)


def _by_group(k, *xs):
    """[b heads …] → [b g share …]: the heads by the key head that serves them."""
    return [x.unflatten(1, (k.shape[1], -1)) for x in xs]


def _decay_of(groups, log_decay, k):
    return None if log_decay is None else log_decay.view(k.shape[1], -1)[groups]


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """What sums are kept in."""
    return dtype if dtype == torch.float64 else torch.float32


def check_operands(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor | None) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        require(x.ndim == 4, f"{name} has shape {tuple(x.shape)}, but it must be [b, heads, n, width]")
    (b, h, n, d), g, e = q.shape, k.shape[1], v.shape[3]
    require(q.dtype == k.dtype == v.dtype, f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}; they must be alike")
    require(k.shape == (b, g, n, d), f"k has shape {tuple(k.shape)}, but q takes [{b}, g, {n}, {d}]")
    require(v.shape == (b, g, n, e), f"v has shape {tuple(v.shape)}, but k takes [{b}, {g}, {n}, e]")
    require(h % g == 0, f"k and v have {g} heads, but their number must divide the {h} heads of q")
    if log_decay is not None:
        require(log_decay.shape == (h,), f"log_decay has shape {tuple(log_decay.shape)}, but q takes [{h}]")
    if state is not None:
        require(
            state.shape == (b, h, d, e),
            f"state has shape {tuple(state.shape)}, but q and v take [{b}, {h}, {d}, {e}]",
        )
