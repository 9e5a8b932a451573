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

CAUSAL_ROWS = 128


def causal_tiles(n: int, rows: int, *, like: torch.Tensor) -> Source:
    """The lower triangle in blocks of rows, each with just the keys that it reaches.

    All but the first read one mask: a block's keys end with the diagonal, so it is the last columns. The
    block that is shorter comes first, where no mask is needed.
    """
    first = n - (n - 1) // rows * rows
    tiles = [Run(0, first, 0, first, causal=True)]
    if first < n:
        mask = torch.full((rows, n), -inf, dtype=like.dtype, device=like.device).triu_(n - rows + 1)
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
        high = min(sees.keys, max(position + size + reach.ahead, reach.first))
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


def band_tiles(sees: Visibility, rows: int, edge_rows: int, *, like: torch.Tensor) -> list[Source]:
    """The band in tiles of `rows` queries, what is left at both ends in blocks of `edge_rows`."""
    reach, stationary = sees.reach, sees.stationary
    back, ahead, first = int(reach.back), int(reach.ahead), min(reach.first, sees.keys)
    # From this row on, the band begins after the first keys, and after what breaks the pattern.
    begin = max(0, back + max(first, stationary or 0) - sees.offset)
    count = max(0, (min(sees.keys - ahead - sees.offset, sees.queries) - begin) // rows)
    if begin >= sees.queries or count < 2 or back + ahead < 0:
        return [row_tiles(sees, edge_rows)]
    run = Run(
        begin, rows, begin + sees.offset - back, rows + back + ahead, count,
        sees=sees if stationary is None else None,
    )  # fmt: skip
    if stationary is not None:
        at = torch.arange(max(run.rows, run.keys), device=like.device)
        addend = sees.addend(run.row + at[None, : run.rows], run.key + at[None, : run.keys], like.dtype)
        run = Run(
            run.row, run.rows, run.key, run.keys, count, addend=None if addend is None else addend[0, 0]
        )
    end = begin + count * rows
    band = [
        *row_tiles(sees, edge_rows, stop=begin),
        run,
        *(tile for tile in beyond_first(sees, edge_rows, start=end) if tile.keys),
    ]
    if first == 0:
        return [band]
    return [band, [Run(begin, sees.queries - begin, 0, first, sees=sees)]]


def whole_tiles(sees: Visibility, *, elements: int) -> Source:
    """Blocks of rows with all the keys that the reach allows, at most `elements` pairs a head at once."""
    return row_tiles(sees, max(1, min(256, elements // max(sees.keys, 1))))
