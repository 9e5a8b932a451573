"""Positions on maps, as plug-ins of attention: where a key stands as seen from its query.

A position acts in up to four places, and each of these uses one of them:

| position                | where                                | at other sizes                          |
| ----------------------- | ------------------------------------ | --------------------------------------- |
| `DepthwisePosition`     | `embed`: on the map, before anything | a convolution has none                  |
| `TableBias`             | `added`: on the logits               | `resized` interpolates the table        |
| `LogSpacedBias`         | `added`: on the logits               | the MLP takes any offset                |
| `RelativeLogits2d`      | `added`: on the logits, by the query | `resized` interpolates the tables       |
| `ValueConvolution`      | `values`: beside the weighted values | a convolution has none                  |

Offsets are key minus query, in steps of the rectangle that is attended in (`rectangle_offsets`): on a strided
grid, in steps of the grid.
"""

from __future__ import annotations

from math import log2

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from regardant.core.errors import require
from regardant.core.grid_geometry import per_axis
from regardant.core.grid_groups import axis_offsets, rectangle_offsets
from regardant.core.grid_pattern import GridPattern
from regardant.core.grid_widened import Widened

Pair = int | tuple[int, int]

AT_ONCE = 512
"""Offsets that go through the hidden layer of an MLP together."""


class GridPosition(nn.Module):
    """No position at all, and the base of the others."""

    biases = False
    """Whether `added` has something to say."""
    mixes_values = False
    """Whether `values` has something to say."""

    def embed(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        return x

    def widen(self, pattern: GridPattern) -> GridPattern:
        """Who hears of whom, where attention under `pattern` follows on `embed`."""
        return pattern

    def added(
        self, q: Float[Tensor, "b e m d"], rows: Int[Tensor, "m n"], columns: Int[Tensor, "m n"]
    ) -> Float[Tensor, "#b e m n"]:
        """What is added to the logits; `rows` and `columns` are the offsets of the keys."""
        raise TypeError(f"{type(self).__name__} adds nothing to the logits")

    def between(
        self, q: Float[Tensor, "b e m d"], queries: tuple[int, int], keys: tuple[int, int],
        *, origin: tuple[int, int] = (0, 0), stride: int = 1,
    ) -> Float[Tensor, "#b e m n"]:  # fmt: skip
        """The same between two rectangles: queries `stride` apart, and keys that begin at `origin`."""
        return self.added(q, *rectangle_offsets(queries, keys, origin, stride=stride, device=q.device))

    def values(self, v: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        """What is added to the output beside the weighted values; `v` is one rectangle of positions."""
        raise TypeError(f"{type(self).__name__} adds nothing to the values")

    def values_plainly(
        self, v: Float[Tensor, "b h w c"], pattern: GridPattern | None, step: tuple[int, int] = (1, 1)
    ) -> Float[Tensor, "b h w c"]:
        """The same on the whole map, where neighbours stand `step` apart and a position hears from those
        only that it may see."""
        raise TypeError(f"{type(self).__name__} adds nothing to the values")


class TableBias(GridPosition):
    """A learned number a head and an offset (Liu et al., Swin): b[head, key - query].

    For groups of `cell` positions; `halo` is how far keys reach beyond the queries' rectangle.
    """

    biases = True

    def __init__(self, heads: int, cell: Pair, *, halo: Pair = 0, std: float = 0.02):
        super().__init__()
        self.heads, self.cell, self.halo = heads, per_axis(cell, 2, "cell"), per_axis(halo, 2, "halo")
        require(min(self.cell) >= 1, f"cell is {cell}, but a group is at least 1 wide")
        self.farthest = tuple(side - 1 + around for side, around in zip(self.cell, self.halo))
        self.table = nn.Parameter(torch.empty(heads, *(2 * far + 1 for far in self.farthest)))
        nn.init.trunc_normal_(self.table, std=std)

    def added(self, q, rows, columns):
        # What lies beyond the table is never looked at (or padding), so that any entry will do.
        rows, columns = (
            (along + far).clamp(0, 2 * far) for along, far in zip((rows, columns), self.farthest)
        )
        at = (rows * self.table.shape[2] + columns).flatten()
        return self.table.flatten(1).index_select(1, at).unflatten(1, rows.shape)[None].to(q.dtype)

    def resized(self, cell: Pair, *, halo: Pair | None = None) -> TableBias:
        """The same bias for groups of another size, its table interpolated between its corners."""
        other = TableBias(self.heads, cell, halo=self.halo if halo is None else halo).to(self.table)
        with torch.no_grad():
            other.table.copy_(resize_table(self.table, other.table.shape[1:]))
        return other


class LogSpacedBias(GridPosition):
    """An MLP of the offset on a logarithmic scale (Liu et al., Swin v2; Shi, TransNeXt).

        b[·, δ] = W₂ ReLU(W₁ δ̂ + b₁) + b₂
        δ̂ = sign(δ') log₂(1 + |δ'|) / log₂ 8,    δ' = 8 δ / (trained - 1)

    `trained` is the size of the map (or the window) that the weights were trained at: the scale of the
    offsets stays that one at every other size, where they merely go farther.
    """

    biases = True

    def __init__(self, heads: int, trained: Pair, *, hidden: int = 512, bias: bool = True):
        super().__init__()
        self.heads, self.trained = heads, per_axis(trained, 2, "trained")
        self.mlp = nn.Sequential(
            nn.Linear(2, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, heads, bias=bias)
        )

    def scaled(self, offsets: Float[Tensor, "*p 2"]) -> Float[Tensor, "*p 2"]:
        """Offsets as the MLP sees them; they need not be whole."""
        unit = torch.tensor([max(side - 1, 1) for side in self.trained]).to(offsets)
        near = offsets * 8 / unit
        return near.sign() * (1 + near.abs()).log2() / log2(8)

    def at(self, offsets: Float[Tensor, "*p 2"]) -> Float[Tensor, "e *p"]:
        """The bias of any offsets, each computed once."""
        return self.mlp(self.scaled(offsets)).movedim(-1, 0)

    def added(self, q, rows, columns):
        first, width = columns.min(), columns.max() - columns.min() + 1
        top = rows.min()
        apart = torch.cartesian_prod(
            torch.arange(int(top), int(rows.max()) + 1, device=q.device),
            torch.arange(int(first), int(columns.max()) + 1, device=q.device),
        )
        known = self.at(apart.to(self.mlp[0].weight.dtype))
        at = ((rows - top) * width + (columns - first)).flatten()
        return known.index_select(1, at).unflatten(1, rows.shape)[None].to(q.dtype)

    def places(
        self, rows: Float[Tensor, "y p"], columns: Float[Tensor, "x r"]
    ) -> tuple[Float[Tensor, "i j 2"], Int[Tensor, "y p"], Int[Tensor, "x r"]]:
        """Two grids of positions, whose offsets along each axis these are, and they need not be whole: the
        offsets that occur, as the MLP sees them, and which of them is whose along each axis. They are the
        same for all layers that were trained at one size."""
        # On shapes alone (the meta device) nobody knows what occurs: hence on the CPU.
        weight = self.mlp[0].weight
        (rows, down), (columns, across) = (
            torch.unique(each.cpu(), return_inverse=True) for each in (rows, columns)
        )
        apart = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)
        exact = torch.promote_types(weight.dtype, torch.float32)
        return self.scaled(apart.to(exact)).to(weight), down.to(weight.device), across.to(weight.device)

    def at_places(
        self, offsets: Float[Tensor, "i j 2"], down: Int[Tensor, "y p"], across: Int[Tensor, "x r"]
    ) -> Float[Tensor, "e yx pr"]:
        """The bias at `places`, each computed once."""
        # Some at a time: the hidden layer is wide, and so stays in the cache.
        known = torch.cat([self.mlp(part) for part in offsets.flatten(0, 1).split(AT_ONCE)])
        known = known.mT.unflatten(1, offsets.shape[:2])
        known = known.index_select(1, down.flatten()).index_select(2, across.flatten())
        known = known.view(-1, *down.shape, *across.shape).transpose(2, 3)
        return known.reshape(len(known), len(down) * len(across), -1)


class RelativeLogits2d(GridPosition):
    """q · (e[row offset] + e'[column offset]), tables shared by the heads (Bello et al.; HaloNet).

    `scale` multiplies the term, as the content's logits have theirs.
    """

    biases = True

    def __init__(self, head_dim: int, cell: Pair, *, halo: Pair = 0, scale: float = 1.0):
        super().__init__()
        self.cell, self.halo = per_axis(cell, 2, "cell"), per_axis(halo, 2, "halo")
        self.farthest = tuple(side - 1 + around for side, around in zip(self.cell, self.halo))
        self.head_dim, self.scale = head_dim, scale
        self.rows, self.columns = (
            nn.Parameter(torch.randn(2 * far + 1, head_dim) * head_dim**-0.5) for far in self.farthest
        )

    def added(self, q, rows, columns):
        total = 0
        for table, along, far in zip((self.rows, self.columns), (rows, columns), self.farthest):
            products = (q * self.scale) @ table.to(q.dtype).mT
            at = (along + far).clamp(0, 2 * far)
            total = total + products.gather(-1, at.expand(*q.shape[:-2], -1, -1))
        return total

    def between(self, q, queries, keys, *, origin=(0, 0), stride=1):
        # Along one axis at a time, and only then for every pair.
        q = (q * self.scale).unflatten(2, queries)
        parts = []
        for table, far, *sides in zip((self.rows, self.columns), self.farthest, queries, keys, origin):
            at = axis_offsets(*sides, stride=stride, device=q.device) + far
            parts.append(table.to(q.dtype)[at.clamp(0, 2 * far)])
        rows = torch.einsum("bercd,rkd->berck", q, parts[0])
        columns = torch.einsum("bercd,ckd->berck", q, parts[1])
        return (rows[..., :, None] + columns[..., None, :]).flatten(4, 5).flatten(2, 3)

    def resized(self, cell: Pair, *, halo: Pair | None = None) -> RelativeLogits2d:
        """The same for groups of another size, the tables interpolated between their ends."""
        other = RelativeLogits2d(
            self.head_dim, cell, halo=self.halo if halo is None else halo, scale=self.scale
        ).to(self.rows)
        with torch.no_grad():
            for mine, its in ((self.rows, other.rows), (self.columns, other.columns)):
                its.copy_(resize_table(mine.mT[:, None], (1, len(its)))[:, 0].mT)
        return other


class DepthwisePosition(GridPosition):
    """x + a depthwise convolution of x: zeros at the border tell where it is (Chu et al., CPE)."""

    def __init__(self, dim: int, kernel: int = 3):
        super().__init__()
        self.convolution = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)

    def embed(self, x):
        return x + on_channels_first(self.convolution, x)

    def widen(self, pattern):
        return Widened(pattern, self.convolution.padding[0], size=pattern.size)


