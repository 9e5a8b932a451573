"""How much of its state a gated recurrence keeps, channel by channel and token by token: log Λ_t from u_t.

    forget gate    Λ = sigmoid(W u + b)                          of an LSTM
    S6             Λ = exp(-Δ A), Δ = softplus(W u + b)          of Mamba; A > 0 is learned, not of the token
    RG-LRU         Λ = a^(c r), r = sigmoid(W u + b)             of Griffin; a = sigmoid(learned), c = 8

With A = 1, S6's Λ = exp(-softplus(x)) = sigmoid(-x): a forget gate with the sign turned round. The DSF
(Sieber et al. 2024, arXiv:2405.15731) sets them into one another's networks; so they are parts here.
"""

from __future__ import annotations

from math import log
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from regardant.core.errors import unknown

Transitions = Literal["lstm", "s6", "rg-lru"]


class HeadwiseLinear(nn.Module):
    """A linear map whose outputs see the inputs of their own head alone; of one head, any linear map."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        width = dim // heads
        self.weight = nn.Parameter(torch.empty(heads, width, width).uniform_(-(width**-0.5), width**-0.5))
        self.bias = nn.Parameter(torch.empty(dim).uniform_(-(width**-0.5), width**-0.5))

    def forward(self, u: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        heads = len(self.weight)
        each = torch.einsum("bnhi,hoi->bnho", u.unflatten(-1, (heads, -1)), self.weight)
        return each.flatten(2) + self.bias


class Transition(nn.Module):
    """u → log Λ ≤ 0, both [b, n, c]; in float32 where u is half as precise."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.gate = HeadwiseLinear(dim, heads)

    def raised(self, u: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """W u + b"""
        return self.gate(u).to(torch.promote_types(u.dtype, torch.float32))

    def forward(self, u: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        raise TypeError(f"{type(self).__name__} must define forward")


class ForgetGate(Transition):
    """log sigmoid(W u + b); b starts at 1, so that most is kept."""

    def __init__(self, dim: int, heads: int):
        super().__init__(dim, heads)
        nn.init.ones_(self.gate.bias)

    def forward(self, u):
        return F.logsigmoid(self.raised(u))


class SelectiveStep(Transition):
    """-Δ A, Δ = softplus(W u + b), which starts between 0.001 and 0.1; A starts at 1."""

    def __init__(self, dim: int, heads: int):
        super().__init__(dim, heads)
        with torch.no_grad():
            steps = torch.exp(torch.empty(dim).uniform_(log(0.001), log(0.1)))
            self.gate.bias.copy_(torch.log(torch.expm1(steps)))
        self.log_rate = nn.Parameter(torch.zeros(dim))

    def step_size(self, u: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """Δ"""
        return F.softplus(self.raised(u))

    def forward(self, u):
        return -self.step_size(u) * torch.exp(self.log_rate)


class GatedDecay(Transition):
    """c r log a, r = sigmoid(W u + b), a = sigmoid(learned); a^c starts between 0.9 and 0.999."""

    strength = 8.0

    def __init__(self, dim: int, heads: int):
        super().__init__(dim, heads)
        kept = torch.empty(dim).uniform_(0.9, 0.999) ** (1 / self.strength)
        self.kept = nn.Parameter(torch.log(kept / (1 - kept)))

    def forward(self, u):
        raised = self.raised(u)
        return self.strength * torch.sigmoid(raised) * F.logsigmoid(self.kept.to(raised.dtype))


def make_transition(kind: Transitions, dim: int, heads: int) -> Transition:
    """The transition of that name."""
    match kind:
        case "lstm":
            return ForgetGate(dim, heads)
        case "s6":
            return SelectiveStep(dim, heads)
        case "rg-lru":
            return GatedDecay(dim, heads)
    raise unknown("transition", str(kind), get_args(Transitions))
