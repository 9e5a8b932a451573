"""Edits under which each block of queries of a prompt reads some blocks of keys, chosen by a score.

What differs is the score; what is done with it is the same: each reads its own block and the best, as many
for all (the first ones read what there is), `density` of the causal map in all, and exact softmax over their
keys. Besides the base here are three yardsticks: pooled products, the first block and the last ones, and the
best that could be chosen.

With `sink` the first block is read by all, too, and counts: much attention rests there, and what a score
makes of a block's mean key does not always show it.

`choosers` says who chooses: "block", the queries of a block together, which is sound where the prompt is all
there (a loss measured on the prompt peeks, though, by up to a block), or "row", each query for itself among
the blocks before its own, so that nothing depends on tokens after it. A prompt is what is read in one pass;
the tokens after it read all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from regardant.core.block_map import (
    block_map,
    densest_blocks,
    places_of_blocks,
    pooled_by_block,
)
from regardant.core.block_search import attend_gathered
from regardant.core.errors import require, unknown
from regardant.edit.language.causal_text import CausalText, put_rows, texts_of
from regardant.edit.language.key_choice import KeyChoice
from regardant.host.call import Call
from regardant.host.run import Run
from regardant.host.site import Site

CHOOSERS = ("block", "row")
Choosers = Literal["block", "row"]


@dataclass(kw_only=True)
class BlockChoice(KeyChoice):
    """`density` of the causal map in blocks of `block` keys: the own block always, with `sink` the first one
    next. 1 reads all."""

    passes: ClassVar[tuple[str, ...]] = ("prompt",)
    exempt: ClassVar[dict[str, str]] = {
        "cache": "acts on prompts, read in one pass; tokens behind a cache read all, as in the paper"
    }

    density: float = 0.5
    block: int = 64
    sink: bool = False

    def __post_init__(self) -> None:
        require(self.block >= 1, f"block is {self.block}, but a block holds at least 1 token")
        require(
            0 < self.density <= 1,
            f"density is {self.density}, but it is a share of the visible blocks: above 0, up to 1",
        )

    def neutral(self) -> bool:
        return self.density == 1

    def replaces(self, call: Call, run: Run) -> bool:
        return super().replaces(call, run) and call.past == 0

    def wanted(self, call: Call, text: CausalText, site: Site) -> Float[Tensor, "b h m t"]:
        """How much each block of queries, or each query, wants each block of keys; its own and what it does
        not see do not matter."""
        raise TypeError(f"{type(self).__name__} does not score blocks")

    def choose(self, scores: Float[Tensor, "b h m t"]) -> Bool[Tensor, "b h m t"]:
        if self.sink:
            # Below infinity, which the own block has.
            first = torch.zeros(1, dtype=torch.long, device=scores.device)
            scores = scores.index_fill(-1, first, torch.finfo(scores.dtype).max)
        return densest_blocks(scores, self.density, block=self.block)

    def chosen(
        self, call: Call, site: Site, run: Run
    ) -> Iterator[tuple[CausalText, Bool[Tensor, "b h m t"]]]:
        """The texts of a prompt, and which blocks are read in each."""
        for text in texts_of(call, run, self):
            with torch.no_grad():
                yield text, self.choose(self.wanted(call, text, site))

    def attend(self, call: Call, site: Site, run: Run) -> Float[Tensor, "b h m e"]:
        out = torch.zeros(*call.q.shape[:3], call.v.shape[-1], dtype=call.v.dtype, device=call.v.device)
        for text, chosen in self.chosen(call, site, run):
            at, sees = places_of_blocks(chosen, block=self.block, length=text.length)
            part = attend_gathered(text.q, text.k, text.v, at, sees, scale=text.scale)
            put_rows(out, text, part)
        return out

    @classmethod
    def neutral_settings(cls) -> dict[str, Any]:
        return cls.examples()[0] | dict(density=1.0)


def check_choosers(choosers: str) -> None:
    if choosers not in CHOOSERS:
        raise unknown("choosers", choosers, CHOOSERS)


@dataclass(kw_only=True)
class QueriesChoose(BlockChoice):
    """Where the queries choose, and not their place alone."""

    choosers: Choosers = "block"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choosers(self.choosers)

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        small = dict(density=0.6, block=4, choosers="row")
        return [small, small | dict(layers=[0, -1]), small | dict(sink=True)]


@dataclass(kw_only=True)
class MeanPooledBlocks(QueriesChoose):
    """Blocks by the product of the query, or a block's mean query, and the mean key, nothing trained.

    The means are of what the attention multiplies, positions turned in.
    """

    def wanted(self, call, text, site):
        q = text.q if self.choosers == "row" else pooled_by_block(text.q, self.block, "mean")
        k = pooled_by_block(text.k, self.block, "mean").repeat_interleave(site.group, dim=1)
        return q @ k.mT


@dataclass(kw_only=True)
class SinkAndWindowBlocks(BlockChoice):
    """The first block, and the last ones."""

    def wanted(self, call, text, site):
        count = -(-text.length // self.block)
        scores = torch.arange(count, dtype=text.q.dtype, device=text.q.device)
        scores = scores.index_fill(0, torch.zeros(1, dtype=torch.long, device=scores.device), count)
        return scores.expand(*text.q.shape[:2], count, count)

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        return [dict(density=0.6, block=4)]


@dataclass(kw_only=True)
class OracleBlocks(QueriesChoose):
    """The blocks that hold most of the attention: no choice of as many, by the same choosers, captures more.
    All of it is computed to find them."""

    def wanted(self, call, text, site):
        own = self.choosers == "row"
        return block_map(text.q, text.k, block=self.block, scale=text.scale, of="mass", by_query=own)


def captured(mass: Float[Tensor, "b h n t"], chosen: Bool[Tensor, "b h m t"]) -> Float[Tensor, "b h"]:
    """The share of the full attention that the chosen blocks hold, a query's mean. `mass` is `block_map`'s by
    query; whatever of a query's blocks come later hold nothing."""
    n, m = mass.shape[2], chosen.shape[2]
    if m < n:
        chosen = chosen.repeat_interleave(-(-n // m), dim=2)[:, :, :n]
    return (mass * chosen).sum((-1, -2)) / n
