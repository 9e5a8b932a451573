"""How many keys each query sees, counted from the pattern: what temperatures and shares of a row go by."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from regardant.core.banded import row_tiles
from regardant.core.pattern import Causal, Pattern, split_padding
from regardant.core.visibility import Visibility

ROWS = 256
"""Rows whose mask is looked at at once."""


def visible_count(
    pattern: Pattern | None, queries: int, keys: int, *, batch: int = 1, heads: int = 1, offset: int = 0,
    device: torch.device | None = None,
) -> Int[Tensor, "#b #h m"]:  # fmt: skip
    """The keys that each query sees; query r stands at `offset + r`.

    Nothing, causal and padding are counted at once; other patterns within their reach, a few rows at a
    time.
    """
    rest, real = split_padding(pattern)
    real = None if real is None else real.reshape(-1, real.shape[-1])[:, :keys].to(device)
    if rest is None:
        count = torch.full((1, 1), keys, device=device) if real is None else real.sum(-1, keepdim=True)
        return count[:, None].expand(-1, -1, queries)
    if isinstance(rest, Causal):
        end = torch.arange(offset, offset + queries, device=device).clamp(max=keys - 1)
        return (end + 1 if real is None else real.cumsum(-1)[:, end]).reshape(-1, 1, queries)
    sees = Visibility(rest, real, None, batch, heads, queries, keys, offset)
    counts = []
    for tile in row_tiles(sees, ROWS):
        rows = torch.arange(tile.row, tile.row + tile.rows, device=device)[None]
        columns = torch.arange(tile.key, tile.key + tile.keys, device=device)[None]
        counts.append((rows[0], sees.mask(rows, columns)[:, 0].sum(-1)))
    lead = (max((len(found) for _, found in counts), default=1), heads if rest.by_head else 1)
    count = torch.zeros(*lead, queries, dtype=torch.long, device=device)
    for rows, found in counts:
        count[:, :, rows] = found
    return count
