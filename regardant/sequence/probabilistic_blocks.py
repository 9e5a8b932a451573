"""Block-sparse attention drawn by chance, after the "probabilistic FlashAttention" of "The Nature of
Mathematical Modeling and Probabilistic Optimization Engineering in Generative AI" (2024, arXiv:2410.18441).

Positions are in blocks of b. Whether query block I sees key block J is drawn, less likely the farther apart:

    π(D) = min(1, c / (1 + D)),   D = |I - J|

so that a query block sees about c ln n of n blocks, and always its own: n log n pairs in all. With `correct`,
-ln π(D) is added to the logits of a drawn block, with which the sums above and below the fraction of the
softmax have the expectation of dense attention's (the fraction itself is consistent, not unbiased).

A draw is a number from which every (I, J) is decided by itself, in integer arithmetic: a block's fate depends
on no other block, so a longer sequence or a later token changes nothing, and decoding sees what a whole pass
sees. A pass draws where it trains, or where its record brings a generator: from that one, or else from
torch's own, as dropout does. Evaluation takes `seed`.

The paper's abstract is all that we had: π, the diagonal block that is always seen and the correction are our
reading, not the author's. `chance="uniform"` draws every block with probability c, as a baseline.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regardant.core.errors import require
from regardant.core.mixer import MultiHead
from regardant.core.partial_softmax import attend_parts
from regardant.core.pattern import Pattern, both, split_padding
from regardant.core.plan import Plan, attend_dense
from regardant.core.rule import SoftmaxRule
from regardant.core.supports import Supports
from regardant.core.tiles import Scattered
from regardant.core.visibility import Visibility

Chance = Literal["harmonic", "uniform"]
LOW = 0xFFFFFFFF
TOGETHER = 16
"""Query blocks in a tile: what is gathered for one stays small however long the sequence is."""


@dataclass(frozen=True)
class DrawnBlocks(Pattern):
    """Blocks of `size` that were drawn, and a block's own."""

    size: int
    rate: float
    chance: Chance
    seed: int

    def odds(self, apart: Int[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """π of a distance in blocks."""
        far = apart.double()
        odds = self.rate / (1 + far) if self.chance == "harmonic" else torch.full_like(far, self.rate)
        return torch.where(apart == 0, 1.0, odds.clamp(max=1))

    def drawn(self, rows: Int[Tensor, "*n"], columns: Int[Tensor, "*n"]) -> Bool[Tensor, "*n"]:
        """Whether query block `rows` sees key block `columns`."""
        return _fraction(rows, columns, self.seed) < self.odds((rows - columns).abs())

    def allows(self, i, j, *, batch=None, head=None):
        return self.drawn(i // self.size, j // self.size)


def _fraction(rows: Tensor, columns: Tensor, seed: int) -> Float[Tensor, "*n"]:
    """A number in [0, 1) a pair, which looks random: the pair and the seed, mixed (after xxHash's finish)."""
    mixed = (rows * 0x9E3779B1 + columns * 0x85EBCA77 + (seed & LOW) * 0xC2B2AE3D) & LOW
    for shift, factor in ((15, 0x85EBCA77), (13, 0xC2B2AE3D)):
        mixed = ((mixed ^ (mixed >> shift)) * (factor & 0x7FFFFFFF)) & LOW
    return (mixed ^ (mixed >> 16)).double() / 2**32


@dataclass(frozen=True)
class Correction:
    """-ln π of the blocks' distance, as a bias on logits."""

    blocks: DrawnBlocks
    stationary = False

    def block(self, i: Int[Tensor, "m"], j: Int[Tensor, "n"]) -> Float[Tensor, "1 m n"]:
        apart = (i[:, None] // self.blocks.size - j[None] // self.blocks.size).abs()
        return -self.blocks.odds(apart).log()[None]


class DrawnBlocksRule(SoftmaxRule):
    """Softmax over drawn blocks: a tile a query block, of just the key blocks that it drew."""

    supports = Supports(cross=False, causal_cross=False, time=1.25, memory=1.0, state=1.0)

    def __init__(self, blocks: DrawnBlocks, *, correct: bool):
        super().__init__()
        self.blocks, self.correct = blocks, correct

    def added(self, q, *, scale, offset=0):
        return Correction(self.blocks) if self.correct else None

    def forward(self, q, k, v, *, pattern=None, scale=None, seed: int | None = None):
        blocks = self._with(seed)
        rest, real = split_padding(pattern)
        sees = Visibility(
            both(rest, blocks), None if real is None else real.reshape(-1, real.shape[-1]),
            Correction(blocks) if self.correct else None, len(q), q.shape[1], q.shape[2], k.shape[2],
        )  # fmt: skip
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        ahead = rest is None or not rest.causal
        return attend_parts(q, k, v, [self._tiles(blocks, sees, q.device, ahead)], scale=scale)

    @staticmethod
    def _tiles(blocks: DrawnBlocks, sees: Visibility, device: torch.device, ahead: bool) -> list[Scattered]:
        """Query blocks with the keys of the blocks that they drew, those with about as many in one tile."""
        size, count = blocks.size, -(-sees.keys // blocks.size)
        at = torch.arange(count, device=device)
        drawn = blocks.drawn(at[:, None], at[None])
        if not ahead:
            drawn = drawn.tril()
        many = drawn.sum(1)
        order, tiles, start = many.argsort(stable=True), [], 0
        inside = torch.arange(size, device=device)
        while start < count:
            most = int(many[order[start]] * 5 // 4)
            stop = min(int((many[order] <= most).sum()), start + TOGETHER)
            mine = order[start:stop]
            width = int(many[mine].max())
            chosen = drawn[mine].to(torch.int8).sort(dim=1, descending=True, stable=True).indices[:, :width]
            there = torch.arange(width, device=device) < many[mine, None]
            keys = (chosen[..., None] * size + inside).masked_fill(~there[..., None], -1).flatten(1)
            tiles.append(Scattered(mine[:, None] * size + inside, keys, sees))
            start = stop
        return tiles

    def _with(self, seed: int | None) -> DrawnBlocks:
        blocks = self.blocks
        return blocks if seed is None else DrawnBlocks(blocks.size, blocks.rate, blocks.chance, seed)

    def reference(self, q, k, v, *, pattern=None, scale=None):
        bias = Correction(self.blocks) if self.correct else None
        return attend_dense(q, k, v, both(pattern, self.blocks), scale=scale, bias=bias)

    def step(self, q, k, v, state, *, pattern=None, scale=None):
        return super().step(q, k, v, state, pattern=both(pattern, self.blocks), scale=scale)


class ProbabilisticBlocks(MultiHead):
    """Softmax attention over blocks that are drawn with a probability that falls with their distance.

    `rate` is c. The record gets the observation "drawn" of a pass that drew: its number.
    """

    supports = Supports(cross=False, causal_cross=False, time=1.25, memory=1.0, state=1.0)

    def __init__(
        self, dim: int, heads: int, *, size: int = 32, rate: float = 2.0, chance: Chance = "harmonic",
        correct: bool = False, seed: int = 0, **shared,
    ):  # fmt: skip
        super().__init__(dim, heads, **shared)
        require(size >= 1, f"size is {size}, but a block holds at least one position")
        require(rate > 0, f"rate is {rate}, but a block is drawn with a positive probability")
        require(chance in ("harmonic", "uniform"), f"chance is {chance!r}, but it is 'harmonic' or 'uniform'")
        require(
            not self.position.biases,
            f"position is {type(self.position).__name__}, a bias on logits, which has no room here",
        )
        self.rule = DrawnBlocksRule(DrawnBlocks(size, rate, chance, seed), correct=correct)

    def attend(self, q, k, v, *, x, pattern, padding=None, record=None):
        generator, seed = None if record is None else record.generator, None
        if self.training or generator is not None:
            number = torch.randint(2**31, (), generator=generator)
            seed = int(number)
            if record is not None:
                record.note("drawn", number)
        return self.rule(q, k, v, pattern=pattern, scale=self.scale, seed=seed)

    def explain(self, length: int, *, keys: int | None = None) -> Plan:
        """The pairs that a pass with this layer's own draw computes."""
        require(
            keys in (None, length),
            f"keys is {keys}, but blocks are drawn among length={length}",
        )
        count = -(-length // self.rule.blocks.size)
        at = torch.arange(count)
        drawn = self.rule.blocks.drawn(at[:, None], at[None])
        drawn = drawn.tril() if self.causal else drawn
        return Plan(
            "gather", "each block of queries gathers the blocks of keys that it drew",
            min(int(drawn.sum()) * self.rule.blocks.size**2, length**2), length**2,
            "linear in the length times the blocks that one block draws",
        )  # fmt: skip
