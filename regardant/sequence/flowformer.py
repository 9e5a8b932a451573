"""Flowformer (Wu et al., "Flowformer: Linearizing Transformers with Conservation Flows", 2022,
arXiv:2202.06258).

Linear attention as a flow network: keys are sources, queries are sinks, and φ(q)·φ(k), φ = sigmoid, is
what may flow between them. Fixing what a sink takes in makes sources compete, fixing what a source
gives out decides how much each sink is allotted. Over m queries and n keys, with a tiny ε on both sides
of every product:

    I_i = φ(q_i)·Σ_j φ(k_j)               O_j = φ(k_j)·Σ_i φ(q_i)
    Î_i = φ(q_i)·Σ_j φ(k_j)/O_j           Ô_j = φ(k_j)·Σ_i φ(q_i)/I_i, clamped to [-1, 1]
    v̂_j = n softmax_j(Ô) v_j              y_i = sigmoid(Î_i m/n) φ(q_i)/I_i · Σ_j φ(k_j) v̂_jᵀ

The causal form takes every sum up to its own index t and keeps magnitudes by factors of t:

    1/I_t and 1/O_t are multiplied by t, Î_t and Ô_t divided by it,
    v̂_t = t e^Ô_t / Σ_{s≤t} e^Ô_s v_t     y_t = sigmoid(Î_t) φ(q_t)/(t I_t) · Σ_{s≤t} φ(k_s) v̂_sᵀ

(I_t with its factor of t). A source competes with those before it only, so the layer streams: its state
is five sums and one matrix. What differs from the official code: its causal product holds a d×e matrix a
token, ours is `regardant.core.decayed_linear`; there is no dropout behind the output; padding is left
out of every sum and out of m, n and t; sums are float32 when the inputs are half as precise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from regardant.core.decayed_linear import decayed_linear, decayed_linear_step
from regardant.core.errors import require
from regardant.core.mixer import MultiHead, MultiHeadState
from regardant.core.rule import HeadShape, Rule, causal_and_padding
from regardant.core.state import State
from regardant.core.supports import Supports

EPSILON = 1e-6


@dataclass
class FlowState(State):
    """The sums over the tokens so far: Σ φ(k), Σ φ(q), Σ φ(k)/O, Σ φ(q)/I, Σ e^Ô and Σ φ(k) v̂ᵀ."""

    keys: Float[Tensor, "b h d"]
    queries: Float[Tensor, "b h d"]
    sources: Float[Tensor, "b h d"]
    sinks: Float[Tensor, "b h d"]
    rivals: Float[Tensor, "b h"]
    matrix: Float[Tensor, "b h d e"]


class FlowRule(Rule):
    """Attention by conservation of flow. `sinks` says which of the queries are real (None: all)."""

    supports = Supports(
        causal_cross=False, pattern=False, padding=False, time=1.0, memory=1.0, state=0.0,
        exempt={"step": "a prompt's queries enter its sums too, so its state comes from the layer's prefill"},
    )  # fmt: skip
    """Of the rule alone: the layer also takes padding, since it knows which queries are real."""

    def forward(self, q, k, v, *, pattern=None, scale=None, sinks: Bool[Tensor, "b m"] | None = None):
        causal, sources = causal_and_padding(self, pattern)
        if causal:
            return self.run(q, k, v, scale=scale, real=sources)[0]
        kind, share = v.dtype, q.shape[1] // k.shape[1]
        q, k, v = _capacity(q, 1, scale), _capacity(k, share), _exact(v, share)
        taken, sent = _column(sinks, q), _column(sources, k)
        m, n = (each.sum(2, keepdim=True).clamp(min=1) for each in (taken, sent))
        incoming, outgoing = _through_all(q, sent.mT @ k), _through_all(k, taken.mT @ q)
        allotted = _through_all(q, (sent / outgoing).mT @ k)
        conserved = _through_all(k, (taken / incoming).mT @ q)
        rivalry = conserved.clamp(-1, 1).exp() * sent
        competition = rivalry * (n / rivalry.sum(2, keepdim=True).clamp(min=EPSILON))
        gate = torch.sigmoid(allotted * (m / n)) / incoming  # one column: cheaper than dividing the output
        return (q @ (k.mT @ (v * competition)) * gate).to(kind)

    def run(
        self, q: Float[Tensor, "b h n d"], k: Float[Tensor, "b g n d"], v: Float[Tensor, "b g n e"],
        *, scale: float | None = None, real: Bool[Tensor, "b n"] | None = None,
    ) -> tuple[Float[Tensor, "b h n e"], FlowState]:  # fmt: skip
        """The causal form over a whole sequence, and the state behind it."""
        kind, share = v.dtype, q.shape[1] // k.shape[1]
        q, k, v = _capacity(q, 1, scale), _capacity(k, share), _exact(v, share)
        sent = _column(real, q)
        t = sent.cumsum(2).clamp(min=1)
        keys, queries = ((each if real is None else each * sent).cumsum(2) for each in (k, q))
        incoming, outgoing = _through(q, keys) / t, _through(k, queries) / t
        sources, sinks = (k * (sent / outgoing)).cumsum(2), (q * (sent / incoming)).cumsum(2)
        rivalry = (_through(k, sinks) / t).clamp(-1, 1).exp() * sent
        rivals = rivalry.cumsum(2)
        competition = rivalry * (t / rivals.clamp(min=EPSILON))
        out, matrix = decayed_linear(q, k, v * competition, return_state=True)
        last = (each[:, :, -1] for each in (keys, queries, sources, sinks))
        state = FlowState(q.shape[2], *last, rivals[:, :, -1, 0], matrix)
        gate = torch.sigmoid(_through(q, sources) / t) / (incoming * t)
        return (out * gate).to(kind), state

    def reference(self, q, k, v, *, pattern=None, scale=None, sinks=None):
        """Every sum a product with a matrix of ones and zeros: who feeds a sink, who draws on a source."""
        causal, sources = causal_and_padding(self, pattern)
        share, e = q.shape[1] // k.shape[1], EPSILON
        q = torch.sigmoid(q if scale is None else q * scale)
        k, v = (each.repeat_interleave(share, dim=1) for each in (torch.sigmoid(k), v))
        sinks = sources if causal else sinks
        feeds = q.new_ones(q.shape[0], 1, q.shape[2], k.shape[2])
        draws = feeds.mT.clone()
        if sources is not None:
            feeds = feeds * sources.expand(len(q), -1)[:, None, None, :]
        if sinks is not None:
            draws = draws * sinks.expand(len(q), -1)[:, None, None, :]
        m, n = draws[:, :, :1].sum(-1, keepdim=True), feeds[:, :, :1].sum(-1, keepdim=True)
        t, among = torch.ones_like(n), feeds[:, :, :1]
        if causal:
            feeds, draws = feeds.tril(), draws.tril()
            t = m = n = feeds.sum(-1, keepdim=True).clamp(min=1)
            among = feeds
        incoming = ((q + e) * (feeds @ k + e)).sum(-1, keepdim=True) / t
        outgoing = ((k + e) * (draws @ q + e)).sum(-1, keepdim=True) / t
        allotted = ((q + e) * (feeds @ (k / outgoing) + e)).sum(-1, keepdim=True) / t
        conserved = ((k + e) * (draws @ (q / incoming) + e)).sum(-1, keepdim=True) / t
        rivalry = conserved.clamp(-1, 1).exp()
        competing = v * n * rivalry / (among @ rivalry).clamp(min=e)
        capacity = (q @ k.mT) / (incoming * t) * feeds
        return torch.sigmoid(allotted * m / n.clamp(min=1)) * (capacity @ competing)

    def start(self, shape: HeadShape, *, pattern=None, keys=None, values=None):
        causal_and_padding(self, pattern)
        require(keys is None, "keys are given, but flow needs the queries too: use the layer's prefill")
        exact = torch.promote_types(shape.dtype, torch.float32)
        lead = (shape.batch, shape.heads)
        sums = [torch.zeros(*lead, shape.head_dim, device=shape.device, dtype=exact) for _ in range(4)]
        rivals = torch.zeros(*lead, device=shape.device, dtype=exact)
        matrix = torch.zeros(*lead, shape.head_dim, shape.value_dim, device=shape.device, dtype=exact)
        return FlowState(0, *sums, rivals, matrix)

    def step(self, q, k, v, state, *, pattern=None, scale=None):
        kind, share, t = v.dtype, q.shape[1] // k.shape[1], state.length + 1
        q, k, v = _capacity(q, 1, scale), _capacity(k, share), _exact(v, share)
        keys, queries = state.keys + k, state.queries + q
        incoming, outgoing = _through(q, keys) / t, _through(k, queries) / t
        sources, sinks = state.sources + k / outgoing, state.sinks + q / incoming
        rivalry = (_through(k, sinks) / t).clamp(-1, 1).exp()
        rivals = state.rivals + rivalry[..., 0]
        out, matrix = decayed_linear_step(q, k, v * (rivalry / rivals[..., None] * t), state.matrix)
        out = torch.sigmoid(_through(q, sources) / t) * out / (incoming * t)
        return out.to(kind), FlowState(t, keys, queries, sources, sinks, rivals, matrix)


def _exact(x: Tensor, share: int) -> Tensor:
    """One row a query head, in an accuracy that bears long sums."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x if share == 1 else x.repeat_interleave(share, dim=1)


