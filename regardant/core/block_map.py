"""The map of attention block by block: what a tile of queries and keys holds, without the map itself.

    maxima   m_IJ = max_{i∈I, j∈J} a_ij          mass   m_IJ = Σ_{i∈I, j∈J} a_ij

for causal attention a = softmax(q kᵀ · scale) in blocks of `block` tokens. Some rows of blocks are worked on
at a time, and of them only the tiles' figures are kept. Also: tokens pooled by block, blocks chosen by their
scores, and the keys of what was chosen, ready for `regardant.core.block_search.attend_gathered`.
"""

from __future__ import annotations

from math import inf
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
    of: Literal["maxima", "mass"] = "maxima",
) -> Float[Tensor, "b h t t"]:  # fmt: skip
    """The figure of every tile; 0 above the diagonal."""
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
        weights = functional.pad(weights, (0, -n % block + n - last, 0, -(last - first) % block))
        tiles = weights.unflatten(3, (-1, block)).unflatten(2, (-1, block))
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


def earlier_blocks(count: int, device: torch.device) -> Bool[Tensor, "t t"]:
    """Which blocks of keys a block of queries sees something of: its own and those before."""
    return torch.ones(count, count, dtype=torch.bool, device=device).tril()


def densest_blocks(scores: Float[Tensor, "b h t t"], density: float) -> Bool[Tensor, "b h t t"]:
    """Of each row the own block and those with the largest scores: in all, that share of what it sees, at
    least one, rounded up. Of equal ones the first."""
    require(
        0 < density <= 1, f"density is {density}, but it is a share of the visible blocks: above 0, up to 1"
    )
    count = scores.shape[-1]
    seen = earlier_blocks(count, scores.device)
    own = torch.eye(count, dtype=torch.bool, device=scores.device)
    scores = scores.masked_fill(~seen, -inf).masked_fill(own, inf)
    rank = scores.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    # Less a hair, since 0.3 of 10 is 3 and not 4.
    wanted = (torch.arange(1, count + 1, device=scores.device) * density - 1e-6).ceil()
    return (rank < wanted[:, None]) & seen


def places_of_blocks(
    chosen: Bool[Tensor, "b h t u"], *, block: int, length: int
) -> tuple[Int[Tensor, "b h t s"], Bool[Tensor, "b h t r s"]]:
    """The places of the chosen blocks' keys, -1 where a row has fewer, and which of them each query sees."""
    count = chosen.shape[-1]
    most = int(chosen.sum(-1).max())
    numbers = torch.arange(count, device=chosen.device)
    blocks = torch.where(chosen, numbers, count).sort(dim=-1).values[..., :most]
    at = (blocks[..., None] * block + torch.arange(block, device=chosen.device)).flatten(-2)
    at = at.masked_fill(at >= length, -1)
    rows = numbers[: chosen.shape[-2], None] * block + torch.arange(block, device=chosen.device)
    sees = (at[..., None, :] <= rows[..., None]) & (at >= 0)[..., None, :]
    return at, sees
