"""The selective state space model, S6, the core of Mamba (Gu and Dao 2023, arXiv:2312.00752), as the
dynamical systems framework (Sieber et al. 2024, arXiv:2405.15731) writes it.

    Δ_t = softplus(W_Δ u_t + b)     B_t = Δ_t ⊗ W_B u_t     C_t = W_C u_t     D learned
    h_t = exp(-Δ_t A) ⊙ h_{t-1} + B_t ⊙ u_t                 y_t = C_tᵀ h_t + D ⊙ u_t

Every channel has N states, each with a rate A > 0 of its own, which starts at 1, 2, … N. `transition` puts
another Λ_t in the place of exp(-Δ_t A): an LSTM's forget gate, or Griffin's RG-LRU, one for all states of
a channel; B stays as it is.

What differs from Mamba's block: its short convolution and its gate belong to the network around, not to the
recurrence, and are left out; W_Δ has full rank; heads split W_Δ into blocks and have B and C of their own,
one head being the paper's.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from regardant.core.errors import require
from regardant.core.linear_time_varying import Factors, LinearTimeVarying
from regardant.core.transition import SelectiveStep, make_transition


class SelectiveStateSpace(LinearTimeVarying):
    """S6 between two projections, with `states` states a channel."""

    def __init__(
        self, dim: int, heads: int = 1, *, causal: bool = True, states: int = 16,
        transition: Literal["s6", "lstm", "rg-lru"] = "s6", bias: bool = False,
    ):  # fmt: skip
        super().__init__(dim, heads, causal=causal)
        require(states >= 1, f"states is {states}, but a channel has at least 1")
        self.to_u, self.to_out = nn.Linear(dim, dim, bias=bias), nn.Linear(dim, dim, bias=bias)
        self.to_write = nn.Linear(dim, heads * states, bias=False)
        self.to_read = nn.Linear(dim, heads * states, bias=False)
        self.step_size = SelectiveStep(dim, heads)
        self.transition = None if transition == "s6" else make_transition(transition, dim, heads)
        if self.transition is None:
            rates = torch.arange(1, states + 1, dtype=torch.get_default_dtype()).log()
            self.step_size.log_rate = nn.Parameter(rates[:, None].repeat(1, dim))
        else:
            self.step_size.log_rate = None
        self.skip = nn.Parameter(torch.ones(dim))

    def factors(self, x):
        u = self.to_u(x)
        step, rates = self.step_size.step_size(u), None
        if self.transition is None:
            log_decay = -step
            rates = torch.exp(self.step_size.log_rate).unflatten(1, (self.heads, -1)).transpose(0, 1)
        else:
            log_decay = self.transition(u)
        return Factors(
            value=self.split(u),
            write=self.split(self.to_write(u)),
            read=self.split(self.to_read(u)),
            gate=self.split(step.to(u.dtype)),
            log_decay=self.split(log_decay)[..., None, :],
            rates=rates,
            skip=self.skip.view(1, self.heads, 1, -1).expand(len(x), -1, x.shape[1], -1),
        )

    def merge(self, y, *, x):
        return self.to_out(y.transpose(1, 2).flatten(2))