def _capacity(x: Tensor, share: int, scale: float | None = None) -> Tensor:
    return torch.sigmoid(_exact(x if scale is None else x * scale, share))


def _column(real: Bool[Tensor, "#b n"] | None, like: Float[Tensor, "b h n d"]) -> Float[Tensor, "#b 1 n 1"]:
    """1 where a token is real."""
    if real is None:
        return like.new_ones(1, 1, like.shape[2], 1)
    return real.reshape(-1, 1, like.shape[2], 1).to(like.dtype)


def _through(x: Float[Tensor, "*n d"], total: Float[Tensor, "*n d"]) -> Float[Tensor, "*n 1"]:
    """(x + ε)·(total + ε): the flow between each x and a total of the other side of its own."""
    x = x + EPSILON
    return (x * total).sum(-1, keepdim=True) + EPSILON * x.sum(-1, keepdim=True)


def _through_all(x: Float[Tensor, "b h n d"], total: Float[Tensor, "b h 1 d"]) -> Float[Tensor, "b h n 1"]:
    """The same, with one total for all."""
    total = total + EPSILON
    row = total @ x.mT  # a row times a matrix: several times faster than the matrix times a column
    return (row + EPSILON * total.sum(-1, keepdim=True)).mT


class Flowformer(MultiHead):
    """Flow attention; its projections have biases, as the paper's have."""

    supports = Supports(causal_cross=False, pattern=False, time=1.0, memory=1.0, state=0.0)

    def __init__(self, dim: int, heads: int, *, bias: bool = True, **shared):
        super().__init__(dim, heads, bias=bias, **shared)

    def make_rule(self):
        return FlowRule()

    def attend(self, q, k, v, *, x, pattern, padding=None, record=None):
        return self.rule(q, k, v, pattern=pattern, scale=self.scale, sinks=padding)

    def attend_reference(self, q, k, v, *, x, pattern, padding=None):
        return self.rule.reference(q, k, v, pattern=pattern, scale=self.scale, sinks=padding)

    def prefill(self, x):
        self.start(x.shape[0])
        self.check_inputs(x, None, None)
        heads, inner = self.rule.run(*self.project(x), scale=self.scale)
        return self.merge(heads, x=x), MultiHeadState(x.shape[1], inner)
