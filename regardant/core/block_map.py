"""The map of attention block by block: what a tile of queries and keys holds, without the map itself.

    maxima   m_IJ = max_{i∈I, j∈J} a_ij          mass   m_IJ = Σ_{i∈I, j∈J} a_ij

for causal attention a = softmax(q kᵀ · scale) in blocks of `block` tokens; a tile may also be one query by a
block of keys. Some rows of blocks are worked on at a time, and of them only the tiles' figures are kept.
Also: tokens pooled by block, blocks chosen by their scores, and the keys of what was chosen, ready for
`regardant.core.block_search.attend_gathered`.

What chooses blocks has a row for each block of queries, or one for each query (`own_blocks`).
"""

from __future__ import annotations

from math import inf, sqrt
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from regardant.core.errors import require
from regardant.core.selected import exact

PAIRS = 2**22
"""Pairs of queries and keys that are looked at at once."""


@torch.no_grad()
def block_map(
    q: Float[Tensor, "b h n d"], k: Float[Tensor, "b g n d"], *, block: int, scale: float,
    of: Literal["maxima", "mass"] = "maxima", by_query: bool = False,
) -> Float[Tensor, "b h m t"]:  # fmt: skip
    """The figure of every tile, of a block of queries or (`by_query`) of one; 0 above the diagonal."""
    height = 1 if by_query else block
    (b, h, n, _), share = q.shape, q.shape[1] // k.shape[1]
    keys = exact(k).repeat_interleave(share, dim=1).mT
    rows = max(1, PAIRS // (b * h * n * block)) * block
    parts = []
    for first in range(0, n, rows):
        last = min(first + rows, n)
        places = torch.arange(first, last, device=q.device)
        logits = exact(q[:, :, first:last]) @ keys[..., :last] * scale
        later = torch.arange(last, device=q.device) > places[:, None]
        weights = logits.masked_fill_(later, -inf).softmax(-1)
        weights = functional.pad(weights, (0, -n % block + n - last, 0, -(last - first) % height))
        tiles = weights.unflatten(3, (-1, block)).unflatten(2, (-1, height))
        parts.append(tiles.amax((3, 5)) if of == "maxima" else tiles.sum((3, 5)))
    return torch.cat(parts, dim=2)


def pooled_by_block(
    x: Float[Tensor, "b h n d"], block: int, how: Literal["mean", "max", "min"]
) -> Float[Tensor, "b h t d"]:
    """One vector a block; the last block, if cut short, by the tokens that it has."""
    rest = -x.shape[2] % block
    if how == "mean":
        sums = functional.pad(x, (0, 0, 0, rest)).unflatten(2, (-1, block)).sum(3)
        counts = torch.full((sums.shape[2], 1), float(block), device=x.device, dtype=x.dtype)
        counts[-1] = block - rest
        return sums / counts
    fill = -inf if how == "max" else inf
    blocks = functional.pad(x, (0, 0, 0, rest), value=fill).unflatten(2, (-1, block))
    return blocks.amax(3) if how == "max" else blocks.amin(3)


def own_blocks(rows: int, count: int, block: int, device: torch.device) -> Int[Tensor, "m"]:
    """The block in which each row stands: a row is a block of queries, or (where there are more) a query."""
    return torch.arange(rows, device=device) // (1 if rows == count else block)


def earlier_blocks(own: Int[Tensor, "m"], count: int) -> Bool[Tensor, "m t"]:
    """Which blocks of keys a row sees something of: its own and those before."""
    return torch.arange(count, device=own.device) <= own[:, None]


def blocks_each(count: int, density: float) -> int:
    """How many blocks a row reads of `count`, if all read as many (the first ones, what there is) and
    `density` of all tiles on and below the diagonal are read; rounded down, at least one."""
    require(
        0 < density <= 1, f"density is {density}, but it is a share of the visible blocks: above 0, up to 1"
    )
    # More a hair, since 0.2 of 10 is 2 and not 1.
    return max(1, int((1 - sqrt(1 - density)) * count + 1e-6))


def densest_blocks(scores: Float[Tensor, "*b m t"], density: float, *, block: int) -> Bool[Tensor, "*b m t"]:
    """Of each row the own block and those with the largest scores, `blocks_each` in all. Of equal ones the
    first."""
    rows, count = scores.shape[-2:]
    own = own_blocks(rows, count, block, scores.device)
    seen = earlier_blocks(own, count)
    scores = scores.masked_fill(~seen, -inf).scatter(-1, own[:, None].expand(*scores.shape[:-1], 1), inf)
    best = scores.argsort(dim=-1, descending=True, stable=True)[..., : blocks_each(count, density)]
    return torch.zeros_like(seen).expand(scores.shape).scatter(-1, best, True) & seen


def places_of_blocks(
    chosen: Bool[Tensor, "b h m u"], *, block: int, length: int
) -> tuple[Int[Tensor, "b h t s"], Bool[Tensor, "b h t r s"]]:
    """For each block of queries the places of the keys that one of them reads, -1 where there are fewer, and
    which of them each query sees."""
    count = chosen.shape[-1]
    if chosen.shape[-2] == count:
        by_query = chosen[:, :, :, None]
    else:
        by_query = functional.pad(chosen, (0, 0, 0, -length % block)).unflatten(2, (-1, block))
    one_reads = by_query.any(3)
    most = int(one_reads.sum(-1).max())
    numbers = torch.arange(count, device=chosen.device)
    blocks = torch.where(one_reads, numbers, count).sort(dim=-1).values[..., :most]
    at = (blocks[..., None] * block + torch.arange(block, device=chosen.device)).flatten(-2)
    at = at.masked_fill(at >= length, -1)
    rows = numbers[: one_reads.shape[2], None] * block + torch.arange(block, device=chosen.device)
    sees = (at[..., None, :] <= rows[..., None]) & (at >= 0)[..., None, :]
    if by_query.shape[3] > 1:
        asked = blocks.clamp(max=count - 1)[..., None, :].expand(*by_query.shape[:4], most)
        sees = sees & by_query.gather(-1, asked).repeat_interleave(block, dim=-1)
    return at, sees
