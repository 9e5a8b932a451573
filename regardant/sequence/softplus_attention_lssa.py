"""Softplus attention with re-weighting (Gao & Spratling, "Softplus Attention with Re-weighting Boosts Length
Extrapolation in Large Language Models", 2025, arXiv:2501.13428).

Softmax does two things: it makes scores positive, and it makes a row sum to one. This keeps the second
and replaces the exponential by a softplus, scaled by the number N of keys that the row sees; a second
stage then keeps what is above an even share and raises it to a power, so that long rows stay sharp:

    a_j = softplus(log d · log N / √d · q·k_j)        A_j = a_j / Σ a
    r_j = relu(N A_j - o)^p                           A'_j = r_j / Σ r,  or A_j where that sum is 0

The published text that could be had stops before these equations, and no official code could be read:
this is our reading. `power=None` leaves the second stage out (the authors' LSSA; with it, LSSAR).
Both stages run in log space, because a softplus of a very negative score is 0 and a row of them 0/0.
"""

from __future__ import annotations

from math import inf, log

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from regardant.core.errors import require
from regardant.core.mixer import MultiHead
from regardant.core.plan import attend_dense
from regardant.core.rule import SoftmaxRule
from regardant.core.supports import Supports

LINEAR_BELOW = -60.0
"""Below this, log softplus(z) is z to float64 rounding."""


class SoftplusRule(SoftmaxRule):
    """Softplus weights normalised by their sum, and re-weighted, under any pattern."""

    supports = Supports(time=2.0, memory=1.0, state=1.0)

    def __init__(
        self, head_dim: int, *, power: float | None = 15.0, offset: float = 1.0,
        bias: torch.nn.Module | None = None,
    ):  # fmt: skip
        super().__init__(bias=bias, normaliser=self.normalise)
        require(power is None or power > 0, f"power is {power}, but re-weighting sharpens: it is positive")
        require(offset >= 0, f"offset is {offset}, but shares of a row are counted from 0")
        self.head_dim, self.power, self.offset = head_dim, power, offset

    def normalise(
        self, logits: Float[Tensor, "*rows n"], mask: Bool[Tensor, "*rows n"]
    ) -> Float[Tensor, "*rows n"]:
        """The weights of rows that each see a key."""
        seen = mask.sum(-1, keepdim=True).to(logits.dtype)
        scores = logits.masked_fill(~mask, 0) * (log(self.head_dim) * seen.log())
        near = _softplus(scores.clamp(min=LINEAR_BELOW)).log()
        logs = torch.where(scores < LINEAR_BELOW, scores, near).masked_fill(~mask, -inf)
        shares = logs.softmax(-1)
        if self.power is None:
            return shares
        above = F.relu(seen * shares - self.offset)
        largest = above.amax(-1, keepdim=True)
        sharp = (above / largest.where(largest > 0, 1)) ** self.power
        total = sharp.sum(-1, keepdim=True)
        return torch.where(largest > 0, sharp / total.where(largest > 0, 1), shares)

    def reference(self, q, k, v, *, pattern=None, scale=None):
        return attend_dense(q, k, v, pattern, scale=scale, bias=self.bias, normaliser=self._equation)

    def _equation(self, logits: Tensor, mask: Tensor) -> Tensor:
        """The two stages as they are written, for scores whose softplus does not vanish."""
        seen = mask.sum(-1, keepdim=True).to(logits.dtype)
        positive = _softplus(logits * (log(self.head_dim) * seen.log())).where(mask, 0)
        shares = positive / positive.sum(-1, keepdim=True)
        if self.power is None:
            return shares
        sharp = (seen * shares - self.offset).clamp(min=0) ** self.power
        total = sharp.sum(-1, keepdim=True)
        return torch.where(total > 0, sharp / total.where(total > 0, 1), shares)


def _softplus(x: Tensor) -> Tensor:
    """log(1 + e^x). torch's own turns linear at 20, and a power of 15 makes that jump seen."""
    return torch.logaddexp(x, torch.zeros_like(x))


class SoftplusAttentionLssa(MultiHead):
    """Multi-head softplus attention: `power` and `offset` are p and o of the re-weighting."""

    supports = Supports(time=2.0, memory=1.0, state=1.0)

    def __init__(self, dim: int, heads: int, *, power: float | None = 15.0, offset: float = 1.0, **shared):
        super().__init__(dim, heads, **shared)
        self.rule = SoftplusRule(self.head_dim, power=power, offset=offset, bias=self.rule.bias)
