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

from collections.abc import Iterator
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
    """The chunked forward, and its exact backward from q, k, v and the initial state alone."""

    @staticmethod
    def forward(ctx, q, k, v, log_decay, state, block):
        ctx.save_for_backward(q, k, v, log_decay, state)
        ctx.block = block
        ctx.set_materialize_grads(False)
        out = torch.empty(*q.shape[:3], v.shape[3], dtype=v.dtype, device=v.device)
        last = torch.empty(state.shape, dtype=_accurate(q.dtype), device=q.device)
        work = _Work(q, k, v, log_decay, block)
        for lanes in work.lanes():
            carried = lanes.state(state)
            for segment in work.segments():
                decay = work.decay(lanes, segment)
                tiles = (lanes.tile(x, segment) for x in (q, k, v))
                result, carried = _segment_forward(*tiles, carried, decay)
                lanes.rows(out, segment).copy_(result.view_as(lanes.rows(out, segment)))
            last[lanes.samples, lanes.heads] = carried.view_as(last[lanes.samples, lanes.heads])
        return out, last

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out, grad_last):
        q, k, v, log_decay, state = ctx.saved_tensors
        grads = [torch.zeros(x.shape, dtype=_accurate(x.dtype), device=x.device) for x in (q, k, v)]
        grad_state = torch.zeros_like(state, dtype=_accurate(q.dtype)) if grad_last is None else grad_last
        grad_first = torch.empty_like(grad_state)
        if grad_out is None:
            grad_out = v.new_zeros(()).expand(*q.shape[:3], v.shape[3])
        work = _Work(q, k, v, log_decay, ctx.block)
        for lanes in work.lanes():
            carried, starts = lanes.state(state), []
            for segment in work.segments():
                starts.append(carried)
                k_tile, v_tile = lanes.tile(k, segment), lanes.tile(v, segment)
                carried = _states(k_tile, v_tile, carried, work.decay(lanes, segment))[1]
            carried = lanes.state(grad_state)
            for segment, start in zip(reversed(work.segments()), reversed(starts)):
                tiles = (lanes.tile(x, segment) for x in (q, k, v, grad_out))
                *parts, carried = _segment_backward(*tiles, start, carried, work.decay(lanes, segment))
                for grad, part in zip(grads, parts):
                    lanes.add(grad, segment, part)
            grad_first[lanes.samples, lanes.heads] = carried.view_as(grad_first[lanes.samples, lanes.heads])
        grad_q, grad_k, grad_v = (grad.to(x.dtype) for grad, x in zip(grads, (q, k, v)))
        return grad_q, grad_k, grad_v, None, grad_first.to(state.dtype), None


def _forward_by_autograd(q, k, v, log_decay, state, block):
    """The same forward out of plain operations, for when the decay itself is learned."""
    work = _Work(q, k, v, log_decay, block)
    lanes = _Lanes(slice(0, q.shape[0]), slice(0, q.shape[1]), q.shape[1])
    carried, parts = lanes.state(state), []
    for segment in work.segments():
        tiles = (lanes.tile(x, segment) for x in (q, k, v))
        result, carried = _segment_forward(*tiles, carried, work.decay(lanes, segment))
        parts.append(result.view(*q.shape[:2], -1, v.shape[3]))
    return torch.cat(parts, dim=2).to(v.dtype), carried.view(state.shape)


def _segment_forward(
    q: Float[Tensor, "lanes*m c d"],
    k: Float[Tensor, "lanes*m c d"],
    v: Float[Tensor, "lanes*m c e"],
    state: Float[Tensor, "lanes d e"],
    decay: _Decay,
) -> tuple[Float[Tensor, "lanes*m c e"], Float[Tensor, "lanes d e"]]:
    """The outputs of m blocks a lane, and the state behind them."""
    before, after = _states(k, v, state, decay)
    scores = _scale(torch.bmm(q, k.mT), decay.within)
    return torch.bmm(scores, v).baddbmm(_scale(q, decay.since), before), after


def _states(k, v, state, decay):
    """S before each of the m blocks [lanes*m d e], and S behind the last."""
    lanes, d, e = state.shape
    gained = torch.bmm(_scale(k, decay.until).mT, v).view(lanes, -1, d * e)
    stack = torch.cat([state.view(lanes, 1, d * e), gained], dim=1)
    states = torch.bmm(decay.across.expand(lanes, -1, -1), stack)
    return states[:, :-1].reshape(-1, d, e), states[:, -1].view(lanes, d, e)


def _segment_backward(q, k, v, grad_out, state, grad_state, decay):
    """dQ, dK, dV of m blocks a lane, and D before them (from S before and D behind them)."""
    lanes, d, e = state.shape
    before, _ = _states(k, v, state, decay)
    faded = _scale(grad_out, decay.since)
    gained = torch.bmm(q.mT, faded).view(lanes, -1, d * e)
    stack = torch.cat([gained, grad_state.view(lanes, 1, d * e)], dim=1)
    grads = torch.bmm(decay.across.mT.expand(lanes, -1, -1), stack)
    behind, first = grads[:, 1:].reshape(-1, d, e), grads[:, 0].view(lanes, d, e)
    scores = _scale(torch.bmm(q, k.mT), decay.within)
    grad_scores = _scale(torch.bmm(grad_out, v.mT), decay.within)
    grad_q = torch.bmm(grad_scores, k).baddbmm_(faded, before.mT)
    grad_k = torch.bmm(grad_scores.mT, q).baddbmm_(_scale(v, decay.until), behind.mT)
    grad_v = torch.bmm(scores.mT, grad_out).baddbmm_(_scale(k, decay.until), behind)
    return grad_q, grad_k, grad_v, first


