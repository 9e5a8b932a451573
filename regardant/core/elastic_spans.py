"""Spans that grow with the length: the first block of keys, and the blocks up to the query's own.

i sees j ≤ i   where   j < B   or   ⌊i/B⌋ - ⌊j/B⌋ < max(1, ⌊α/B + β ⌈N/B⌉⌋)
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import torch

from regardant.core.pattern import Pattern, Reach, Sink, Window


@dataclass(frozen=True)
class BlockWindow(Pattern):
    """Blocks less than `count` blocks apart: under `Causal`, the query's own and those behind it."""

    size: int
    count: int

    def allows(self, i, j, *, batch=None, head=None):
        return (i // self.size - j // self.size).abs() < self.count

    def reach(self):
        far = self.size * self.count - 1
        return Reach(far, far)


def span_blocks(alpha: float, beta: float, *, block: int, length: int) -> int:
    """How many blocks a span of α + β·length holds, its query's own included."""
    return max(1, int(alpha // block + beta * ceil(length / block)))


def span_pattern(count: int, *, block: int) -> Pattern:
    """What a span of so many blocks sees, besides what is later."""
    return Sink(block) | (Window(count) if block == 1 else BlockWindow(block, count))


def span_pairs(count: int, *, block: int, length: int) -> int:
    """Pairs of a query and an earlier key (or itself) that such a span sees in a text."""
    row = torch.arange(length)
    begin = ((row // block - count + 1) * block if block > 1 else row - count + 1).clamp(min=0)
    return int((row - begin + 1 + begin.clamp(max=block)).sum())
