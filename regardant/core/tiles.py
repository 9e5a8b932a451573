"""Tiles: which query rows meet which keys, all at once.

A plan is a list of tiles that together hold every visible pair. There are two kinds: `Run`, equal
rectangles in equal steps down the matrix of pairs, read in place through strided views; and
`Scattered`, rectangles over any positions, gathered. Both hand out pieces small enough that what is
made for one of them stays in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regardant.core.visibility import Visibility


@dataclass(frozen=True)
class Run:
    """Tile t holds the query rows `row + t·step` … (`rows` of them) and the keys `key + t·step` … (`keys`).

    With more than one tile, `step` is `rows`. `causal`: row r of a tile sees its keys 0 … r. `addend` is
    added to the logits of every tile alike; where the tiles differ, `sees` is asked instead.
    """

    row: int
    rows: int
    key: int
    keys: int
    count: int = 1
    causal: bool = False
    addend: Float[Tensor, "*h r s"] | None = None
    sees: Visibility | None = None

    @property
    def pairs(self) -> int:
        return self.rows * self.keys * self.count

    @property
    def covered(self) -> int:
        return self.rows * self.count

    def pieces(self, batch: int, piece_rows: int) -> Iterator[Piece]:
        if self.count == 1:
            yield RunPiece(self, 0, 1, slice(0, batch))
            return
        stride = max(1, piece_rows // self.rows)
        for start in range(0, self.count, stride):
            for sample in range(batch):
                stop = min(start + stride, self.count)
                yield RunPiece(self, start, stop, slice(sample, sample + 1))


@dataclass(frozen=True)
class Scattered:
    """Tile t holds the query rows `rows[t]` and the keys `keys[t]`; entries outside the sequence are void.

    No query row occurs twice among the rows.
    """

    rows: Int[Tensor, "t r"]
    keys: Int[Tensor, "t s"]
    sees: Visibility

    @property
    def pairs(self) -> int:
        return self.keys.numel() * self.rows.shape[1]

    @property
    def covered(self) -> int:
        return int(((self.rows >= 0) & (self.rows < self.sees.queries)).sum())

    def pieces(self, batch: int, piece_rows: int) -> Iterator[Piece]:
        # Gathered keys are copies: count them too, so that a piece's memory stays bounded.
        stride = max(1, 4 * piece_rows // (self.rows.shape[1] + self.keys.shape[1]))
        for start in range(0, len(self.rows), stride):
            yield ScatteredPiece(self, start, min(start + stride, len(self.rows)))


Tiles = Run | Scattered


class RunPiece:
    """Tiles `start` … `stop` of a run, for some samples: [tiles or samples, heads, rows, d]."""

    def __init__(self, run: Run, start: int, stop: int, samples: slice):
        self.run, self.start, self.stop, self.samples = run, start, stop, samples
        self.causal = run.causal

    def _view(self, x: Tensor, first: int, size: int, dtype: torch.dtype | None = None) -> Tensor:
        if self.run.count == 1:
            # What is taken whole is not cut: on the way back a cut fills up with zeros.
            x = x if first == 0 and size == x.shape[2] else x.narrow(2, first, size)
            return x if dtype is None or dtype == x.dtype else x.to(dtype)
        begin = first + self.start * self.run.rows
        length = (self.stop - self.start - 1) * self.run.rows + size
        x = x[self.samples][0].narrow(1, begin, length)
        # Converted before the tiles are laid out, where neighbours would repeat what they share.
        x = x if dtype is None or dtype == x.dtype else x.to(dtype)
        return x.unfold(1, size, self.run.rows).permute(1, 0, 3, 2)

    def queries(
        self, x: Float[Tensor, "b h m d"], dtype: torch.dtype | None = None
    ) -> Float[Tensor, "t h r d"]:
        return self._view(x, self.run.row, self.run.rows, dtype)

    def keys(self, x: Float[Tensor, "b g n d"], dtype: torch.dtype | None = None) -> Float[Tensor, "t g s d"]:
        return self._view(x, self.run.key, self.run.keys, dtype)

    def put(self, target: Float[Tensor, "b h m d"], part: Float[Tensor, "t h r d"]) -> None:
        self.queries(target).copy_(part)

    def add(self, target: Float[Tensor, "b h m d"], part: Float[Tensor, "t h r d"]) -> None:
        self.queries(target).add_(part)

    def add_to_keys(self, target: Float[Tensor, "b g n d"], part: Float[Tensor, "t g s d"]) -> None:
        """Neighbouring tiles share keys, so the sum goes by stripes of `rows`, which do not overlap."""
        if self.run.count == 1:
            self.keys(target).add_(part)
            return
        for begin in range(0, self.run.keys, self.run.rows):
            size = min(self.run.rows, self.run.keys - begin)
            stripe = self._view(target, self.run.key + begin, size)
            stripe.add_(part[:, :, begin : begin + size])

    def is_whole(self, x: Float[Tensor, "b h m d"]) -> bool:
        """Whether this is a single tile with all rows of x."""
        return self.run.count == 1 and self.run.row == 0 and self.run.rows == x.shape[2]

    def positions(self, device: torch.device) -> tuple[Int[Tensor, "t r"], Int[Tensor, "t s"]]:
        """The query rows and the key positions of each tile."""
        run = self.run
        tiles = torch.arange(self.start, self.stop, device=device)[:, None] * run.rows
        rows = tiles + torch.arange(run.row, run.row + run.rows, device=device)
        return rows, tiles + torch.arange(run.key, run.key + run.keys, device=device)

    def by_position(self, part: Tensor, batch: int) -> tuple[Int[Tensor, "r"], Float[Tensor, "b r h d"]]:
        """The real rows of a result and where they belong. (Of a single tile.)"""
        run = self.run
        return torch.arange(run.row, run.row + run.rows, device=part.device), part.transpose(1, 2)

    def addend(self, like: Tensor) -> Tensor | None:
        run, sees = self.run, self.run.sees
        if sees is None:
            return run.addend
        addend = sees.addend(*self.positions(like.device), like.dtype)
        if addend is None:
            return None
        if run.count == 1:
            return addend[:, 0]
        return addend[self.samples if len(addend) > 1 else slice(0, 1)][0]


class ScatteredPiece:
    """Tiles `start` … `stop` of scattered ones, for all samples: [samples · tiles, heads, rows, d]."""

    causal = False

    def __init__(self, tiles: Scattered, start: int, stop: int):
        self.rows, self.columns = tiles.rows[start:stop], tiles.keys[start:stop]
        self.sees = tiles.sees
        flat = self.rows.flatten()
        inside = (flat >= 0) & (flat < tiles.sees.queries)
        self.inside: Bool[Tensor, "t*r"] | None = None if bool(inside.all()) else inside

    @staticmethod
    def _gather(x: Float[Tensor, "b h n d"], at: Int[Tensor, "t r"]) -> Float[Tensor, "b*t h r d"]:
        flat = at.clamp(0, x.shape[2] - 1).flatten()
        taken = x.transpose(1, 2).index_select(1, flat)
        return taken.unflatten(1, at.shape).flatten(0, 1).transpose(1, 2)

    def queries(self, x, dtype=None):
        return self._gather(x, self.rows).to(dtype or x.dtype)

    def keys(self, x, dtype=None):
        return self._gather(x, self.columns).to(dtype or x.dtype)

    def is_whole(self, x):
        return False

    def positions(self, device):
        return self.rows, self.columns

    def by_position(self, part, batch):
        flat = part.transpose(1, 2).unflatten(0, (batch, -1)).flatten(1, 2)
        at = self.rows.flatten()
        return (at, flat) if self.inside is None else (at[self.inside], flat[:, self.inside])

    def put(self, target, part):
        at, flat = self.by_position(part, len(target))
        target.transpose(1, 2).index_copy_(1, at, flat.to(target.dtype))

    def add(self, target, part):
        at, flat = self.by_position(part, len(target))
        target.transpose(1, 2).index_add_(1, at, flat.to(target.dtype))

    def add_to_keys(self, target, part):
        flat = part.transpose(1, 2).unflatten(0, (len(target), -1)).flatten(1, 2)
        at = self.columns.clamp(0, target.shape[2] - 1).flatten()
        target.transpose(1, 2).index_add_(1, at, flat.to(target.dtype))

    def addend(self, like):
        addend = self.sees.addend(self.rows, self.columns, like.dtype)
        if addend is None:
            return None
        if len(addend) == self.sees.batch:
            return addend.flatten(0, 1)
        return addend.expand(self.sees.batch, *addend.shape[1:]).flatten(0, 1)


Piece = RunPiece | ScatteredPiece
