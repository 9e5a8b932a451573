"""Attention maps as graphs (Buehler, "Graph-Aware Isomorphic Attention for Adaptive Dynamics in
Transformers", 2025, arXiv:2501.02393): instead of averaging values a head takes a step of a graph network.

    A_h = softmax(α q kᵀ / √d_h) under any pattern, and edges = f(A_h), see below

    GIN    y_h = MLP_h(ε_h X_h + edges X_h)                 MLP: Linear, RMS norm, SiLU, Linear
    PNA    y_h = MLP_h([sum; mean; max; variance] of the neighbours in V)    MLP: Linear, SiLU, Linear

and the heads are concatenated and projected. GIN has no values: head h reads X_h, its slice of the layer's
input. A head has an MLP (of `expansion` times its width) and an ε (from 0 on) of its own; α is learned with
`sharpen`. In PNA the sum and the variance weigh neighbours by their edges, the mean is the sum over the sum
of the edges, and the maximum is over all with an edge above 0.

`edges` is what a weight a becomes: "all" (a), "relu", "silu" or "softplus" (of a - threshold), "sigmoid" (of
10 (a - threshold)), "binary" (1 above the threshold) or "top-k" (1 for the largest `fraction` of the keys
that a query sees, at least one). What is invisible stays 0. "binary" and "top-k" have no gradient to q and k.

With all edges this costs what softmax attention costs: it runs by any of the plans, and the maximum is a
running one. What differs from the official code: ε X as there (the paper writes (1 + ε) X); no dropout;
"top-k" counts among the keys that a query sees, where the code takes a fraction of the whole length, which a
later token would change; PNA's maximum there is over copies of the token's own value, and so is that; scores
by an MLP on pairs, differences of two maps and maps without softmax are not offered. Without an edge the
maximum is 0.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from regardant.core import plan
from regardant.core.errors import require, unknown
from regardant.core.mixer import MultiHead
from regardant.core.pattern import Pattern
from regardant.core.rule import SoftmaxRule, causal_and_padding
from regardant.core.supports import Supports
from regardant.core.written import row_weights

Edges = Literal["all", "relu", "silu", "softplus", "sigmoid", "binary", "top-k"]
EDGES = ("all", "relu", "silu", "softplus", "sigmoid", "binary", "top-k")
STEEPNESS = 10.0
"""Of the sigmoid."""
NORM_EPSILON = 1e-6
AT_ONCE = 2**22
"""Neighbours' channels that the search for a maximum looks at, at a time."""


class MadeEdges:
    """The normaliser: logits → edges."""

    def __init__(self, edges: Edges, *, threshold: float, fraction: float):
        if edges not in EDGES:
            raise unknown("edges", edges, EDGES)
        require(0 < fraction <= 1, f"fraction is {fraction}, but it is a share of the keys, in (0, 1]")
        self.edges, self.threshold, self.fraction = edges, threshold, fraction

    def __call__(
        self, logits: Float[Tensor, "*rows n"], mask: Bool[Tensor, "*rows n"]
    ) -> Float[Tensor, "*rows n"]:
        weight = logits.softmax(-1)
        above = weight - self.threshold
        if self.edges == "all":
            return weight
        if self.edges == "binary":
            edges = (above > 0).to(weight.dtype)
        elif self.edges == "top-k":
            ranked = weight.masked_fill(~mask, -1).sort(dim=-1, descending=True, stable=True).indices
            wanted = (self.fraction * mask.sum(-1, keepdim=True)).ceil()
            first = torch.arange(weight.shape[-1], device=weight.device) < wanted
            edges = torch.zeros_like(weight).scatter(-1, ranked, first.to(weight.dtype))
        elif self.edges == "sigmoid":
            edges = torch.sigmoid(STEEPNESS * above)
        else:
            edges = getattr(F, self.edges)(above)
        return edges.masked_fill(~mask, 0)  # σ(0) is no 0: the pattern must hold behind it too


class HeadMLP(nn.Module):
    """Two linear layers around SiLU for every head, in one product for all heads."""

    def __init__(self, heads: int, inputs: int, hidden: int, outputs: int, *, norm: bool, bias: bool):
        super().__init__()
        self.inner, self.outer = _uniform(heads, inputs, hidden), _uniform(heads, hidden, outputs)
        self.inner_bias = nn.Parameter(torch.zeros(heads, hidden)) if bias else None
        self.outer_bias = nn.Parameter(torch.zeros(heads, outputs)) if bias else None
        self.norm = nn.Parameter(torch.ones(heads, hidden)) if norm else None

    def forward(self, x: Float[Tensor, "b h n i"]) -> Float[Tensor, "b h n o"]:
        batch, heads, length, _ = x.shape
        x = _affine(x.transpose(0, 1).reshape(heads, batch * length, -1), self.inner, self.inner_bias)
        if self.norm is not None:
            x = F.rms_norm(x, x.shape[-1:], eps=NORM_EPSILON) * self.norm[:, None]
        x = _affine(F.silu(x), self.outer, self.outer_bias)
        return x.view(heads, batch, length, -1).transpose(0, 1)

    def plainly(self, x: Float[Tensor, "b n i"], head: int) -> Float[Tensor, "b n o"]:
        """One head's."""
        x = x @ self.inner[head] + (0 if self.inner_bias is None else self.inner_bias[head])
        if self.norm is not None:
            x = x / (x.square().mean(-1, keepdim=True) + NORM_EPSILON).sqrt() * self.norm[head]
        x = x * x.sigmoid()
        return x @ self.outer[head] + (0 if self.outer_bias is None else self.outer_bias[head])


