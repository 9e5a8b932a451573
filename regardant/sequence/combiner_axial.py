"""Combiner, the axial form (Ren et al., "Combiner: Full Attention Transformer with Sparse Computation Cost",
2021, arXiv:2107.05768).

The sequence is laid out in rows of `segment` tokens. A query at row s and column u sees directly the tokens
of its row and its column, and everything else through regions with one key and one value each
(`regardant.core.regions`), all under one softmax. Causal:

    its row up to itself          (s, u'), u' ≤ u
    its column above              (t, u), t < s
    the other columns above       u' ≠ u: the tokens (t, u'), t < s, as one region      s > 0
    the rows above, to the left   t < s: the tokens (t, u'), u' < u, as one region      u > 0
    the rows above, to the right  t < s: the tokens (t, u'), u' > u, as one region

A token off the query's row and column is in two regions, the mixture of a factorisation by columns with one
by rows. Seen both ways, the row and the column are whole, and there are regions of the columns below, too.
With rows of √n tokens the cost is n^1.5.

What differs from the official code: it summarises by running sums in one framework and running maxima in
the other, we by `summary`; seen both ways, it lets a query see regions of its own row and column beside
their tokens, which counts them twice, so we leave those out; the last row may be short.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from regardant.core.errors import require
from regardant.core.mixer import check_input
from regardant.core.partial_softmax import attend_parts
from regardant.core.pattern_algebra import Pattern
from regardant.core.regions import RegionAttention, real_of, summarise, summarise_running
from regardant.core.state import Cache, State
from regardant.core.supports import Supports
from regardant.core.tiles import Scattered
from regardant.core.visibility import Visibility
from regardant.core.written import attend_rows

KINDS = ("token", "above", "left", "right", "below")
"""What stands at each place of the grid: the token, and the regions of which it is the edge, itself out."""


@dataclass(frozen=True)
class Grid(Pattern):
    """Who sees whom, keys being all tokens, then all regions above a place, left of it, and so on."""

    width: int
    places: int
    """Of the grid, the last row filled up."""
    onward: bool
    """Whether nothing later is seen."""

    def allows(self, i, j, *, batch=None, head=None):
        kind, j = j // self.places, j % self.places
        (s, u), (t, w) = ((at // self.width, at % self.width) for at in (i, j))
        same_row, same_column = s == t, u == w
        off = same_row & ~same_column
        ahead = s > t if self.onward else ~same_row
        token = same_row & (w <= u) if self.onward else same_row
        token = token | same_column & ahead
        aside = same_column & ahead
        return (
            (kind == 0) & token
            | (kind == 1) & off & (s > 0)
            | (kind == 2) & aside & (u > 0)
            | (kind == 3) & aside & (u < self.width - 1)
            | (kind == 4) & off & (s < self.places // self.width - 1)
        )


@dataclass(frozen=True)
class _Apart(Pattern):
    """Not two tokens of one row."""

    width: int
    places: int

    def allows(self, i, j, *, batch=None, head=None):
        return (j >= self.places) | (i // self.width != j // self.width)


@dataclass
class GridState(State):
    """All tokens, the regions left and right in all finished rows, and those above the row at hand."""

    queries: Cache
    keys: Cache
    values: Cache
    left: tuple[Cache, Cache]
    right: tuple[Cache, Cache]
    above: tuple[Tensor, Tensor] | None = None


class CombinerAxial(RegionAttention):
    """Direct attention along rows of `segment` tokens and along columns, regions for all others.

    Make `segment` about the square root of the longest sequence: then a layer costs n^1.5.
    """

    supports = Supports(
        cross=False, causal_cross=False, pattern=False, grouped=False, time=1.5, memory=1.5, state=1.0
    )

    def __init__(
        self, dim: int, heads: int, *, segment: int = 64, summary: Literal["max", "mean", "sum"] = "max",
        **shared,
    ):  # fmt: skip
        super().__init__(dim, heads, summary=summary, **shared)
        require(segment >= 1, f"segment is {segment}, but a row holds at least 1 token")
        self.segment = segment

    @property
    def _kinds(self) -> int:
        return 4 if self.causal else 5

    def parts(self, n):
        width, rows = self.segment, -(-n // self.segment)
        at, edge = torch.arange(n), torch.arange(rows * width)
        (s, u), (t, w) = ((place // width, place % width) for place in (at, edge[:, None]))
        regions = [(u == w) & (s < t), (s == t) & (u < w), (s == t) & (u > w), (u == w) & (s > t)]
        sees = Grid(width, rows * width, self.causal).dense(n, self._kinds * rows * width)
        return sees[:, :n], torch.cat(regions[: self._kinds - 1]), sees[:, rows * width :]

    def attend(self, q, k, v, *, x, pattern, padding=None, record=None):
        real, n, width = real_of(pattern, len(q)), k.shape[2], self.segment
        rows = -(-n // width)
        places = rows * width
        q_all, k_all, v_all = (F.pad(each, (0, 0, 0, places - n)) for each in (q, k, v))
        if real is not None or places > n:
            real = torch.ones(len(q), n, dtype=torch.bool, device=q.device) if real is None else real
            real = F.pad(real, (0, places - n))
        keys, values, there = self._regions(q_all, k_all, v_all, real)
        order = Grid(width, places, self.causal)
        sees = Visibility(order, there, None, len(q), self.heads, n, self._kinds * places)
        grid = torch.arange(places, device=q.device).view(rows, width)
        columns, tokens = grid.T, torch.arange(self._kinds, device=q.device) * places

        def keys_of(lines: Tensor, *kinds: int) -> Tensor:
            return torch.cat([lines + tokens[kind] for kind in kinds], dim=1)

        along = Scattered(grid, keys_of(grid, *((0, 1) if self.causal else (0, 1, 4))), sees)
        # A column's tokens are seen here, those of the query's own row have been seen already.
        sees = Visibility(order & _Apart(width, places), there, None, len(q), self.heads, n, sees.keys)
        across = Scattered(columns, keys_of(columns, 0, 2, 3), sees)
        return attend_parts(q, keys, values, [[along], [across]], scale=self.pooling["scale"])

    def _regions(self, q: Tensor, k: Tensor, v: Tensor, real: Tensor | None):
        """Keys and values of all tokens and regions, and which of them hold something real."""
        by_row, by_column, sides = (-1, self.segment), (2, 3), []
        grid = None if real is None else real.unflatten(1, by_row)
        for kind in range(1, self._kinds):
            down, back = kind in (1, 4), kind in (3, 4)

            def turn(rows: Tensor, down: bool = down, back: bool = back) -> Tensor:
                rows = rows.transpose(*by_column) if down else rows
                return rows.flip(3) if back else rows

            lines = [turn(rows.unflatten(2, by_row)) for rows in (q, k, v)]
            mask = None if grid is None else turn(grid[:, None, :, :, None])[..., 0]
            made = summarise_running(*lines, mask, **self.pooling)
            if mask is not None:
                some = F.pad(mask.long().cumsum(-1)[..., :-1] > 0, (1, 0))[..., None]
                made = (*made, some)
            back_again = (rows.flip(3) if back else rows for rows in made)
            sides.append([(rows.transpose(2, 3) if down else rows).flatten(2, 3) for rows in back_again])
        keys, values = (torch.cat([own, *(side[at] for side in sides)], 2) for at, own in enumerate((k, v)))
        there = None if real is None else torch.cat([real, *(side[2][:, 0, :, 0] for side in sides)], 1)
        return keys, values, there

    def start(self, batch, *, context=None, padding=None):
        super().start(batch, context=context, padding=padding)
        rows = Cache(self.to_q.weight.new_empty(batch, self.heads, 0, self.head_dim))
        return GridState(0, rows, rows, rows, (rows, rows), (rows, rows))

    def prefill(self, x):
        self.start(x.shape[0])
        self.check_inputs(x, None, None)
        rows, n = self.project(x), x.shape[1]
        pattern = self.visible(n, across=False, padding=None)
        y = self.merge(self.attend(*rows, x=x, pattern=pattern), x=x)
        whole = n // self.segment * self.segment
        left, right = self._sides([each[:, :, :whole] for each in rows])
        above = self._above([each[:, :, :whole] for each in rows])
        return y, GridState(n, *map(Cache, rows), tuple(map(Cache, left)), tuple(map(Cache, right)), above)

    def _sides(self, rows: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of the regions left and right of each place in whole rows."""
        lines, found = [each.unflatten(2, (-1, self.segment)) for each in rows], []
        for back in (False, True):
            turned = [each.flip(3) if back else each for each in lines]
            made = summarise_running(*turned, None, **self.pooling)
            found.append(tuple((each.flip(3) if back else each).flatten(2, 3) for each in made))
        return found

    def _above(self, rows: list[Tensor]) -> tuple[Tensor, Tensor] | None:
        """Keys and values of the columns of whole rows."""
        if not rows[0].shape[2]:
            return None
        columns = (each.unflatten(2, (-1, self.segment)).transpose(2, 3) for each in rows)
        return summarise(*columns, None, **self.pooling)

    def step(self, x_t, state):
        check_input("x_t", x_t, "batch, width", self.dim, self.to_q.weight)
        x, width, (s, u) = x_t[:, None], self.segment, divmod(state.length, self.segment)
        rows = self.project(x, offset=state.length)
        held = [cache.append(row) for cache, row in zip((state.queries, state.keys, state.values), rows)]
        seen = []
        for which, cache in enumerate(held[1:]):
            tokens = cache.rows
            parts = [tokens[:, :, s * width :], tokens[:, :, u : s * width : width]]
            if s:
                parts += [state.above[which][:, :, :u], state.above[which][:, :, u + 1 :]]
                parts += [state.left[which].rows[:, :, u::width]] if u else []
                parts += [state.right[which].rows[:, :, u::width]] if u < width - 1 else []
            seen.append(torch.cat(parts, dim=2))
        out = attend_rows(rows[0], *seen, scale=self.pooling["scale"])
        left, right, above = state.left, state.right, state.above
        if u == width - 1:
            whole = [cache.rows for cache in held]
            made = self._sides([each[:, :, s * width :] for each in whole])
            left, right = (
                tuple(cache.append(row) for cache, row in zip(*both)) for both in zip((left, right), made)
            )
            above = self._above(whole)
        return self.merge(out, x=x)[:, 0], GridState(state.length + 1, *held, left, right, above)