class ValueConvolution(GridPosition):
    """A depthwise convolution of the values, added to what is attended to (Dong et al., CSWin's LePE).

    It stays inside the rectangle that is attended in, with zeros beyond.
    """

    mixes_values = True

    def __init__(self, dim: int, kernel: int = 3):
        super().__init__()
        require(kernel % 2 == 1, f"kernel is {kernel}, but it is odd, with a middle")
        self.convolution = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)

    def values(self, v):
        return on_channels_first(self.convolution, v)

    def values_plainly(self, v, pattern, step=(1, 1)):
        height, width = v.shape[1:3]
        far = self.convolution.kernel_size[0] // 2
        row, column = torch.meshgrid(
            torch.arange(height, device=v.device), torch.arange(width, device=v.device), indexing="ij"
        )
        total = torch.zeros_like(v) + self.convolution.bias
        for down in range(-far, far + 1):
            for right in range(-far, far + 1):
                y, x = row + down * step[0], column + right * step[1]
                inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
                y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
                if pattern is not None:
                    inside = inside & pattern.allows(row * width + column, y * width + x)
                tap = self.convolution.weight[:, 0, down + far, right + far]
                total = total + v[:, y, x] * inside[..., None] * tap
        return total


def on_channels_first(layer: nn.Module, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b i j d"]:
    """A layer for [b, c, h, w] on a map with channels last: the same memory, seen with other axes."""
    return layer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def resize_table(table: Float[Tensor, "e p q"], size: tuple[int, int]) -> Float[Tensor, "e r s"]:
    """A table of offsets for rectangles of another size: linear between its entries, corner on corner."""
    if tuple(table.shape[1:]) == tuple(size):
        return table
    return F.interpolate(table[None], size=tuple(size), mode="bilinear", align_corners=True)[0]


class LearnedMap(nn.Module):
    """A learned vector a position, added to a map; for another size it is interpolated (bicubic)."""

    def __init__(self, size: Pair, dim: int, *, std: float = 0.02):
        super().__init__()
        self.size = per_axis(size, 2, "size")
        self.table = nn.Parameter(torch.empty(*self.size, dim))
        nn.init.trunc_normal_(self.table, std=std)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        if x.shape[1:3] == self.size:
            return x + self.table
        table = self.table.permute(2, 0, 1)[None]
        exact = torch.promote_types(table.dtype, torch.float32)
        table = F.interpolate(table.to(exact), size=x.shape[1:3], mode="bicubic", align_corners=False)
        return x + table[0].permute(1, 2, 0).to(x.dtype)
