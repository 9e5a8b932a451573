"""Tiles over scattered positions: groups of a partition, single queries with their candidates."""

from __future__ import annotations

from dataclasses import replace

import torch

from regardant.core.partial_softmax import Source
from regardant.core.pattern import both
from regardant.core.pattern_algebra import And, Not, Or, Partition, Pattern
from regardant.core.tiles import Run, Scattered
from regardant.core.visibility import Visibility


def find_partition(
    pattern: Pattern | None, n: int, device: torch.device
) -> tuple[Partition, Pattern | None] | None:
    """The groups that a pattern is confined to, and what it still asks for inside them (None: nothing)."""
    if pattern is None:
        return None
    parts = pattern.patterns if isinstance(pattern, And) else (pattern,)
    for which, part in enumerate(parts):
        groups = part.partition(n, device)
        if groups is not None:
            return groups, both(*parts[:which], *parts[which + 1 :])
    return None


def partition_tiles(sees: Visibility, device: torch.device, *, in_place: bool = True) -> list[Source] | None:
    """One tile a group. A union of partitions (a row and a column) is one source each, where later ones
    leave out what an earlier one has. None where the pattern is not made of groups. `in_place`: groups of
    consecutive positions become a run, which copies nothing."""
    if sees.queries != sees.keys or sees.offset or sees.pattern is None:
        return None
    sources, earlier = [], []
    for part in sees.pattern.union:
        found = find_partition(part, sees.keys, device)
        if found is None:
            return None
        groups, rest = found
        rest = both(rest, Not(Or(tuple(earlier))) if earlier else None)
        sources.append(_group_tiles(groups, replace(sees, pattern=rest), device, in_place))
        earlier.append(part)
    return sources


def _group_tiles(groups: Partition, sees: Visibility, device: torch.device, in_place: bool) -> Source:
    if groups.order is not None:
        order = groups.order if groups.valid is None else groups.order.masked_fill(~groups.valid, -1)
        return [Scattered(order, order, sees)]
    size, whole = min(groups.size, sees.keys), sees.keys // groups.size
    if not in_place:
        order = torch.arange(-(-sees.keys // size) * size, device=device).view(-1, size)
        return [Scattered(order, order, sees)]
    plain = sees.pattern is None and sees.real is None and sees.bias is None
    tiles = [Run(0, size, 0, size, whole, sees=None if plain else sees)] if whole else []
    if rest := sees.keys - whole * size:
        tiles.append(Run(whole * size, rest, whole * size, rest, sees=None if plain else sees))
    return tiles


def candidate_tiles(sees: Visibility, device: torch.device) -> list[Source] | None:
    """One tile a query, of just the keys that it might see; None where the pattern lists none."""
    if sees.pattern is None:
        return None
    rows = torch.arange(sees.queries, device=device)
    keys = sees.pattern.candidates(rows + sees.offset, sees.keys)
    return None if keys is None else [[Scattered(rows[:, None], keys, sees)]]


def candidates_per_query(sees: Visibility, device: torch.device) -> int | None:
    """How many keys `candidate_tiles` would gather for each query, found out from the first one."""
    if sees.pattern is None:
        return None
    keys = sees.pattern.candidates(torch.full((1,), sees.offset, device=device), sees.keys)
    return None if keys is None else keys.shape[1]
