"""Tiles for patterns whose keys lie in a band around the query, or before it: windows, causal, sinks.

A band is one run of equal rectangles: tile t holds `rows` queries and every key that one of them
reaches. Where the pattern is stationary, all tiles share one mask. At both ends, where the band leaves
the sequence, shorter rectangles are cut to the keys that there are. The first keys that every query
sees (attention sinks) are a source of their own, under the same softmax.
"""

from __future__ import annotations

from math import inf

import torch

from regardant.core.partial_softmax import Source
from regardant.core.tiles import Run
from regardant.core.visibility import Visibility

EDGE_ROWS = 128
"""Rows in a block where masks are made for each block."""

LANES = 16
"""Keys in a tile are a multiple of this: the kernels are some percent faster than on what is left over."""


def causal_rows(n: int) -> int:
    """The best blocks of rows for a lower triangle on a CPU: `n` where its kernel had best take it whole.

    The kernel looks at blocks of 512 keys, so that of 512 rows it computes the whole square. From 768 rows
    on, it takes larger blocks of rows, which makes up for that.
    """
    return n if not 320 <= n < 705 else 128 if n <= 384 else 192


def causal_tiles(n: int, rows: int, *, like: torch.Tensor) -> Source:
    """The lower triangle in blocks of rows, each with just the keys that it reaches.

    All but the first read one mask: a block's keys end with the diagonal, so it is the last columns. The
    block that is shorter comes first, where no mask is needed.
    """
    first = n - (n - 1) // rows * rows
    tiles = [Run(0, first, 0, first, causal=True)]
    if first < n:
        mask = torch.zeros(rows, n, dtype=like.dtype, device=like.device)
        mask[:, n - rows :] = torch.full((rows, rows), -inf, dtype=like.dtype, device=like.device).triu_(1)
        tiles += [
            Run(row, rows, 0, row + rows, addend=mask[:, n - row - rows :]) for row in range(first, n, rows)
        ]
    return tiles


def row_tiles(sees: Visibility, rows: int, *, start: int = 0, stop: int | None = None) -> Source:
    """Blocks of rows from `start` to `stop`, each with one run of keys that holds all it might see."""
    reach, tiles = sees.reach, []
    stop = sees.queries if stop is None else stop
    for row in range(start, stop, rows):
        size, position = min(rows, stop - row), row + sees.offset
        low = 0 if reach.first else max(0, position - reach.back)
        beyond = position + size + reach.ahead if reach.back + reach.ahead >= 0 else 0
        high = min(sees.keys, max(beyond, reach.first))
        if low < high:
            tiles.append(Run(row, size, int(low), int(high - low), sees=sees))
    return tiles


def beyond_first(sees: Visibility, rows: int, *, start: int = 0) -> Source:
    """Blocks of rows with the keys of the band alone, which may be none, after the first keys."""
    reach, tiles = sees.reach, []
    first = min(reach.first, sees.keys)
    for row in range(start, sees.queries, rows):
        size, position = min(rows, sees.queries - row), row + sees.offset
        low = int(min(max(first, position - reach.back), sees.keys))
        high = int(min(position + size + reach.ahead, sees.keys))
        tiles.append(Run(row, size, low, max(0, high - low), sees=sees))
    return tiles


def band_tiles(
    sees: Visibility, rows: int, *, like: torch.Tensor, edge_rows: int = EDGE_ROWS
) -> list[Source]:
    """The band in tiles of `rows` queries, what is left at both ends in blocks."""
    reach, stationary = sees.reach, sees.stationary
    back, ahead, first = int(reach.back), int(reach.ahead), min(reach.first, sees.keys)
    # From this row on, the band begins after the first keys, and after what breaks the pattern.
    begin = max(0, back + max(first, stationary or 0) - sees.offset)
    last = min(sees.keys - ahead - sees.offset, sees.queries)
    if begin + 2 * rows + LANES > last or back + ahead < 0:
        return [row_tiles(sees, edge_rows)]
    width, triangle = rows + back + ahead, False
    if stationary is not None:
        spare = -width % LANES  # keys before the band that fill up its width, visible to nobody
        at = torch.arange(width + spare, device=like.device)[None]
        addend = sees.addend(begin + spare + at[:, :rows], begin + sees.offset - back + at, like.dtype)[0, 0]
        # All of the band is visible: up to the query where it is full, it is the lower triangle.
        all_of_it = addend[..., 0, spare : spare + back + 1].count_nonzero() == 0
        triangle = begin == back and ahead == sees.offset == 0 and bool(all_of_it)
        if triangle and spare > 1:
            addend, spare = addend[..., spare:], 0
        begin += 1 if triangle else spare
        width, back = width + spare, back + spare
    count = (last - begin) // rows
    end, key = begin + count * rows, begin + sees.offset - back
    if stationary is None:
        run = Run(begin, rows, key, width, count, sees=sees)
        head, tail = row_tiles(sees, edge_rows, stop=begin), beyond_first(sees, edge_rows, start=end)
    else:
        run = Run(begin, rows, key, width, count, addend=addend)
        rest, key = sees.queries - end, end + sees.offset - back
        if rest and key + rest + back + ahead <= sees.keys:
            part = addend[..., :rest, : rest + back + ahead]
            tail = [Run(end, rest, key, rest + back + ahead, addend=part)]
        else:
            tail = beyond_first(sees, edge_rows, start=end)
        if triangle:
            head = causal_tiles(begin, causal_rows(begin), like=like)
        else:
            head = row_tiles(sees, edge_rows, stop=begin)
    band = [*head, run, *(tile for tile in tail if tile.keys)]
    if first == 0:
        return [band]
    return [band, [Run(begin, sees.queries - begin, 0, first, sees=sees)]]
