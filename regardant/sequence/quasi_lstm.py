"""The quasi-LSTM: an LSTM without the feedback of its hidden state, as the dynamical systems framework
(Sieber et al. 2024, arXiv:2405.15731) compares it with attention and state space models.

    f = sigmoid(W_f u)     g = sigmoid(W_g u)     o = sigmoid(W_o u)
    h_t = f_t ⊙ h_{t-1} + g_t ⊙ tanh(W u_t)       y_t = o_t ⊙ tanh(h_t)

One state a channel. With nothing fed back the gates are known for all tokens at once, and the recurrence is
linear. `transition` puts another Λ_t in the place of the forget gate: S6's exp(-Δ_t A), of which the forget
gate with the sign of W_f turned is the case A = 1, or RG-LRU's. Projections before and behind are those of
any mixer; with more than one head, gates see the channels of their own head alone. There is no official code.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from regardant.core.linear_time_varying import Factors, LinearTimeVarying
from regardant.core.transition import HeadwiseLinear, make_transition


class QuasiLSTM(LinearTimeVarying):
    """A gated RNN without feedback, between two projections."""

    def __init__(
        self, dim: int, heads: int = 1, *, causal: bool = True,
        transition: Literal["lstm", "s6", "rg-lru"] = "lstm", bias: bool = False,
    ):  # fmt: skip
        super().__init__(dim, heads, causal=causal)
        self.to_u, self.to_out = nn.Linear(dim, dim, bias=bias), nn.Linear(dim, dim, bias=bias)
        self.transition = make_transition(transition, dim, heads)
        self.to_candidate = HeadwiseLinear(dim, heads)
        self.write_gate, self.read_gate = HeadwiseLinear(dim, heads), HeadwiseLinear(dim, heads)

    def factors(self, x):
        u = self.to_u(x)
        value = self.split(torch.tanh(self.to_candidate(u)))
        return Factors(
            value=value,
            write=value.new_ones(*value.shape[:3], 1),
            read=value.new_ones(*value.shape[:3], 1),
            gate=self.split(torch.sigmoid(self.write_gate(u))),
            log_decay=self.split(self.transition(u))[..., None, :],
        )

    def merge(self, y, *, x):
        opened = torch.sigmoid(self.read_gate(self.to_u(x)))
        return self.to_out(opened * torch.tanh(y.transpose(1, 2).flatten(2)))