def _scale(x: Float[Tensor, "lanes*m c w"], by: Float[Tensor, "lanes c w"] | None) -> Tensor:
    if by is None:
        return x
    return (x.view(by.shape[0], -1, *x.shape[1:]) * by[:, None]).view(x.shape)


class _Segment(NamedTuple):
    """`blocks` whole blocks of `size` tokens from the token `first` on."""

    first: int
    blocks: int
    size: int

    @property
    def rows(self) -> slice:
        return slice(self.first, self.first + self.blocks * self.size)


class _Lanes(NamedTuple):
    """Heads of samples that are worked side by side."""

    samples: slice
    heads: slice
    all_heads: int

    def rows(self, x, segment):
        """The tokens of a segment of x [b h n w], with k's and v's heads shared out to the query heads."""
        share = self.all_heads // x.shape[1]
        rows = x[self.samples, :, segment.rows]
        if share == 1:
            return rows[:, self.heads]
        if self.heads.stop - self.heads.start == 1:
            return rows[:, self.heads.start // share, None]
        return rows.index_select(1, torch.arange(self.heads.start, self.heads.stop, device=x.device) // share)

    def tile(self, x: Float[Tensor, "b h n w"], segment: _Segment) -> Float[Tensor, "lanes*m c w"]:
        return self.rows(x, segment).to(_accurate(x.dtype)).reshape(-1, segment.size, x.shape[-1])

    def state(self, x: Float[Tensor, "b h d e"]) -> Float[Tensor, "lanes d e"]:
        return x[self.samples, self.heads].to(_accurate(x.dtype)).flatten(0, 1)

    def add(self, total, segment, part):
        """Add a tile to where `tile` took it from."""
        share = self.all_heads // total.shape[1]
        rows = total[self.samples, :, segment.rows]
        heads = torch.arange(self.heads.start, self.heads.stop, device=total.device) // share
        part = part.view(rows.shape[0], len(heads), *rows.shape[2:])
        if share == 1:
            rows[:, self.heads] = part
        else:
            rows.index_add_(1, heads, part)


class _Decay(NamedTuple):
    """Powers of λ: inside a block, since its start and until its end, and across the blocks of a segment."""

    within: Float[Tensor, "lanes c c"]
    since: Float[Tensor, "lanes c 1"] | None
    until: Float[Tensor, "lanes c 1"] | None
    across: Float[Tensor, "lanes m+1 m+1"]


def _triangle(log_decay: Float[Tensor, "h"], size: int) -> Float[Tensor, "h size size"]:
    """λ^(i-j) where i ≥ j, else 0."""
    powers = torch.exp(log_decay[:, None] * torch.arange(size, device=log_decay.device))
    return torch.nn.functional.pad(powers, (size - 1, 0)).unfold(1, size, 1).flip(-1)


class _Work:
    """How the whole is cut into tiles that stay in a core's cache, and the decay of each."""

    def __init__(self, q, k, v, log_decay, block):
        self.shape, self.block = q.shape, min(block, q.shape[2])
        budget = max(1, (1024 if q.device.type == "cpu" else 1 << 20) // self.block)
        self.blocks = max(1, min(q.shape[2] // self.block, budget, 32))
        lanes = max(1, budget // self.blocks)
        self.heads = min(q.shape[1], lanes)
        self.samples = max(1, lanes // self.heads) if self.heads == q.shape[1] else 1
        dtype = _accurate(q.dtype)
        decays = q.new_zeros(q.shape[1], dtype=dtype) if log_decay is None else log_decay.to(dtype)
        self.log_decay = decays
        self.within = _triangle(decays, self.block)
        powers = torch.exp(decays[:, None] * torch.arange(self.block + 1, device=q.device))
        self.since, self.until = powers[:, 1:, None], powers[:, :-1, None].flip(1)
        self.across = _triangle(decays * self.block, self.blocks + 1)

    def segments(self) -> list[_Segment]:
        n, c = self.shape[2], self.block
        whole = n // c
        cut = [_Segment(i * c, min(self.blocks, whole - i), c) for i in range(0, whole, self.blocks)]
        return cut + ([_Segment(whole * c, 1, n - whole * c)] if n > whole * c else [])

    def lanes(self) -> Iterator[_Lanes]:
        b, h = self.shape[:2]
        for sample in range(0, b, self.samples):
            for head in range(0, h, self.heads):
                samples = slice(sample, min(sample + self.samples, b))
                yield _Lanes(samples, slice(head, min(head + self.heads, h)), h)

    def decay(self, lanes: _Lanes, segment: _Segment) -> _Decay:
        repeat, size, blocks = lanes.samples.stop - lanes.samples.start, segment.size, segment.blocks + 1
        across = self.across if size == self.block else _triangle(self.log_decay * size, 2)
        tables = (
            self.within[:, :size, :size],
            self.since[:, :size],
            self.until[:, self.block - size :],
            across[:, :blocks, :blocks],
        )
        return _Decay(*(table[lanes.heads].repeat(repeat, 1, 1) for table in tables))


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
