"""Relative attention in memory that is linear in the length (Huang et al., "Music Transformer", 2018,
arXiv:1809.04281).

Intervals matter more in music than places, so each head learns a vector a distance:

    logits_ij = (q_i·k_j + q_i·E[j - i]) / √d

Shaw et al. (2018) write out E[j - i], n × n × d numbers. Here each query meets each row of E once, q Eᵀ,
and the result is read askew (`regardant.core.relative_logits`): what the relative term needs beyond
softmax attention is E, and a block of rows at a time. The term of Shaw et al. for values is dropped, as in
the paper. Distances from `max_distance` on share the farthest vector; a layer that is not causal has a
vector for either side.

The paper's local form (a block sees itself and the one before) is this layer under `pattern=Window(n)`,
which lets every query look back equally far. Its further relations for chorales, of pitch and of time,
need the tokens' meaning and are not here. What differs from the official code: beyond the farthest
distance it adds 0 to the logits, where the paper clips distances; it writes out all logits.
"""

from __future__ import annotations

import torch
from torch import nn

from regardant.core.errors import require
from regardant.core.mixer import MultiHead
from regardant.core.relative_logits import RelativeLogits
from regardant.core.rule import SoftmaxRule
from regardant.core.supports import Supports


class RelativeRule(SoftmaxRule):
    """softmax((q·k + q·E[j - i]) · scale) v. Row `farthest` of the table is E[0]."""

    supports = Supports(cross=False, causal_cross=False, time=2.0, memory=1.0, state=1.0)

    def __init__(self, heads: int, head_dim: int, *, max_distance: int, causal: bool):
        super().__init__()
        self.farthest = max_distance - 1
        rows = max_distance if causal else 2 * max_distance - 1
        self.table = nn.Parameter(torch.randn(heads, rows, head_dim) * head_dim**-0.5)

    def added(self, q, *, scale, offset=0):
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        return RelativeLogits(q, self.table, origin=self.farthest, offset=offset, scale=scale)

    def reference(self, q, k, v, *, pattern=None, scale=None):
        """With E[j - i] written out."""
        share = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(share, dim=1), v.repeat_interleave(share, dim=1)
        i, j = torch.arange(q.shape[2], device=q.device), torch.arange(k.shape[2], device=q.device)
        row = (j - i[:, None] + self.farthest).clamp(0, self.table.shape[1] - 1)
        logits = q @ k.mT + torch.einsum("bhid,hijd->bhij", q, self.table[:, row])
        logits = logits * (q.shape[-1] ** -0.5 if scale is None else scale)
        if pattern is None:
            return logits.softmax(-1) @ v
        mask = pattern.block(i, j, batch=len(q), heads=q.shape[1])
        empty = ~mask.any(-1, keepdim=True)
        return logits.masked_fill(~(mask | empty), -torch.inf).softmax(-1).masked_fill(empty, 0) @ v


class MusicTransformer(MultiHead):
    """Softmax attention with a learned vector a head and a distance, up to `max_distance` - 1."""

    supports = Supports(cross=False, causal_cross=False, time=2.0, memory=1.0, state=1.0)

    def __init__(self, dim: int, heads: int, *, max_distance: int = 512, **shared):
        require(max_distance >= 1, f"max_distance is {max_distance}, but a token is at distance 0 of itself")
        super().__init__(dim, heads, **shared)
        require(
            not self.position.biases,
            f"position is {type(self.position).__name__}, a bias on logits, which this layer learns itself",
        )
        self.rule = RelativeRule(heads, self.head_dim, max_distance=max_distance, causal=self.causal)
