"""Linearised relative positional encoding, LRPE (Qin et al. 2023, arXiv:2307.09270), the diagonal kind.

A channel of a query and of a key meet with the weight cos(θ(t-s)) of their distance. The cosine of a
difference is a sum of two products,

    q_t k_s cos(θ(t-s)) = [q_t cos θt, q_t sin θt] · [k_s cos θs, k_s sin θs]

so turning a vector makes it twice as wide, and a layer that keeps keys in a matrix, or in a cache, keeps
twice as much. Unlike a rotation it mixes no pair of channels, and every channel has its own θ, learned.
"""

from __future__ import annotations

import torch
from torch import nn

from regardant.core.errors import require
from regardant.core.position import Position


class LinearizedRelative(Position):
    """x → [x cos θt, x sin θt], with a θ for each channel of each (key and value) head.

    At first θ_j = base^(-2j/(heads·head_dim)), j counted through all heads, as in the authors' code: the
    first heads turn fast and the last ones slowly.
    """

    relates = True

    def __init__(self, heads: int, head_dim: int, base: float = 10000.0):
        super().__init__()
        require(base > 0, f"base is {base}, but angles shrink as its powers: make it positive")
        width = heads * head_dim
        powers = -2 / width * torch.arange(width, dtype=torch.float64)
        rates = (base**powers).to(torch.get_default_dtype())
        self.theta = nn.Parameter(rates.view(heads, 1, head_dim))

    def turn(self, q_or_k, offset=0):
        heads, n = q_or_k.shape[1], q_or_k.shape[-2]
        # Angles in float32 at least: at position 10,000 bfloat16 is off by more than a turn.
        exact = torch.promote_types(q_or_k.dtype, torch.float32)
        theta = self.theta.to(exact)
        at = torch.arange(offset, offset + n, device=q_or_k.device, dtype=exact)[:, None]
        angle = theta * at
        share = heads // theta.shape[0]
        cos, sin = (x.to(q_or_k.dtype).repeat_interleave(share, dim=0) for x in (angle.cos(), angle.sin()))
        return torch.cat([q_or_k * cos, q_or_k * sin], dim=-1)
