"""Spans that differ by head and grow with the length (Fu et al., "MoA: Mixture of Sparse Attention for
Automatic Large Language Model Compression", 2024, arXiv:2406.14909).

Some heads of a trained model look far and others do not, and some of them look the farther the longer the
text. So head h sees the first block of B tokens (attention sinks) and its own span of blocks behind the
query, at input length N:

    i sees j ≤ i   where   j < B   or   ⌊i/B⌋ - ⌊j/B⌋ < max(1, ⌊α_h/B + β_h ⌈N/B⌉⌋)

Heads that see alike run together, so the cost in time, and in keys that decoding keeps, is that of the
mean span, not of the widest. With β = 0 all is linear in the length.

Which (α, β) a head should have, the paper finds in a pretrained model by profiling and integer
programming; this is the mixer that such a plan runs on. What differs from the official code: block=1 makes
the spans windows of tokens, and without causality a span reaches as far ahead. There N is the prompt's
length and decoding goes on with the spans that it gave; so here decoding wants `length` where spans are
elastic. Heads that share keys had better share their span: keys that two groups of heads see are kept
twice.
"""

from __future__ import annotations

from collections.abc import Sequence

from regardant.core.elastic_spans import span_blocks, span_pattern
from regardant.core.errors import require
from regardant.core.head_groups import PerHeadAttention
from regardant.core.supports import Supports


class MixtureOfSparseAttention(PerHeadAttention):
    """Multi-head softmax attention with a span α + β·length and the first `block` keys for every head.

    `alpha` (tokens) and `beta` (a share of the length) are one number for all heads or one a head; by
    default heads take turns at spans of 1, 2, 4 and 8 blocks. `length` fixes the spans to those of one
    length; without it they are those of each input.
    """

    supports = Supports(cross=False, causal_cross=False, time=1.0, memory=1.0, state=0.0)

    def __init__(
        self, dim: int, heads: int, *, alpha: int | Sequence[int] | None = None,
        beta: float | Sequence[float] = 0.0, block: int = 64, length: int | None = None, **shared,
    ):  # fmt: skip
        super().__init__(dim, heads, **shared)
        require(block >= 1, f"block is {block}, but a block holds at least 1 token")
        require(length is None or length >= 1, f"length is {length}, but a sequence has at least 1 token")
        if alpha is None:
            alpha = [block * 2 ** (head % 4) for head in range(heads)]
        self.alpha: tuple[int, ...] = self._one_a_head("alpha", alpha)
        self.beta: tuple[float, ...] = self._one_a_head("beta", beta)
        self.block, self.length = block, length

    def _one_a_head(self, name: str, given: float | Sequence[float]) -> tuple:
        values = tuple(given) if isinstance(given, Sequence) else (given,) * self.heads
        require(
            len(values) == self.heads,
            f"{name} is {given}, {len(values)} numbers, but there are {self.heads} heads",
        )
        require(min(values) >= 0, f"{name} is {given}, but a span is not negative")
        return values

    def blocks(self, length: int) -> list[int]:
        """The span of each head, in blocks, at a length."""
        whole = self.length or length
        return [
            span_blocks(alpha, beta, block=self.block, length=whole)
            for alpha, beta in zip(self.alpha, self.beta)
        ]

    def density(self, length: int) -> float:
        """The share of all pairs that heads see on average, sinks included: what to compare plans at."""
        pattern = self.visible(length, across=False, padding=None)
        full = length * (length + 1) / 2 if self.causal else length**2
        return float(pattern.dense(length, heads=self.heads).double().sum()) / (self.heads * full)

    def head_patterns(self, length):
        return [span_pattern(count, block=self.block) for count in self.blocks(length)]

    def start(self, batch, *, context=None, padding=None):
        require(
            self.length is not None or not any(self.beta),
            f"beta is {self.beta}, spans that grow with the length, which no step knows: give length",
        )
        return super().start(batch, context=context, padding=padding)
