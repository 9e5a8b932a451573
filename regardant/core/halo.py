"""Tiles with halos, for patterns on grids that reach only so far along each axis.

The grid is cut into boxes; a box's keys are the box around everything that its queries might see.
Where a pattern is dilated, a box takes every d-th position along that axis, so that its keys do too.
"""

from __future__ import annotations

from math import prod

import torch
from jaxtyping import Int
from torch import Tensor

from regardant.core.grid_pattern import GridPattern
from regardant.core.partial_softmax import Source
from regardant.core.pattern import PerHead
from regardant.core.pattern_algebra import And, Or, Pattern
from regardant.core.tiles import Scattered
from regardant.core.visibility import Visibility

SIDES = (4, 8, 16, 32)

Span = list[tuple[Tensor, Tensor]]


def halo_tiles(sees: Visibility, device: torch.device) -> list[Source] | None:
    """The cheapest boxes, or None where the pattern has no grid or reaches too far on it."""
    grid = grid_of(sees.pattern)
    if grid is None or sees.offset or not prod(grid.size) == sees.queries == sees.keys:
        return None
    at = torch.arange(sees.keys, device=device)
    spans = _spans(sees.pattern, at)
    if spans is None:
        return None
    steps = dilation_of(sees.pattern, len(grid.size))
    cuts = (_boxes(grid, spans, steps, side, device) for side in SIDES)
    # Gathering a key costs about as much as meeting it with some twenty queries.
    rows, keys = min(cuts, key=lambda cut: cut[1].numel() * (cut[0].shape[1] + 20))
    return None if keys.shape[1] * 2 > sees.keys else [[Scattered(rows, keys, sees)]]


def grid_of(pattern: Pattern | None) -> GridPattern | None:
    """The first bound grid pattern inside a composition."""
    if isinstance(pattern, GridPattern):
        return pattern if pattern.size is not None else None
    inner = pattern.patterns if isinstance(pattern, And | Or | PerHead) else ()
    return next((found for part in inner if (found := grid_of(part)) is not None), None)


def dilation_of(pattern: Pattern | None, rank: int) -> tuple[int, ...]:
    """The common step of the pattern's positions, one an axis; 1 unless the whole pattern has it."""
    if isinstance(pattern, And):
        known = [dilation_of(part, rank) for part in pattern.patterns]
        return tuple(max(axis) for axis in zip(*known))
    given = getattr(pattern, "dilation", 1) if isinstance(pattern, GridPattern) else 1
    return (given,) * rank if isinstance(given, int) else tuple(given)


def _spans(pattern: Pattern, at: Int[Tensor, "n"]) -> Span | None:
    """Per axis, the lowest and the highest coordinate that each query might see; None: unknown."""
    if isinstance(pattern, And | Or | PerHead):
        known = [_spans(part, at) for part in pattern.patterns]
        if isinstance(pattern, And):
            known = [spans for spans in known if spans is not None]
            low, high = torch.maximum, torch.minimum
        else:
            low, high = torch.minimum, torch.maximum
        if not known or any(spans is None for spans in known):
            return None
        joined = known[0]
        for spans in known[1:]:
            joined = [(low(a, c), high(b, d)) for (a, b), (c, d) in zip(joined, spans)]
        return joined
    if not isinstance(pattern, GridPattern) or pattern.size is None:
        return None
    around = pattern.around(at)
    if around is not None:
        return [
            (axis.amin(dim=1).clamp(min=0), axis.amax(dim=1).clamp(max=length - 1))
            for axis, length in zip(around, pattern.size)
        ]
    reaches = pattern.reaches()
    if not all(reach.bounded and not reach.first for reach in reaches):
        return None
    return [
        ((place - int(reach.back)).clamp(min=0), (place + int(reach.ahead)).clamp(max=length - 1))
        for place, reach, length in zip(pattern.coordinates(at), reaches, pattern.size)
    ]


def _boxes(grid: GridPattern, spans: Span, steps: tuple[int, ...], side: int, device: torch.device):
    """Rows [tiles, r] and keys [tiles, s] of the boxes of `side`; -1 where a box sticks out."""
    axes = []
    for length, step in zip(grid.size, steps):
        count = -(-length // step)  # positions of the longest residue class
        fit = min(side, count)
        starts = torch.arange(0, count, fit, device=device)
        inside = torch.arange(fit, device=device)
        place = (starts[:, None] + inside) * step  # [starts, fit], of residue class 0
        place = (place + torch.arange(step, device=device)[:, None, None]).flatten(0, 1)
        axes.append(place.masked_fill(place >= length, -1))
    rows = _product(grid, axes)
    keys = []
    for axis, (length, step) in enumerate(zip(grid.size, steps)):
        low, high = spans[axis]
        real = rows >= 0
        least = low[rows.clamp(min=0)].masked_fill(~real, length).amin(dim=1)
        most = high[rows.clamp(min=0)].masked_fill(~real, -1).amax(dim=1)
        width = max(1, int((most - least).amax()) // step + 1)
        least = torch.where(least < length, least, 0)
        # Where the grid cut the span off, its first position may belong to another residue class.
        least = least + (grid.coordinates(rows.amax(dim=1).clamp(min=0))[axis] - least) % step
        keys.append(least[:, None] + torch.arange(width, device=device) * step)
    return rows, _product(grid, keys, paired=True)


def _product(grid: GridPattern, axes: list[Tensor], *, paired: bool = False) -> Int[Tensor, "t s"]:
    """Coordinates [tiles_a, s_a] an axis → positions [tiles, s] of all their combinations.

    `paired`: the axes already speak of the same tiles, so that only the positions are combined.
    """
    rank, spread = len(axes), []
    for which, axis in enumerate(axes):
        inner = [axis.shape[1] if other == which else 1 for other in range(rank)]
        outer = [len(axis)] if paired else [len(axis) if other == which else 1 for other in range(rank)]
        spread.append(axis.reshape(*outer, *inner))
    together = grid.flatten([axis.contiguous() for axis in torch.broadcast_tensors(*spread)])
    tiles = 1 if paired else rank
    return together.flatten(tiles).flatten(0, tiles - 1)
