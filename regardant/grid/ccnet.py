"""Criss-cross attention (Huang et al., 2018, arXiv 1811.11721).

A position looks along its row and its column, its own place counted once, under one softmax:

    a_u = softmax over v ∈ row(u) ∪ column(u) of q_u·k_v          (no 1/√d)
    y_u = γ Σ_v a_uv value_v + x_u

q and k are `reduction` times narrower than x; γ begins at 0, so a fresh layer passes x through, and its
projections learn nothing until γ has moved. Applied twice with the same weights (`recurrence=2`), every
position hears from every other: from (i', j') by way of (i, j') or (i', j). Two softmaxes, one a row and
one a column, would be axial attention.

As the released code has it; the paper has one head, more are an extension.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.core.grid_mixer import GridMixer
from regardant.core.grid_pattern import CrissCross
from regardant.core.partial_softmax import merge
from regardant.core.supports import Supports


class CrissCrossAttention(GridMixer):
    """Row and column under one softmax, `recurrence` times over with the same weights, with its residual."""

    supports = Supports(
        causal=False, cross=False, causal_cross=False, step=False, pattern=False, padding=False,
        grouped=False, time=1.5, memory=1.5, state=0.0,
    )  # fmt: skip

    def __init__(self, dim: int, heads: int = 1, *, reduction: int = 8, recurrence: int = 2):
        super().__init__()
        require(dim >= 1, f"dim is {dim}, but a layer is at least 1 wide")
        require(heads >= 1 and dim % heads == 0, f"heads={heads} does not divide dim={dim}")
        require(reduction >= 1, f"reduction is {reduction}, but queries and keys are at most as wide as x")
        require(recurrence >= 1, f"recurrence is {recurrence}, but the layer is applied at least once")
        self.dim, self.heads, self.recurrence = dim, heads, recurrence
        self.head_dim = max(dim // heads // reduction, 1)
        self.to_q = nn.Linear(dim, heads * self.head_dim)
        self.to_k = nn.Linear(dim, heads * self.head_dim)
        self.to_v = nn.Linear(dim, dim)
        self.gamma = nn.Parameter(torch.zeros(1))

    def project(self, x: Float[Tensor, "b h w c"]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys [b, heads, h, w, d] and values [b, heads, h, w, e]."""
        several = (layer(x).unflatten(-1, (self.heads, -1)) for layer in (self.to_q, self.to_k, self.to_v))
        q, k, v = (made.permute(0, 3, 1, 2, 4) for made in several)
        return q, k, v

    def forward(self, x, *, record=None):
        self.check_map(x, self.to_q.weight)
        for _ in range(self.recurrence):
            heard = criss_cross(*self.project(x))
            x = self.gamma * heard.permute(0, 2, 3, 1, 4).flatten(3) + x
        return x

    def reference(self, x):
        self.check_map(x, self.to_q.weight)
        size = x.shape[1:3]
        cross = CrissCross().on(*size).dense(size[0] * size[1], device=x.device)
        for _ in range(self.recurrence):
            q, k, v = (part.flatten(2, 3) for part in self.project(x))
            logits = (q @ k.transpose(-1, -2)).masked_fill(~cross, float("-inf"))
            heard = (logits.softmax(dim=-1) @ v).transpose(1, 2).flatten(2).unflatten(1, size)
            x = self.gamma * heard + x
        return x

    def receptive_field(self, *size):
        return CrissCross().on(*size) if self.recurrence == 1 else None


def criss_cross(
    q: Float[Tensor, "b n h w d"], k: Float[Tensor, "b n h w d"], v: Float[Tensor, "b n h w e"]
) -> Float[Tensor, "b n h w e"]:
    """One softmax over the row and the column of every position, in O(hw(h + w)).

    Rows and columns are softmaxed apart and merged by what the logits of each sum up to, so that no logit
    changes its place; the column leaves the position's own key to the row.
    """
    row = _lines(q, k, v)
    q, k, v = (part.transpose(2, 3) for part in (q, k, v))
    if q.shape[3] == 1:
        return row[0]
    own = torch.eye(q.shape[3], dtype=torch.bool, device=q.device)
    out, weight = _lines(q, k, v, hidden=own)
    return merge([row, (out.transpose(2, 3), weight.transpose(2, 3))])[0]


def _lines(q: Tensor, k: Tensor, v: Tensor, *, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Attention inside each line, and the logarithm of what the line's logits sum up to."""
    logits = q @ k.transpose(-1, -2)
    if hidden is not None:
        logits = logits.masked_fill(hidden, float("-inf"))
    return logits.softmax(dim=-1) @ v, logits.logsumexp(dim=-1)
