"""Aaren: attention as a recurrent network (Feng et al., "Attention as an RNN", 2024, arXiv:2405.13956).

Softmax attention whose query is a learned vector instead of the current token:

    o_t = Σ_{j≤t} exp(s_j) v_j / Σ_{j≤t} exp(s_j)        s_j = q·k_j / √d

Since no score depends on where the output stands, everything about the tokens so far is three running
quantities, and two stretches of tokens merge by

    (m, u, w) ⊕ (m', u', w') = (M, u e^(m-M) + u' e^(m'-M), w e^(m-M) + w' e^(m'-M))    M = max(m, m')

from leaves (s_j, 1, v_j), with o = w/u. That is an associative scan: linear in the length, no n×n
matrix, and one token more costs the same however many came before. A fixed query cannot look things up
by the current token: expect no recall from it.

There is no official code. The paper scans by doubling, n log n; here blocks of 32 are worked by a small
matrix product each and the blocks' totals are scanned in the same way, so that the work is linear.
Without causality every position gets what the last one would. Before the first real token o is 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.core.mixer import MultiHead, check_input
from regardant.core.rule import causal_and_padding
from regardant.core.state import State
from regardant.core.supports import Supports

BLOCK = 32


@dataclass
class Running(State):
    """What the tokens so far come to: the largest score, Σ e^(s-m) and Σ e^(s-m) v."""

    largest: Float[Tensor, "b h"]
    total: Float[Tensor, "b h"]
    weighted: Float[Tensor, "b h e"]

    @property
    def output(self) -> Float[Tensor, "b h e"]:
        return _divide(self.weighted, self.total)


def scan_attention(
    scores: Float[Tensor, "b h n"], values: Float[Tensor, "b h n e"], state: Running | None = None
) -> tuple[Float[Tensor, "b h n e"], Running]:
    """o_t for every prefix of the scores, and the state behind the last; -inf leaves a token out."""
    largest, total, weighted = _scan(scores, torch.ones_like(scores), values)
    seen = scores.shape[-1]
    if state is not None:
        before = (part[:, :, None] for part in (state.largest, state.total, state.weighted))
        largest, total, weighted = _merge(tuple(before), (largest, total, weighted))
        seen += state.length
    last = Running(seen, largest[..., -1], total[..., -1], weighted[..., -1, :])
    return _divide(weighted, total), last


Stretch = tuple[Float[Tensor, "b h n"], Float[Tensor, "b h n"], Float[Tensor, "b h n e"]]
"""Largest score, total and weighted sum, of n stretches of tokens."""


def _scan(largest: Tensor, total: Tensor, weighted: Tensor) -> Stretch:
    """The merge of all stretches up to each, out of place, so that autograd can go back through it."""
    n = largest.shape[-1]
    if n <= BLOCK:
        return _scan_block(largest, total, weighted)
    short = -n % BLOCK
    blocks = (
        F.pad(largest, (0, short), value=-inf).unflatten(-1, (-1, BLOCK)),
        F.pad(total, (0, short)).unflatten(-1, (-1, BLOCK)),
        F.pad(weighted, (0, 0, 0, short)).unflatten(-2, (-1, BLOCK)),
    )
    within = _scan_block(*blocks)
    behind = _scan(within[0][..., -1], within[1][..., -1], within[2][..., -1, :])
    before = (
        F.pad(behind[0][..., :-1], (1, 0), value=-inf)[..., None],
        F.pad(behind[1][..., :-1], (1, 0))[..., None],
        F.pad(behind[2][..., :-1, :], (0, 0, 1, 0))[..., None, :],
    )
    largest, total, weighted = _merge(before, within)
    return (
        largest.flatten(-2)[..., :n], total.flatten(-2)[..., :n], weighted.flatten(-3, -2)[..., :n, :],
    )  # fmt: skip


def _scan_block(largest: Tensor, total: Tensor, weighted: Tensor) -> Stretch:
    # The running maximum cancels out of o, so it is a constant to autograd.
    top = largest.detach().cummax(-1).values
    later = torch.ones(top.shape[-1], top.shape[-1], dtype=torch.bool, device=top.device).triu(1)
    apart = largest[..., None, :] - _finite(top)[..., :, None]
    share = apart.masked_fill(later, -inf).exp()  # a later score may exceed the maximum so far: exp overflows
    return top, (share @ total[..., None])[..., 0], share @ weighted


def _merge(one: Stretch, other: Stretch) -> Stretch:
    top = torch.maximum(one[0], other[0])
    left, right = (torch.exp(part[0] - _finite(top)) for part in (one, other))
    return (
        top,
        one[1] * left + other[1] * right,
        one[2] * left[..., None] + other[2] * right[..., None],
    )


def _finite(top: Tensor) -> Tensor:
    """Where nothing has been seen the maximum is -inf, and -inf - -inf is nobody's number."""
    return top.masked_fill(top == -inf, 0.0)


