"""Cascades of extended Einsums: an algorithm as lines over named ranks, to run and to reason about.

    QK[m,p] = sum[e](Q[e,p] * K[e,m])
    GM[p]   = max[m](QK[m,p])
    …

A rank may be cut into tiles (m into m1 tiles of m0). What is said of a cascade holds for every way to map
it onto loops and hardware: how often the fibers of a rank must be traversed, what must be kept meanwhile,
and how many operations there are.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

from torch import Tensor

from regardant.core.errors import require
from regardant.lens.einsum import (
    REDUCE,
    SYMBOLS,
    Line,
    Ranks,
    indices_of,
    parts_of,
    rank_of,
    read_line,
    reduced_by,
    terms,
    uses_of,
)
from regardant.lens.interpreter import run


@dataclass(frozen=True)
class Stage:
    """When a value can be there: after `passes` whole traversals of the rank; `rides` on the next one."""

    passes: int
    rides: bool
    ranks: frozenset[str]
    """Which of the rank's tiles the value has."""


@dataclass(frozen=True)
class Cascade:
    """Lines in an order in which they can be worked out, and how ranks are cut into tiles.

    `Cascade.read(text, tiles={"m": ("m1", "m0")})` reads them from text, one a line.
    """

    lines: tuple[Line, ...]
    tiles: Mapping[str, Ranks] = field(default_factory=dict)

    @classmethod
    def read(cls, text: str, *, tiles: Mapping[str, Ranks] | None = None) -> Cascade:
        lines = tuple(read_line(line.strip()) for line in text.splitlines() if line.strip())
        require(bool(lines), "text holds no Einsum, but a cascade has at least one")
        known: set[str] = set()
        made = {line.name for line in lines}
        for line in lines:
            for use in uses_of(line.value):
                name = ast.unparse(use.value)
                require(
                    name not in made or name in known or name == line.name,
                    f"{line.text!r} uses {name}, which only a later line makes",
                )
            known.add(line.name)
        return cls(lines, dict(tiles or {}))

    def run(self, tensors: Mapping[str, Tensor], **scalars: float) -> dict[str, Tensor]:
        """Work every line out. A tensor's axes are in the order of its indices."""
        return run(self.lines, tensors, scalars)

    def passes(self, rank: str) -> int:
        """How often every mapping must traverse the fibers of a rank, from end to end.

        A line needs a new pass when it uses something with this rank together with a value that is
        there only once the rank has been traversed as a whole.
        """
        tiles = frozenset(self._tiles(rank))
        stages = self._stages(tiles)
        found = [stage.passes for line in self.lines for stage in self._seen(line, tiles, stages)]
        return 1 + max(found, default=-1)

    def footprint(self, sizes: Mapping[str, int], rank: str) -> dict[str, int]:
        """The elements of every tensor that is made on the way that must be kept while `rank` is traversed.

        What one pass makes and a later one uses is kept whole (or made again); the rest comes and goes
        tile by tile.
        """
        tiles = frozenset(self._tiles(rank))
        stages = self._stages(tiles)
        needed: dict[str, int] = {}
        for line in self.lines:
            for use in uses_of(line.value):
                name, seen = ast.unparse(use.value), self._seen(line, tiles, stages)
                at = max((stage.passes for stage in seen), default=0)
                late = at if seen else self._stage(line.value, tiles, stages).passes
                if any(rank_of(index) in tiles for index in indices_of(use)):
                    needed[name] = max(needed.get(name, 0), late)
        kept = {}
        for line in self.lines:
            own = {rank_of(index) for index in line.indices} - {""}
            whole = needed.get(line.name, 0) > stages[line.name].passes
            inner = self._tiles(rank)[-1] if len(tiles) > 1 else None
            kept[line.name] = prod(
                sizes[each] if whole or each not in tiles or each == inner else 1 for each in own
            )
        return kept

    def operations(self, sizes: Mapping[str, int]) -> Counter[str]:
        """How many additions, multiplications, maxima, exponentials, divisions … there are."""
        count: Counter[str] = Counter()
        for line in self.lines:
            _count(line.value, sizes, count)
        return count

    def _tiles(self, rank: str) -> Ranks:
        known = {each for line in self.lines for each in line.ranks}
        tiles = self.tiles.get(rank, (rank,))
        require(
            set(tiles) <= known, f"rank is {rank!r}, but this cascade runs over {', '.join(sorted(known))}"
        )
        return tiles

    def _stages(self, tiles: frozenset[str]) -> dict[str, Stage]:
        """When every tensor that the lines make is there. Recurrences are followed until nothing moves."""
        stages: dict[str, Stage] = {}
        for _ in range(len(self.lines) + 1):
            before = dict(stages)
            for line in self.lines:
                own = tiles & {rank_of(index) for index in line.indices}
                stage = self._stage(line.value, tiles, stages)
                # A recurrence has two lines: its start and its step.
                begun = stages.get(line.name, Stage(0, False, frozenset()))
                stages[line.name] = Stage(
                    max(stage.passes, begun.passes), stage.rides or begun.rides, own | begun.ranks
                )
            if stages == before:
                break
        return stages

    def _stage(self, node: ast.expr, tiles: frozenset[str], stages: Mapping[str, Stage]) -> Stage:
        if isinstance(node, ast.Subscript):
            given = stages.get(ast.unparse(node.value))
            indices = indices_of(node)
            own = tiles & {rank_of(index) for index in indices}
            if given is None:  # an input, or a recurrence that has only begun
                return Stage(0, own == tiles, own)
            if any(index.isupper() and index.lower() in tiles for index in indices):
                return Stage(given.passes + given.rides, False, own)
            return Stage(given.passes, given.rides or own == tiles, own)
        inner = [self._stage(each, tiles, stages) for each in parts_of(node)]
        passes = max((each.passes for each in inner), default=0)
        ranks = frozenset().union(*(each.ranks for each in inner))
        rides = ranks == tiles or any(each.rides and each.passes == passes for each in inner)
        left = ranks - set(reduced_by(node))
        if ranks and not left:
            return Stage(passes + rides, False, left)
        return Stage(passes, rides, left)

    def _seen(self, line: Line, tiles: frozenset[str], stages: Mapping[str, Stage]) -> list[Stage]:
        """The stages at which a line touches whole fibers."""
        found = (self._stage(term, tiles, stages) for term in terms(line.value))
        return [stage for stage in found if stage.ranks == tiles]


def _count(node: ast.expr, sizes: Mapping[str, int], count: Counter[str]) -> frozenset[str]:
    """Add a term's operations; gives the ranks of its value."""
    if isinstance(node, ast.Subscript):
        return frozenset(rank_of(index) for index in indices_of(node)) - {""}
    ranks = frozenset().union(*(_count(part, sizes, count) for part in parts_of(node)))
    space = prod(sizes[rank] for rank in ranks)
    if reduced := reduced_by(node):
        left = ranks - set(reduced)
        count[REDUCE[ast.unparse(node.func.value)][1]] += space - prod(sizes[rank] for rank in left)
        return left
    if isinstance(node, ast.BinOp):
        count[SYMBOLS[type(node.op)]] += space
    elif isinstance(node, ast.Call):
        count[ast.unparse(node.func)] += space
    return ranks
