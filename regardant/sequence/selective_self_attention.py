"""Selective self-attention (Zhang et al., "Selective Attention: Enhancing Transformer through Principled
Context Control", 2024, arXiv:2411.12892).

How sharp a row of attention is and where it points are one and the same thing to q·k. This gives each
query an inverse temperature of its own, from its token and from the number n of keys that it sees, and
each value a gate from its token:

    o_i = Σ_j softmax_j(τ_i q_i·k_j / √d) γ_j v_j
    τ_i = 1 + c ln n_i + tanh(w·silu(q_i))              γ_j = 1 + tanh(u·silu(v_j))

Sharing: the temperatures are read off the projections that are there anyway, so that a head adds two
vectors w and u of its own width: 1/(2·dim) of the layer. c in (0, 1) is one number a layer. Logits must
grow with ln n for a peak to stay a peak among n keys. All three start so that the layer is
(nearly) softmax attention; τ is never negative, since tanh stays above -1.

The token's part acts on queries before positions are turned in; τ multiplies q·k, not a bias that a
position adds. What differs from the official code: it has the part of n alone; there, as here,
c = exp(-exp(β)), which the paper writes as σ(α): the same range, from nearly 0 in fewer steps. How f(x) in
τ = tanh(f(x)) shares the weights is our reading of the paper, and so is the 1 in γ, which keeps values
as they are at the start.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from regardant.core.mixer import MultiHead, MultiHeadState, check_input
from regardant.core.pattern import Padding
from regardant.core.rule import SoftmaxRule
from regardant.core.supports import Supports
from regardant.core.visible_count import visible_count
from regardant.core.written import softmax

FIRST_BETA = 2.0
"""As released: c is about 0.0006."""


class TemperedRule(SoftmaxRule):
    """Softmax with a temperature a query. Queries are one column wider than keys: it holds tanh(f(x))."""

    supports = Supports(time=2.0, memory=1.0, state=1.0)

    def __init__(self, *, by_count: bool = True, bias: nn.Module | None = None):
        super().__init__(bias=bias)
        self.beta = nn.Parameter(torch.tensor(FIRST_BETA)) if by_count else None

    @property
    def growth(self) -> Tensor | float:
        """c, with which the inverse temperature grows by the logarithm of the keys seen."""
        return 0.0 if self.beta is None else torch.exp(-torch.exp(self.beta))

    def temper(self, q: Float[Tensor, "b h m d+1"], seen: Int[Tensor, "#b #h m"]) -> Float[Tensor, "b h m d"]:
        inverse = q[..., -1:] + 1
        if self.beta is not None:
            exact = torch.promote_types(q.dtype, torch.float32)
            inverse = inverse + self.growth * seen.clamp(min=1).to(exact).log().to(q.dtype)[..., None]
        return q[..., :-1] * inverse

    def forward(self, q, k, v, *, pattern=None, scale=None):
        seen = visible_count(pattern, q.shape[2], k.shape[2], batch=len(q), heads=q.shape[1], device=q.device)
        return super().forward(self.temper(q, seen), k, v, pattern=pattern, scale=scale)

    def reference(self, q, k, v, *, pattern=None, scale=None):
        share = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(share, dim=1), v.repeat_interleave(share, dim=1)
        i, j = torch.arange(q.shape[2], device=q.device), torch.arange(k.shape[2], device=q.device)
        mask = torch.ones(1, 1, len(i), len(j), dtype=torch.bool, device=q.device)
        if pattern is not None:
            mask = pattern.block(i, j, batch=len(q), heads=q.shape[1])
        seen = mask.sum(-1, keepdim=True).clamp(min=1).to(q.dtype)
        inverse = 1 + self.growth * seen.log() + q[..., -1:]
        logits = inverse * (q[..., :-1] @ k.mT) * (k.shape[-1] ** -0.5 if scale is None else scale)
        if self.bias is not None:
            logits = logits + self.bias.block(i, j)
        unseen = ~mask
        logits = logits.masked_fill(unseen & mask.any(-1, keepdim=True), -torch.inf)
        return softmax(logits, mask).masked_fill(unseen, 0) @ v

    def step(self, q, k, v, state, *, pattern=None, scale=None):
        if k is not None:
            order, held = pattern, state.length + 1
        else:
            order, held = (None if state.real is None else Padding(state.real)), state.keys.rows.shape[-2]
        seen = visible_count(order, 1, held, batch=len(q), heads=q.shape[1], offset=held - 1, device=q.device)
        q = self.temper(q[:, :, None], seen)[:, :, 0]
        return super().step(q, k, v, state, pattern=pattern, scale=scale)


class SelectiveSelfAttention(MultiHead):
    """Softmax attention with a temperature a query and a gate a value.

    `temperature` says what τ goes by: the token, the number of keys that it sees, or both; `values=False`
    leaves the gates out.
    """

    supports = Supports(time=2.0, memory=1.0, state=1.0)

    def __init__(
        self, dim: int, heads: int, *, temperature: Literal["both", "token", "count"] = "both",
        values: bool = True, **shared,
    ):  # fmt: skip
        super().__init__(dim, heads, **shared)
        self.rule = TemperedRule(by_count=temperature != "token", bias=self.rule.bias)
        self.query_weight = self.value_weight = None
        if temperature != "count":
            self.query_weight = nn.Parameter(torch.zeros(self.heads, self.head_dim))
        if values:
            self.value_weight = nn.Parameter(torch.zeros(self.kv_heads, self.head_dim))

    def warmth(
        self, projected: Float[Tensor, "b h n d"], weight: Float[Tensor, "h d"] | None
    ) -> Float[Tensor, "b h n 1"]:
        """tanh(w·silu(projected)), a head at a time; 0 where the layer has no such weight."""
        if weight is None:
            return projected.new_zeros(*projected.shape[:-1], 1)
        return torch.tanh(F.silu(projected) @ weight[..., None])

    def project(self, x, context=None, *, offset=0):
        x = self.position.embed(x, offset)
        source = x if context is None else context
        q = self.to_q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k = self.to_k(source).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)
        v = self.to_v(source).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)
        warmth = self.warmth(q, self.query_weight)
        v = v * (1 + self.warmth(v, self.value_weight))
        if context is None:
            q, k = self.position.turn(q, offset), self.position.turn(k, offset)
        return torch.cat([q, warmth], dim=-1), k, v

    def step(self, x_t, state):
        if not state.across:
            return super().step(x_t, state)
        check_input("x_t", x_t, "batch, width", self.dim, self.to_q.weight)
        x = x_t[:, None]
        q = self.to_q(self.position.embed(x, state.length)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        q = torch.cat([q, self.warmth(q, self.query_weight)], dim=-1)
        heads, inner = self.rule.step(q[:, :, 0], None, None, state.inner, scale=self.scale)
        return self.merge(heads[:, :, None], x=x)[:, 0], MultiHeadState(state.length + 1, inner, across=True)
