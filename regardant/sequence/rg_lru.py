"""The real-gated linear recurrent unit of Griffin (De et al. 2024, arXiv:2402.19427), as the dynamical
systems framework (Sieber et al. 2024, arXiv:2405.15731) compares it with attention and state space models.

    r = sigmoid(W_r u)     i = sigmoid(W_x u)     a_t = a^(c r_t), a = sigmoid(learned), c = 8
    h_t = a_t ⊙ h_{t-1} + sqrt(1 - a_t²) ⊙ (i_t ⊙ u_t)       y_t = h_t

One state a channel; the root keeps its size the same whatever is forgotten. `transition` puts another Λ_t
in the place of a_t, also under the root: S6's exp(-Δ_t A), or an LSTM's forget gate. What differs from
Griffin's code: it takes the first token in full, without the root; its block's short convolution and gate
belong to the network around, and are left out; heads, its blocks of gate weights, are 1 unless given. The
framework has no official code.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from regardant.core.linear_time_varying import Factors, LinearTimeVarying
from regardant.core.transition import HeadwiseLinear, make_transition


class RGLRU(LinearTimeVarying):
    """A gated linear recurrent unit between two projections."""

    def __init__(
        self, dim: int, heads: int = 1, *, causal: bool = True,
        transition: Literal["rg-lru", "s6", "lstm"] = "rg-lru", bias: bool = False,
    ):  # fmt: skip
        super().__init__(dim, heads, causal=causal)
        self.to_u, self.to_out = nn.Linear(dim, dim, bias=bias), nn.Linear(dim, dim, bias=bias)
        self.transition = make_transition(transition, dim, heads)
        self.write_gate = HeadwiseLinear(dim, heads)

    def factors(self, x):
        u = self.to_u(x)
        log_decay = self.transition(u)
        # 1 - a² without the difference, and never quite 0, where a root has no slope.
        room = (-torch.expm1(2 * log_decay)).clamp(min=1e-12).sqrt().to(u.dtype)
        value = self.split(u)
        return Factors(
            value=value,
            write=value.new_ones(*value.shape[:3], 1),
            read=value.new_ones(*value.shape[:3], 1),
            gate=self.split(room * torch.sigmoid(self.write_gate(u))),
            log_decay=self.split(log_decay)[..., None, :],
        )

    def merge(self, y, *, x):
        return self.to_out(y.transpose(1, 2).flatten(2))