def _uniform(heads: int, inputs: int, outputs: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(heads, inputs, outputs).uniform_(-(inputs**-0.5), inputs**-0.5))


def _affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x @ weight if bias is None else torch.baddbmm(bias[:, None], x, weight)


class Sharpened(nn.Linear):
    """Queries times α, which sharpens or softens their whole map."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool):
        super().__init__(inputs, outputs, bias=bias)
        self.alpha = nn.Parameter(torch.ones(()))

    def forward(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        return self.alpha * super().forward(x)


class GraphAttention(MultiHead):
    """What both have: edges, sharpening, and an MLP a head behind the aggregation."""

    def __init__(self, dim: int, heads: int, *, sharpen: bool, expansion: int, **shared):
        super().__init__(dim, heads, **shared)
        require(expansion >= 1, f"expansion is {expansion}, but an MLP is at least as wide as its head")
        if sharpen:
            self.to_q = Sharpened(dim, heads * self.head_dim, bias=self.to_q.bias is not None)

    @classmethod
    def from_dense(cls, layer: MultiHead, **config) -> Self:
        raise ValueError(f"{cls.__name__} does not grow out of a softmax layer: its MLPs have no counterpart")

    def reference(self, x, context=None, padding=None):
        self.check_inputs(x, context, padding)
        q, k, v = self.project(x, context)
        pattern = self.visible(k.shape[2], across=context is not None, padding=padding)
        each = torch.eye(k.shape[2], dtype=k.dtype, device=k.device).expand(*k.shape[:2], -1, -1)
        maps = plan.attend_dense(
            q, k, each, pattern, scale=self.scale, bias=self.rule.bias, normaliser=self.rule.normaliser
        )
        v = v.repeat_interleave(self.heads // v.shape[1], dim=1)
        heads = [self.head_plainly(head, maps[:, head], v[:, head], x) for head in range(self.heads)]
        return self.to_out(torch.cat(heads, dim=-1))

    def head_plainly(
        self, head: int, edges: Float[Tensor, "b m n"], v: Float[Tensor, "b n d"], x: Float[Tensor, "b m c"]
    ) -> Float[Tensor, "b m d"]:
        """What a head makes of its graph."""
        raise TypeError(f"{type(self).__name__} must define head_plainly")


class IsomorphicAttention(GraphAttention):
    """GIN: an MLP of the sum over the neighbours and of the token itself."""

    supports = Supports(
        cross=False,
        causal_cross=False,
        grouped=False,
        linear_in_values=False,
        time=2.0,
        memory=1.0,
        state=1.0,
    )

    def __init__(
        self, dim: int, heads: int, *, edges: Edges = "all", threshold: float = 0.2, fraction: float = 0.1,
        sharpen: bool = False, expansion: int = 2, **shared,
    ):  # fmt: skip
        super().__init__(dim, heads, sharpen=sharpen, expansion=expansion, **shared)
        width = self.head_dim
        require(width * heads == dim, f"head_dim is {width}, but a head reads its slice of dim={dim}")
        del self.to_v
        made = MadeEdges(edges, threshold=threshold, fraction=fraction)
        self.rule = SoftmaxRule(bias=self.rule.bias, normaliser=None if edges == "all" else made)
        self.epsilon = nn.Parameter(torch.zeros(heads))
        self.mlp = HeadMLP(heads, width, expansion * width, width, norm=True, bias=True)

    def to_v(self, source: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        return source

    def merge(self, heads, *, x, record=None):
        own = x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return super().merge(self.mlp(heads + self.epsilon[:, None, None] * own), x=x, record=record)

    def head_plainly(self, head, edges, v, x):
        own = x[..., head * self.head_dim : (head + 1) * self.head_dim]
        return self.mlp.plainly(self.epsilon[head] * own + edges @ v, head)


class AggregateRule(SoftmaxRule):
    """Sum, mean, maximum and variance of the neighbours' values, side by side: e = 4 d."""

    def forward(self, q, k, v, *, pattern=None, scale=None):
        causal, real = causal_and_padding(self, pattern)
        v = v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)
        if self.normaliser is not None:
            return self._tiles(q, k, v, pattern, scale)
        exact = v.to(torch.promote_types(v.dtype, torch.float32))
        both = super().forward(
            q.to(exact), k.to(exact).repeat_interleave(q.shape[1] // k.shape[1], dim=1),
            torch.cat([exact, exact.square()], dim=-1), pattern=pattern, scale=scale,
        )  # fmt: skip
        mean, square = both.chunk(2, dim=-1)
        seen = v if real is None else v.masked_fill(~real[:, None, :, None], -torch.inf)
        if causal:
            largest = seen.cummax(dim=2).values
        else:
            largest = seen.amax(dim=2, keepdim=True).expand(-1, -1, q.shape[2], -1)
        largest = largest.masked_fill(largest == -torch.inf, 0)
        return torch.cat([mean, mean, largest.to(mean), _variance(mean, square)], dim=-1).to(v.dtype)

    def _tiles(self, q, k, v, pattern: Pattern | None, scale: float | None) -> Tensor:
        keys = torch.arange(k.shape[2], device=k.device)
        rows = max(1, min(256, AT_ONCE // v.numel()))
        keep = torch.is_grad_enabled()
        found = []
        for at in range(0, q.shape[2], rows):
            part, i = q[:, :, at : at + rows], torch.arange(at, min(at + rows, q.shape[2]), device=q.device)
            mask = None
            if pattern is not None:
                mask = pattern.block(i, keys, batch=q.shape[0], heads=q.shape[1])
            bias = None if self.bias is None else self.bias.block(i, keys)
            given = (part, k, v, mask, scale, bias)
            found.append(checkpoint(self._rows, *given, use_reentrant=False) if keep else self._rows(*given))
        return torch.cat(found, dim=2)

    def _rows(self, q, k, v, mask, scale, bias) -> Float[Tensor, "b h m 4*d"]:
        """The aggregates of these rows, all pairs written out."""
        edges = row_weights(q, k, mask, scale=scale, bias=bias, normaliser=self.normaliser)
        exact = v.to(edges.dtype)
        total, square = (edges @ torch.cat([exact, exact.square()], dim=-1)).chunk(2, dim=-1)
        degree = edges.sum(-1, keepdim=True)
        degree = degree.masked_fill(degree == 0, 1)
        near = edges.detach() > 0
        with torch.no_grad():
            masked = v.unsqueeze(2).masked_fill(~near[..., None], -torch.inf)
            at = masked.argmax(dim=3)
        largest = exact.gather(2, at).masked_fill(~near.any(-1, keepdim=True), 0)
        mean = total / degree
        return torch.cat([total, mean, largest, _variance(mean, square / degree)], dim=-1).to(v.dtype)

    def step(self, q, k, v, state, *, pattern=None, scale=None):
        if k is not None:
            state = self._remember(state, k[:, :, None], v[:, :, None], pattern)
        keys, share = state.keys.rows, q.shape[1] // state.keys.rows.shape[1]
        values = state.values.rows.repeat_interleave(share, dim=1)
        now = torch.tensor([max(state.length - 1, 0)], device=q.device)
        bias = (
            None if self.bias is None else self.bias.block(now, torch.arange(keys.shape[2], device=q.device))
        )
        mask = None if state.real is None else state.real[:, None, None, :]
        return self._rows(q[:, :, None], keys, values, mask, scale, bias)[:, :, 0], state


def _variance(mean: Tensor, square: Tensor) -> Tensor:
    return (square - mean.square()).clamp(min=0)


class AggregateAttention(GraphAttention):
    """PNA: an MLP of the sum, the mean, the maximum and the variance of the neighbours' values."""

    supports = Supports(pattern=False, linear_in_values=False, time=2.0, memory=1.0, state=1.0)

    def __init__(
        self, dim: int, heads: int, *, edges: Edges = "all", threshold: float = 0.2, fraction: float = 0.1,
        sharpen: bool = False, expansion: int = 2, **shared,
    ):  # fmt: skip
        super().__init__(dim, heads, sharpen=sharpen, expansion=expansion, **shared)
        width, made = self.head_dim, MadeEdges(edges, threshold=threshold, fraction=fraction)
        self.rule = AggregateRule(bias=self.rule.bias, normaliser=None if edges == "all" else made)
        self.mlp = HeadMLP(heads, 4 * width, expansion * width, width, norm=False, bias=False)

    def merge(self, heads, *, x, record=None):
        return super().merge(self.mlp(heads), x=x, record=record)

    def head_plainly(self, head, edges, v, x):
        degree = edges.sum(-1, keepdim=True)
        degree = torch.where(degree == 0, 1, degree)
        total, square = edges @ v, edges @ v.square()
        near = edges > 0
        apart = v[:, None].expand(-1, edges.shape[1], -1, -1)
        largest = torch.where(near[..., None], apart, -torch.inf).amax(2)
        largest = torch.where(near.any(-1, keepdim=True), largest, 0)
        variance = (square / degree - (total / degree) ** 2).clamp(min=0)
        return self.mlp.plainly(torch.cat([total, total / degree, largest, variance], dim=-1), head)
