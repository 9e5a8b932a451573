"""Soft mixture of attention (Zhang et al., "BAM! Just Like That: Simple and Efficient Parameter Upcycling
for Mixture of Experts", 2024, arXiv:2408.08274).

Every expert is a whole attention layer, and every token goes to all of them:

    y = Σ_i r_i(x) Attn_i(x),     r(x) = softmax(W_r x)

so that nothing is dropped and no load has to be balanced. With keys="own" an expert has its own W_Q, W_K,
W_V and W_O, and decoding keeps the keys and values of all; with keys="shared" the experts have W_K and W_V
in common, and decoding keeps one set. `upcycled` makes the mixture of trained layers: their weights become
the experts', shared ones the mean over them. Copies of one layer make that layer again, whatever the
router says.

The experts run as heads of one attention: r_i weighs expert i's heads before the joint W_O. Positions and
patterns are those of one expert, the same for all. There is no official code to compare with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from regardant.core import plan
from regardant.core.averaged import averaged
from regardant.core.checks import check_heads, check_input
from regardant.core.errors import require, unknown
from regardant.core.head_groups import BiasOfHeads
from regardant.core.mixer import MultiHead, MultiHeadState
from regardant.core.pattern import Causal, Padding, Pattern, both
from regardant.core.position import Position, make_position
from regardant.core.rule import SoftmaxRule
from regardant.core.supports import Supports

KEYS = ("own", "shared")


@dataclass(frozen=True)
class OfExperts(Pattern):
    """A pattern of one expert's heads, for the heads of all: `own` says which of the expert's each is."""

    pattern: Pattern
    own: tuple[int, ...]

    @property
    def by_batch(self):
        return self.pattern.by_batch

    @property
    def by_head(self):
        return True

    @property
    def head_count(self):
        return len(self.own)

    @property
    def causal(self):
        return self.pattern.causal

    def allows(self, i, j, *, batch=None, head=None):
        return self.pattern.allows(i, j, batch=batch, head=torch.tensor(self.own, device=i.device)[head])

    def reach(self):
        return self.pattern.reach()

    def stationary(self):
        return self.pattern.stationary()


class SoftMixtureOfAttention(MultiHead):
    """`experts` attentions of `heads` heads each, mixed token by token.

    `kv_heads` counts the heads of keys of an expert. The record gets the observation "experts" [b, n, e].
    """

    supports = Supports(time=2.0, memory=1.0, state=1.0)

    def __init__(
        self, dim: int, heads: int, *, experts: int = 4, keys: Literal["own", "shared"] = "own",
        kv_heads: int | None = None, head_dim: int | None = None, position: str | Position = "none",
        max_length: int | None = None, causal: bool = False, bias: bool = False, **shared,
    ):  # fmt: skip
        check_heads(dim, heads, kv_heads, head_dim)
        require(experts >= 1, f"experts is {experts}, but a mixture has at least 1")
        if keys not in KEYS:
            raise unknown("keys", keys, KEYS)
        head_dim = dim // heads if head_dim is None else head_dim
        groups = heads if kv_heads is None else kv_heads
        position = make_position(
            position, dim=dim, heads=heads, head_dim=head_dim, causal=causal, max_length=max_length
        )
        # Weights are laid out head by head, in each head expert by expert. Where experts have keys of
        # their own that heads share, those heads must stand together: (group, expert, head).
        order = torch.arange(heads * experts).view(groups, -1, experts)
        order = (order.mT if keys == "own" else order).flatten()
        own = tuple((order // experts).tolist())
        rule = SoftmaxRule(bias=BiasOfHeads(position, own) if position.biases else None)
        super().__init__(
            dim, heads * experts, kv_heads=groups * experts if keys == "own" else groups, head_dim=head_dim,
            position=position, causal=causal, bias=bias, rule=rule, **shared,
        )  # fmt: skip
        self.experts, self.keys, self.expert_heads = experts, keys, heads
        self._order, self._own = order.tolist(), own
        self.router = nn.Linear(dim, experts, bias=False)
        self.to_out = nn.Linear(heads * experts * head_dim, dim, bias=False)
        self.out_bias = nn.Parameter(torch.zeros(experts, dim)) if bias else None

    @classmethod
    def from_dense(cls, layer: MultiHead, *, experts: int = 4, **config) -> Self:
        """A mixture of copies of one layer, which computes what that did."""
        return cls.upcycled([layer] * experts, **config)

    @classmethod
    def upcycled(cls, layers: Sequence[MultiHead], **config) -> Self:
        """A mixture of these layers, with a router at random."""
        require(len(layers) >= 1, "layers is empty, but a mixture is of at least one")
        first = layers[0]
        facts = [(each.to_q.weight.shape, each.to_k.weight.shape, each.heads, each.causal) for each in layers]
        odd = [fact for fact in facts if fact != facts[0]]
        require(not odd, "layers differ in their width, their heads or their causality: copies of one do not")
        new = cls(
            first.dim, first.heads, **{
                "experts": len(layers), "causal": first.causal, "context_dim": first.context_dim,
                "kv_heads": first.kv_heads, "head_dim": first.head_dim, "pattern": first.pattern,
                "position": averaged([layer.position for layer in layers]), "scale": first.scale,
                "bias": first.to_q.bias is not None,
            } | config,
        ).to(first.to_q.weight)  # fmt: skip
        with torch.no_grad():
            for name in ("to_q", "to_k", "to_v"):
                shared = new.keys == "shared" and name != "to_q"
                heads = first.heads if name == "to_q" else first.kv_heads
                for kind in ("weight", "bias") if first.to_q.bias is not None else ("weight",):
                    parts = torch.stack([getattr(getattr(layer, name), kind) for layer in layers])
                    joint = parts.mean(0) if shared else parts.unflatten(1, (heads, -1)).transpose(0, 1)
                    target = getattr(getattr(new, name), kind)
                    target.copy_(joint.reshape(target.shape))
            parts = [layer.to_out.weight.unflatten(1, (first.heads, -1)) for layer in layers]
            new.to_out.weight.copy_(torch.stack(parts, dim=2).flatten(1))
            if new.out_bias is not None:
                new.out_bias.copy_(torch.stack([layer.to_out.bias for layer in layers]))
        return new

    def route(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n e"]:
        """How much each token takes of each expert."""
        exact = torch.promote_types(x.dtype, torch.float32)
        return F.linear(x.to(exact), self.router.weight.to(exact)).softmax(-1)

    def visible(self, keys, *, across, padding):
        given = None if self.pattern is None else self.pattern.on(keys)
        if given is not None and given.by_head:
            given = OfExperts(given, self._own)
        order = Causal() if self.causal and not across else None
        return both(order, given, None if padding is None else Padding(padding))

    def project(self, x, context=None, *, offset=0):
        q, k, v = super().project(x, context, offset=offset)
        return self._rearranged(q, self._order), k, v

    def step(self, x_t, state):
        if not state.across:
            return super().step(x_t, state)
        check_input("x_t", x_t, "batch, width", self.dim, self.to_q.weight)
        x = self.position.embed(x_t[:, None], state.length)
        q = self.to_q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        q = self._rearranged(q, self._order)[:, :, 0]
        heads, inner = self.rule.step(q, None, None, state.inner, pattern=None, scale=self.scale)
        return self.merge(heads[:, :, None], x=x_t[:, None])[:, 0], MultiHeadState(
            state.length + 1, inner, across=True
        )

    def merge(self, heads, *, x, record=None):
        share = self.route(x)
        if record is not None:
            record.note("experts", share)
        share = share.to(heads.dtype)
        back = sorted(range(len(self._order)), key=self._order.__getitem__)
        heads = self._rearranged(heads, back).unflatten(1, (-1, self.experts))
        heads = (heads * share.mT[:, None, :, :, None]).flatten(1, 2)
        y = super().merge(heads, x=x)
        return y if self.out_bias is None else y + share @ self.out_bias

    @staticmethod
    def _rearranged(heads: Float[Tensor, "b h n d"], order: list[int]) -> Float[Tensor, "b h n d"]:
        if order == sorted(order):
            return heads
        return heads.index_select(1, torch.tensor(order, device=heads.device))

    def reference(self, x, context=None, padding=None):
        self.check_inputs(x, context, padding)
        across, share = context is not None, (x @ self.router.weight.mT).softmax(-1)
        embedded = self.position.embed(x)
        source = context if across else embedded
        order = Causal() if self.causal and not across else None
        given = None if self.pattern is None else self.pattern.on(source.shape[1])
        pattern = both(order, given, None if padding is None else Padding(padding))
        y = 0
        for expert in range(self.experts):
            q, k, v = (
                self._of(expert, linear, rows)
                for linear, rows in ((self.to_q, embedded), (self.to_k, source), (self.to_v, source))
            )
            if not across:
                q, k = self.position.turn(q), self.position.turn(k)
            bias = self.position if self.position.biases else None
            heads = plan.attend_dense(q, k, v, pattern, scale=self.scale, bias=bias)
            weight = self.to_out.weight.unflatten(1, (self.expert_heads, self.experts, -1))[:, :, expert]
            own = heads.transpose(1, 2).flatten(2) @ weight.flatten(1).mT
            own = own if self.out_bias is None else own + self.out_bias[expert]
            y = y + share[..., expert, None] * own
        return y

    def _of(self, expert: int, linear: nn.Linear, rows: Tensor) -> Float[Tensor, "b h n d"]:
        """One expert's queries, keys or values."""
        heads = linear(rows).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        shared = self.keys == "shared" and linear is not self.to_q
        return heads if shared else heads[:, expert :: self.experts]
