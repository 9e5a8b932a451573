"""Linear attention as a recurrence, with the normalisers of the dynamical systems framework (Sieber et al.,
"Understanding the differences in Foundation Models: Attention, State Space Models, and Recurrent Neural
Networks", 2024, arXiv:2405.15731).

    S_t = S_{t-1} + ψ(k_t) v_tᵀ        y_t = S_tᵀ φ(q_t) / η_t

    sum                       η_t = φ(q_t)ᵀ Σ_{s≤t} ψ(k_s): the weights sum to 1, as softmax's do
    exp, softplus, sigmoid    η_t = that function of w·x_t + b: learned, of the current token alone
    none                      η_t = 1

With Λ_t = η_{t-1}/η_t and B_t = ψ(k_t)/η_t this is the framework's recurrence; η_{t-1}/η_t may be anything,
so the division waits until the state is read. A learned η is no approximation of the sum: it cannot
depend on the query's agreement with what came before.

φ = ψ is 1 + elu, or (`features="taylor"`) the monomials up to the second order, whose products are the first
terms of the exponential series, exp(q·k/√d) ≈ Σ_p (q·k/√d)^p / p!; the state then has 1 + d + d(d+1)/2 rows.
Softmax attention is the limit of all orders, with an infinite state. The paper has no code to differ from.
"""

from __future__ import annotations

from itertools import combinations_with_replacement
from math import factorial, prod
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.core.linear_time_varying import Factors, LinearTimeVarying

FLOOR = 1e-6
"""The smallest denominator."""


def taylor_features(x: Float[Tensor, "*b d"], order: int) -> Float[Tensor, "*b f"]:
    """Features whose products are Σ_{p ≤ order} (x·y/√d)^p / p!, C(d+p-1, p) of them for each p."""
    require(order >= 0, f"order is {order}, but a Taylor series begins with order 0")
    x, features = x * x.shape[-1] ** -0.25, [torch.ones_like(x[..., :1])]
    for p in range(1, order + 1):
        powers = torch.tensor(list(combinations_with_replacement(range(x.shape[-1]), p)), device=x.device)
        # (x·y)^p / p! is a sum over monomials of x times the same of y over the factorials of its powers.
        repeated = [prod(factorial(row.count(i)) for i in set(row)) for row in powers.tolist()]
        features.append(x[..., powers].prod(-1) / x.new_tensor(repeated).sqrt())
    return torch.cat(features, dim=-1)


class LinearAttention(LinearTimeVarying):
    """Causal linear attention; `states` is the width of queries and keys a head (head_dim unless given)."""

    def __init__(
        self, dim: int, heads: int, *, causal: bool = True, states: int | None = None,
        normaliser: Literal["sum", "exp", "softplus", "sigmoid", "none"] = "sum",
        features: Literal["elu", "taylor"] = "elu", bias: bool = False,
    ):  # fmt: skip
        super().__init__(dim, heads, causal=causal)
        states = self.head_dim if states is None else states
        require(states >= 1, f"states is {states}, but a head has at least 1")
        known = ("sum", "exp", "softplus", "sigmoid", "none")
        require(normaliser in known, f"normaliser is {normaliser!r}, but it is one of {', '.join(known)}")
        require(features in ("elu", "taylor"), f"features is {features!r}, but it is elu or taylor")
        self.normaliser, self.features = normaliser, features
        self.to_q = nn.Linear(dim, heads * states, bias=bias)
        self.to_k = nn.Linear(dim, heads * states, bias=bias)
        self.to_v = nn.Linear(dim, dim, bias=bias)
        self.to_out = nn.Linear(dim, dim, bias=bias)
        learned = normaliser in ("exp", "softplus", "sigmoid")
        self.to_scale = nn.Linear(dim, heads) if learned else None

    def raised(self, q_or_k: Float[Tensor, "b h n d"]) -> Float[Tensor, "b h n f"]:
        """φ and ψ"""
        return 1 + F.elu(q_or_k) if self.features == "elu" else taylor_features(q_or_k, 2)

    def factors(self, x):
        q, k, v = (self.split(linear(x)) for linear in (self.to_q, self.to_k, self.to_v))
        if self.normaliser == "sum":
            v = F.pad(v, (0, 1), value=1.0)  # the sum of the weights is their product with ones
        return Factors(value=v, write=self.raised(k), read=self.raised(q))

    def merge(self, y, *, x):
        if self.normaliser == "sum":
            y = y[..., :-1] / y[..., -1:].clamp(min=FLOOR)
        elif self.to_scale is not None:
            y = y * self.inverse_scale(x)
        return self.to_out(y.transpose(1, 2).flatten(2))

    def inverse_scale(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b h n 1"]:
        """1/η of a learned η: as one exponential, so that no intermediate value overflows."""
        raised = self.to_scale(x).transpose(1, 2)[..., None]
        exact = raised.to(torch.promote_types(raised.dtype, torch.float32))
        log_eta = {
            "exp": lambda: exact,
            "softplus": lambda: torch.log(F.softplus(exact).clamp(min=torch.finfo(exact.dtype).tiny)),
            "sigmoid": lambda: F.logsigmoid(exact),
        }[self.normaliser]()
        return torch.exp(-log_eta).to(raised.dtype)
