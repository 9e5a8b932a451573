"""Which blocks of keys a block of queries should read, found from coarse to fine in few products.

The blocks of keys that may be read are cut into `keep` neighbourhoods of nearly equal size. Each is halved,
each half stands for itself with one block of its own (its representative), and the `keep` halves whose
representative has the largest q·k, over all queries of the block and all keys of the representative, go on,
until they are single blocks. So a query costs about 2·keep·key_block·log2(blocks / keep) products, however
long the text is.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regardant.core.errors import require, unknown
from regardant.core.selected import exact
from regardant.core.selected_blocks import attend_blocks

REPRESENTATIVES = ("middle", "first")

NUMBERS = 2**22
"""Numbers of keys that are gathered at once."""


@dataclass(frozen=True)
class Found:
    """The blocks for each block of queries, in order, -1 where fewer are wanted; and what they cost."""

    blocks: Int[Tensor, "b h t s"]
    products: int
    """Products of a query and a key, all samples and heads together."""


@torch.no_grad()
def search_blocks(
    q: Float[Tensor, "b h t r d"], k: Float[Tensor, "b g n d"], stop: Int[Tensor, "t"],
    *, keep: int, key_block: int, start: int = 0, places: Int[Tensor, "t r"] | None = None,
    representative: Literal["middle", "first"] = "middle", shared: bool = False,
) -> Found:  # fmt: skip
    """The `keep` best blocks of `key_block` keys for each of t blocks of r queries.

    Block i holds the keys start + i·key_block …; those of queries t end before key `stop[t]`.
    `places`, where given, are the queries' own: no score knows a key behind its query; a query at a
    negative place has no say. `shared`: the heads that read the same keys choose together.
    """
    require(keep >= 1, f"keep is {keep}, but a query reads at least 1 block")
    require(key_block >= 1, f"key_block is {key_block}, but a block holds at least 1 key")
    if representative not in REPRESENTATIVES:
        raise unknown("representative", representative, REPRESENTATIVES)
    (b, h, t, r, d), g = q.shape, k.shape[1]
    choosers = g if shared else h
    q, k = exact(q), exact(k)
    q = q.view(b, choosers, h // choosers, t, r, d).transpose(2, 3).flatten(3, 4)
    places = None if places is None else places.repeat(1, h // choosers)
    count = (stop - start).clamp(min=0).add(key_block - 1) // key_block
    step = max(1, NUMBERS // (b * choosers * 2 * keep * key_block * d))
    parts, products = [], 0
    for first in range(0, t, step):
        own = slice(first, first + step)
        search = _Search(
            q[:, :, own], k, count[own], stop[own], None if places is None else places[own],
            keep, key_block, start, representative,
        )  # fmt: skip
        found, cost = search.run()
        parts.append(found)
        products += cost
    return Found(torch.cat(parts, dim=2), products)


@dataclass(frozen=True)
class _Search:
    """Some blocks of queries on their way down. A node is its first block and how many blocks it holds."""

    q: Float[Tensor, "b c t r d"]
    k: Float[Tensor, "b g n d"]
    count: Int[Tensor, "t"]
    stop: Int[Tensor, "t"]
    places: Int[Tensor, "t r"] | None
    keep: int
    key_block: int
    start: int
    representative: str

    def run(self) -> tuple[Int[Tensor, "b c t s"], int]:
        b, c, t, r, _ = self.q.shape
        edge = torch.arange(self.keep + 1, device=self.q.device) * self.count[:, None] // self.keep
        few = (self.count <= self.keep)[:, None]
        column = torch.arange(self.keep, device=self.q.device)
        # Where there are no more blocks than are kept, each is a node.
        first = torch.where(few, column, edge[:, :-1]).expand(b, c, t, -1)
        size = torch.where(few, (column < self.count[:, None]).long(), edge.diff(dim=1)).expand(b, c, t, -1)
        products = 0
        while int(size.max()) > 1:
            half = size // 2
            first = torch.stack([first, first + half], dim=-1).flatten(-2)
            size = torch.stack([half, size - half], dim=-1).flatten(-2)
            scores = self._scores(first, size)
            products += b * c * t * r * 2 * self.keep * self.key_block
            best = scores.topk(self.keep, dim=-1).indices
            first, size = first.gather(-1, best), size.gather(-1, best)
        blocks = first.masked_fill(size == 0, self._far).sort(dim=-1).values
        return blocks.masked_fill(blocks == self._far, -1), products

    @property
    def _far(self) -> int:
        return self.k.shape[2] + 1

    def _scores(
        self, first: Int[Tensor, "b c t s"], size: Int[Tensor, "b c t s"]
    ) -> Float[Tensor, "b c t s"]:
        """The largest product of a query with a representative's keys; -inf for what is no node."""
        block = first + size // 2 if self.representative == "middle" else first
        step = torch.arange(self.key_block, device=block.device)
        at = (self.start + block[..., None] * self.key_block + step).flatten(-2)
        keys = gather_keys(self.k, at.clamp(max=self.k.shape[2] - 1))
        logits = self.q @ keys.mT
        hidden = (at >= self.stop[:, None])[..., None, :]
        if self.places is not None:
            hidden = hidden | (at[..., None, :] > self.places[..., None])
        scores = logits.masked_fill_(hidden, -inf).amax(dim=-2).unflatten(-1, (-1, self.key_block)).amax(-1)
        # A node that nobody sees yet is still better than none.
        return scores.clamp(min=torch.finfo(scores.dtype).min).masked_fill(size == 0, -inf)


