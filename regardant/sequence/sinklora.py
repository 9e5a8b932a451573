"""Sink-fixed shifted sparse attention (Zhang, "SinkLoRA: Enhanced Efficiency and Chat Capabilities for
Long-Context Large Language Models", 2024, arXiv:2406.05678), and the S²-Attn of LongLoRA in it.

Attention to train with on long texts, while evaluation is full. Every head attends causally inside groups
of g tokens; S²-Attn shifts the groups of half of the heads by g/2, so that neighbouring groups meet. SF-Attn
puts a share ρ of the shifted heads back, whose patterns the shift disturbs, and lets everybody see the
first s tokens, the attention sinks:

    i sees j ≤ i   where   j < s   or   ⌊(i + c_h)/g⌋ = ⌊(j + c_h)/g⌋;   c_h = g/2 if h is shifted, else 0

ρ = 0, s = 0 is S²-Attn; ρ = 1 leaves local groups with sinks. The cost is n·g instead of n²/2.

What is our reading: the official repository holds S²-Attn alone, so ρ = 1/2, s = 4 and which heads go back
(the first of the shifted ones) are ours. What differs from that code: it rolls the sequence, so that the
last group joins both ends and, masked in rolled order, shows the future to the first tokens; here shifted
groups end where the sequence does, and no length has to be a multiple of g. There g is a quarter of the
length. Adapters, full training of embeddings and norms, and the eviction of cached keys are not the
layer's business. Its weights are named as those of softmax attention, which evaluates them.
"""

from __future__ import annotations

from dataclasses import dataclass

from regardant.core.errors import require
from regardant.core.head_groups import PerHeadAttention
from regardant.core.pattern import Blocks, Pattern, Reach, Sink
from regardant.core.supports import Supports


@dataclass(frozen=True)
class ShiftedBlocks(Pattern):
    """Full attention inside blocks of `size` that begin `shift` positions early: the first one is cut."""

    size: int
    shift: int

    def allows(self, i, j, *, batch=None, head=None):
        return (i + self.shift) // self.size == (j + self.shift) // self.size

    def reach(self):
        return Reach(self.size - 1, self.size - 1)


class SinkFixedAttention(PerHeadAttention):
    """Multi-head softmax attention inside groups of `group` tokens, shifted ones for some heads.

    Half of the heads are shifted, less the share `unshifted` of that half; all see the first `sinks`.
    """

    supports = Supports(cross=False, causal_cross=False, time=1.0, memory=1.0, state=0.0)

    def __init__(
        self, dim: int, heads: int, *, group: int = 256, unshifted: float = 0.5, sinks: int = 4, **shared
    ):
        super().__init__(dim, heads, **shared)
        require(
            group >= 2 and group % 2 == 0,
            f"group is {group}, but groups shift by half: make it even, from 2 on",
        )
        require(0 <= unshifted <= 1, f"unshifted is {unshifted}, but it is a share of the shifted heads")
        require(sinks >= 0, f"sinks is {sinks}, but the first tokens are counted from 0")
        self.group, self.unshifted, self.sinks = group, unshifted, sinks

    @property
    def shifted_heads(self) -> int:
        """How many heads, the last ones, have shifted groups."""
        half = self.heads // 2
        return half - round(self.unshifted * half)

    def head_patterns(self, length):
        plain, shifted = Blocks(self.group), ShiftedBlocks(self.group, self.group // 2)
        if self.sinks:
            plain, shifted = Sink(self.sinks) | plain, Sink(self.sinks) | shifted
        return [plain] * (self.heads - self.shifted_heads) + [shifted] * self.shifted_heads