def _divide(weighted: Tensor, total: Tensor) -> Tensor:
    return weighted / torch.where(total > 0, total, 1.0)[..., None]


class Aaren(MultiHead):
    """Attention with a learned query: a scan of constant state, or one pooling for every position."""

    supports = Supports(cross=False, causal_cross=False, pattern=False, time=1.0, memory=1.0, state=0.0)

    def __init__(self, dim: int, heads: int, **shared):
        super().__init__(dim, heads, **shared)
        require(
            not self.position.relates,
            f"position is {type(self.position).__name__}, but a learned query stands nowhere: "
            "only positions that are added to the input mean something to it",
        )
        self.query = nn.Parameter(torch.randn(dim))

    def project(self, x, context=None, *, offset=0):
        _, k, v = super().project(x, offset=offset)
        q = self.to_q(self.query).view(self.heads, 1, self.head_dim)
        return q.expand(x.shape[0], -1, x.shape[1], -1), k, v

    def attend(self, q, k, v, *, x, pattern, padding=None, record=None):
        causal, _ = causal_and_padding(self, pattern)
        scores, values = self._leaves(q, k, v, padding)
        if causal:
            return scan_attention(scores, values)[0].to(v.dtype)
        share = torch.exp(scores - _finite(scores.detach().amax(-1, keepdim=True)))
        pooled = _divide((share[..., None, :] @ values)[..., 0, :], share.sum(-1))
        return pooled[:, :, None].expand(-1, -1, q.shape[2], -1).to(v.dtype)

    def _leaves(self, q, k, v, padding=None) -> tuple[Float[Tensor, "b h n"], Float[Tensor, "b h n e"]]:
        """Scores and values of every query head, exact enough to be summed over a long sequence."""
        exact = torch.promote_types(k.dtype, torch.float32)
        share = self.heads // self.kv_heads
        query = q[:, :, 0].unflatten(1, (self.kv_heads, share)).to(exact)
        scale = self.head_dim**-0.5 if self.scale is None else self.scale
        scores = (query @ k.to(exact).mT).flatten(1, 2) * scale
        if padding is not None:
            scores = scores.masked_fill(~padding[:, None], -inf)
        return scores, v.to(exact).repeat_interleave(share, dim=1)

    def start(self, batch, *, context=None, padding=None):
        super().start(batch, context=context, padding=padding)
        exact = torch.promote_types(self.to_v.weight.dtype, torch.float32)
        nothing = torch.zeros(batch, self.heads, self.head_dim, device=self.to_v.weight.device, dtype=exact)
        return Running(0, torch.full_like(nothing[..., 0], -inf), nothing[..., 0].clone(), nothing)

    def prefill(self, x):
        state = self.start(x.shape[0])
        self.check_inputs(x, None, None)
        q, k, v = self.project(x)
        heads, state = scan_attention(*self._leaves(q, k, v), state)
        return self.merge(heads.to(v.dtype), x=x), state

    def step(self, x_t, state):
        check_input("x_t", x_t, "batch, width", self.dim, self.to_q.weight)
        x = x_t[:, None]
        q, k, v = self.project(x, offset=state.length)
        scores, values = self._leaves(q, k, v)
        before = (state.largest, state.total, state.weighted)
        after = _merge(before, (scores[..., 0], torch.ones_like(scores[..., 0]), values[..., 0, :]))
        state = Running(state.length + 1, *after)
        return self.merge(state.output[:, :, None].to(v.dtype), x=x)[:, 0], state
