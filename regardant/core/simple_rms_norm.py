"""A norm without weights: every vector is brought to a root mean square of 1.

    y = x / sqrt(mean(x²) + ε)

TransNormerLLM (Qin et al. 2023, arXiv:2307.14995) calls it SimpleRMSNorm. Squares are summed in float32
when the input is half as precise; a vector of zeros stays one, with finite gradients.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regardant.core.errors import require


class SimpleRMSNorm(nn.Module):
    """x / sqrt(mean(x²) + ε) over the last axis."""

    def __init__(self, *, epsilon: float = 1e-6):
        super().__init__()
        require(epsilon > 0, f"epsilon is {epsilon}, but it keeps a vector of zeros from a division by 0")
        self.epsilon = epsilon

    def forward(self, x: Float[Tensor, "*b c"]) -> Float[Tensor, "*b c"]:
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        return (exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + self.epsilon)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"epsilon={self.epsilon}"
