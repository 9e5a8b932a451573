"""Mixture-of-head attention (Jin et al., "MoH: Multi-Head Attention as Mixture-of-Head Attention",
2024, arXiv:2410.11842).

Multi-head attention is a sum over heads, each through its own slice of the output projection. MoH
weighs that sum, token by token, with gates from the token that asks:

    y_t = Σ_i g_i(x_t) H_i,t W_O^i            [a₁, a₂] = softmax(W_h x_t)
    g_i = a₁ softmax(W_s x_t)_i               i one of the h_s shared heads
    g_i = a₂ softmax(W_r x_t)_i               i among the K largest of the h_r routed heads, else 0

and a balance loss β Σ_i f_i P_i over the routed heads keeps them all in use: f_i is the share of the
tokens that chose head i, P_i its mean probability.

As it stands the equation shrinks the output about as many times as there are heads. The official code
therefore rescales, and so do we unless `rescale=False`: the probabilities of the chosen heads are
renormalised to sum to K, the shared ones to h_s, a₁ and a₂ to 2, so that the gates of the active heads
average about 1. What differs from the official code: its balance term is larger by the factor h_r and lands
in a list on the class, ours is the paper's and goes into the record; with no shared head there is no
a₁, a₂; ties between heads go to the lower one; a single shared head is weighed by a₁ alone.

Every head is computed and then weighed, here as in the official code: leaving out a head's scores for
some tokens saves multiplications, but no time, without a kernel made for it.
"""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.core.mixer import MultiHead
from regardant.core.supports import Supports


class MoH(MultiHead):
    """Softmax attention whose heads are experts: `shared_heads` always run, `top_k` of the others.

    The defaults, a quarter of the heads shared and half of them chosen among the rest, keep 75 % active.
    The record gets the loss "balance" and the observation "gates" [b, n, heads].
    """

    supports = Supports(time=2.0, memory=1.0, state=1.0)

    def __init__(
        self, dim: int, heads: int, *, shared_heads: int | None = None, top_k: int | None = None,
        balance: float = 0.01, rescale: bool = True, **shared,
    ):  # fmt: skip
        super().__init__(dim, heads, **shared)
        shared_heads = heads // 4 if shared_heads is None else shared_heads
        require(
            0 <= shared_heads < heads,
            f"shared_heads is {shared_heads}, but of heads={heads} at least one is left to the router",
        )
        routed = heads - shared_heads
        top_k = min(max(heads // 2, 1), routed) if top_k is None else top_k
        require(1 <= top_k <= routed, f"top_k is {top_k}, but the router chooses 1 to {routed} heads")
        require(balance >= 0, f"balance is {balance}, but the weight of a loss is not negative")
        self.shared_heads, self.top_k, self.balance, self.rescale = shared_heads, top_k, balance, rescale
        self.to_routed = nn.Linear(dim, routed, bias=False)
        self.to_shared = nn.Linear(dim, shared_heads, bias=False) if shared_heads > 1 else None
        self.to_sides = nn.Linear(dim, 2, bias=False) if shared_heads > 0 else None

    @classmethod
    def from_dense(cls, layer: MultiHead, **config) -> Self:
        """`layer` with routers of zero, which weigh all heads alike.

        Unless `top_k` says otherwise every routed head is chosen, and the layer computes what it did.
        """
        shared_heads = config.setdefault("shared_heads", layer.heads // 4)
        config.setdefault("top_k", layer.heads - shared_heads)
        new = super().from_dense(layer, **config)
        for router in (new.to_routed, new.to_shared, new.to_sides):
            if router is not None:
                nn.init.zeros_(router.weight)
        return new

    def route(self, x: Float[Tensor, "b n c"]) -> tuple[Float[Tensor, "b n h"], Float[Tensor, "b n r"]]:
        """The gates of all heads, and the router's probabilities of the routed ones."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))  # in half precision the choice is a coin toss
        logits = _project(x, self.to_routed)
        probability = logits.softmax(-1)
        chosen = logits.sort(dim=-1, descending=True, stable=True).indices[..., : self.top_k]
        routed = torch.zeros_like(probability).scatter(-1, chosen, probability.gather(-1, chosen))
        if self.rescale:
            least = torch.finfo(routed.dtype).eps
            routed = routed * (self.top_k / routed.sum(-1, keepdim=True).clamp(min=least))
        if self.to_sides is None:
            return routed, probability
        sides = _project(x, self.to_sides).softmax(-1)
        shared = torch.ones_like(x[..., :1])
        if self.to_shared is not None:
            shared = _project(x, self.to_shared).softmax(-1)
        if self.rescale:
            sides, shared = 2 * sides, self.shared_heads * shared
        return torch.cat([sides[..., :1] * shared, sides[..., 1:] * routed], dim=-1), probability

    def forward(self, x, context=None, padding=None, *, record=None):
        y = super().forward(x, context, padding, record=record)
        if record is not None:
            gates, probability = self.route(x)
            record.note("gates", gates)
            real = padding if context is None and padding is not None else x.new_ones(x.shape[:2]).bool()
            record.add_loss("balance", self.balance * self._imbalance(gates, probability, real))
        return y

    def _imbalance(self, gates: Tensor, probability: Tensor, real: Bool[Tensor, "b n"]) -> Tensor:
        """Σ_i f_i P_i over the real tokens: K/h_r when the load is even, more when it is not."""
        weight = real.to(probability.dtype)[..., None] / real.sum().clamp(min=1)
        chosen = (gates[..., self.shared_heads :] > 0).to(probability.dtype)
        return ((chosen * weight).sum((0, 1)) * (probability * weight).sum((0, 1))).sum()

    def merge(self, heads, *, x, record=None):
        gates = self.route(x)[0].to(heads.dtype)
        return super().merge(heads * gates.transpose(1, 2)[..., None], x=x, record=record)

    def reference(self, x, context=None, padding=None):
        self.check_inputs(x, context, padding)
        q, k, v = self.project(x, context)
        pattern = self.visible(k.shape[2], across=context is not None, padding=padding)
        heads = self.attend_reference(q, k, v, x=x, pattern=pattern)
        slices = self.to_out.weight.split(self.head_dim, dim=1)
        parts = [self._plain_gate(x, i) * (heads[:, i] @ slices[i].mT) for i in range(self.heads)]
        return sum(parts) + (0 if self.to_out.bias is None else self.to_out.bias)

    def _plain_gate(self, x: Float[Tensor, "b n c"], head: int) -> Float[Tensor, "b n 1"]:
        """g_i as the equation has it, for one head."""
        shares = x.new_full((*x.shape[:2], 2), 0.5 if self.rescale else 1.0)
        if self.to_sides is not None:
            shares = (x @ self.to_sides.weight.mT).softmax(-1)
        if self.rescale:
            shares = 2 * shares
        if head < self.shared_heads:
            among = x.new_ones(*x.shape[:2], 1)
            if self.to_shared is not None:
                among = (x @ self.to_shared.weight.mT).softmax(-1)[..., head, None]
            return shares[..., :1] * among * (self.shared_heads if self.rescale else 1)
        head -= self.shared_heads
        among = (x @ self.to_routed.weight.mT).softmax(-1)
        this = among[..., head, None]
        better = (among > this).sum(-1, keepdim=True) + (among[..., :head] == this).sum(-1, keepdim=True)
        gate = shares[..., 1:] * this * (better < self.top_k)
        if self.rescale:
            gate = gate * self.top_k / among.topk(self.top_k).values.sum(-1, keepdim=True)
        return gate


def _project(x: Tensor, router: nn.Linear) -> Tensor:
    return F.linear(x, router.weight.to(x.dtype))
