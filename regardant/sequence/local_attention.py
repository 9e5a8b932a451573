"""Local attention in chunks (Liu et al., "Generating Wikipedia by Summarizing Long Sequences", 2018,
arXiv:1801.10198; with neighbours as in the Image Transformer, Parmar et al., 2018, arXiv:1802.05751).

A pattern and a name: the sequence is cut into chunks of `window` tokens, and a query sees its own chunk,
`back` chunks before it (0 in the paper) and, unless the layer is causal, as many behind it. Unlike a sliding
window, how far a token can look depends on where in its chunk it stands, and all queries of a chunk share
their keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from regardant.core.errors import require
from regardant.core.mixer import MultiHead
from regardant.core.pattern import Pattern, both
from regardant.core.pattern_algebra import Reach
from regardant.core.supports import Supports


@dataclass(frozen=True)
class NearChunks(Pattern):
    """The query's chunk of `size` positions, and `back` chunks to either side."""

    size: int
    back: int

    def __post_init__(self):
        require(self.size >= 1, f"size is {self.size}, but a chunk holds at least one position")
        require(self.back >= 0, f"back is {self.back}, but chunks are counted from 0")

    def allows(self, i, j, *, batch=None, head=None):
        return (i // self.size - j // self.size).abs() <= self.back

    def reach(self):
        farthest = (self.back + 1) * self.size - 1
        return Reach(farthest, farthest)

    def candidates(self, i, keys):
        width = (2 * self.back + 1) * self.size
        first = (i // self.size - self.back) * self.size
        return None if width >= keys else first[:, None] + torch.arange(width, device=i.device)


class LocalAttention(MultiHead):
    """Softmax within chunks of `window` tokens and `back` neighbouring chunks to either side."""

    supports = Supports(cross=False, causal_cross=False, time=1.0, memory=1.0, state=0.0)

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        window: int = 64,
        back: int = 1,
        pattern: Pattern | None = None,
        **shared,
    ):
        super().__init__(dim, heads, pattern=both(pattern, NearChunks(window, back)), **shared)