def gather_keys(x: Float[Tensor, "b g n d"], at: Int[Tensor, "b c t s"]) -> Float[Tensor, "b c t s d"]:
    """The rows of x at these places, where c is a multiple of g and neighbours share one of x's."""
    return x.flatten(0, 2).index_select(0, _rows(x, at).flatten()).view(*at.shape, x.shape[-1])


def _rows(x: Float[Tensor, "b g n d"], at: Int[Tensor, "b c t s"]) -> Int[Tensor, "b c t s"]:
    """Where these places stand among the rows of x, samples and heads one behind the other."""
    (b, g, n, _), c = x.shape, at.shape[1]
    head = torch.arange(b * g, device=x.device).view(b, g).repeat_interleave(c // g, dim=1)
    return at + (head * n)[..., None, None]


def attend_gathered(
    q: Float[Tensor, "b h m d"], k: Float[Tensor, "b g n d"], v: Float[Tensor, "b g n e"],
    at: Int[Tensor, "b c t s"], sees: Bool[Tensor, "#b #c t r s"], *, scale: float,
) -> Float[Tensor, "b h m e"]:  # fmt: skip
    """Softmax attention of blocks of r queries to keys gathered for each, of which a query `sees` some.

    `c` is h, or g where the heads that share keys were given the same. The last block may be cut short. A
    query that sees none gives zeros. Memory is linear in the queries times s.
    """
    (b, h, m, d), (c, t), r = q.shape, at.shape[1:3], sees.shape[3]
    require(t * r >= m > (t - 1) * r, f"at is for {t} blocks of {r} queries, but there are {m} queries")
    q = torch.nn.functional.pad(q, (0, 0, 0, t * r - m)).view(b, c, h // c, t, r, d).transpose(2, 3)
    # Every key is a block of its own.
    keys, values = (x.reshape(-1, 1, 1, x.shape[-1]) for x in (k, v))
    rows = _rows(k, at.clamp(0, k.shape[2] - 1))
    there = sees & (at >= 0)[..., None, :]
    out = attend_blocks(
        q.flatten(0, 2), keys, values, rows.flatten(0, 2), scale=scale, sees=there.flatten(0, 2)
    )
    return out.unflatten(0, (b, c, t)).transpose(2, 3).reshape(b, h, t * r, -1)[:, :, :m]
