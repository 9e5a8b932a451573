"""Maps cut into groups of positions that attend among themselves, and put together again.

    groups = groups_of(Window2d(7).on(56, 56))
    windows = groups.cut(x)                 # [b, h, w, c] → [b · groups, positions, c], one copy
    y = groups.join(windows)                # its inverse

Windows, shifted windows, strided grids, stripes and lines are all of one make: a group is a rectangle of
positions that stand `step` apart. Where the rectangles do not fit the map it is filled up at the bottom and
on the right, and `mask` says who may look at whom inside each group; where they fit there is no mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from regardant.core.errors import require
from regardant.core.grid_geometry import per_axis
from regardant.core.grid_pattern import Axial, Dilated2d, Stripe, Window2d
from regardant.core.overlapping import rectangles
from regardant.core.pattern import Pattern


@dataclass(frozen=True)
class Groups:
    """`count` groups of `cell` positions, (down, across), on a map of `size`.

    `strided`: the positions of a group stand `count` apart, as on MaxViT's grid; else side by side, and
    `shift` is how far the first whole window stands from the border.
    """

    size: tuple[int, int]
    cell: tuple[int, int]
    count: tuple[int, int]
    strided: bool = False
    shift: tuple[int, int] = (0, 0)

    @cached_property
    def positions(self) -> int:
        """Positions of one group."""
        return prod(self.cell)

    @property
    def step(self) -> tuple[int, int]:
        """How far neighbours of a group stand apart on the map, along each axis."""
        return self.count if self.strided else (1, 1)

    @cached_property
    def padded(self) -> tuple[int, int]:
        return self.cell[0] * self.count[0], self.cell[1] * self.count[1]

    def cut(self, x: Float[Tensor, "b h w *c"]) -> Float[Tensor, "b*g n *c"]:
        (height, width), (below, right) = self.size, self.padded
        rest = x.ndim - 3
        if (below, right) != self.size:
            x = pad(x, (*(0, 0) * rest, 0, right - width, 0, below - height))
        if any(self.shift):
            x = x.roll((-self.shift[0], -self.shift[1]), dims=(1, 2))
        if self.count == (1, 1):
            return x.flatten(1, 2)
        (rows, columns), (down, across) = self.cell, self.count
        if self.strided:
            parts, order = x.unflatten(2, (columns, across)).unflatten(1, (rows, down)), (2, 4, 1, 3)
        else:
            parts, order = x.unflatten(2, (across, columns)).unflatten(1, (down, rows)), (1, 3, 2, 4)
        parts = parts.permute(0, *order, *range(5, 5 + rest))
        return parts.reshape(-1, self.positions, *x.shape[3:])

    def join(self, parts: Float[Tensor, "b*g n c"]) -> Float[Tensor, "b h w c"]:
        if self.cell == self.size:
            return parts.reshape(len(parts), *self.size, parts.shape[-1])
        x = parts.reshape(-1, *self.count, *self.cell, parts.shape[-1])
        order = (0, 3, 1, 4, 2, 5) if self.strided else (0, 1, 3, 2, 4, 5)
        x = x.permute(order).reshape(len(x), *self.padded, parts.shape[-1])
        if any(self.shift):
            x = x.roll(self.shift, dims=(1, 2))
        return x if self.padded == self.size else x[:, : self.size[0], : self.size[1]]

    def mask(self, device: torch.device | str = "cpu") -> Bool[Tensor, "g n n"] | None:
        """Who sees whom in each group, where not everybody sees everybody.

        What fills the map up is seen by nobody, and sees itself, so that no row is empty.
        """
        if self.padded == self.size and not any(self.shift):
            return None
        # A number a position: what filled the map up is -1, and what a shift carried round to the other
        # border is another part of the map than what was there.
        axes = []
        for length, whole, shift in zip(self.size, self.padded, self.shift):
            at = torch.arange(whole, device=device)
            axes.append(torch.where(at < length, (at < shift).long(), -1))
        part = axes[0][:, None] * 2 + axes[1]
        part = torch.where((axes[0][:, None] < 0) | (axes[1] < 0), -1, part)
        part = Groups(self.padded, self.cell, self.count, self.strided, self.shift).cut(part[None, ..., None])
        part = part[..., 0]
        seen = (part[:, :, None] == part[:, None, :]) & (part[:, None, :] >= 0)
        return seen | torch.eye(self.positions, dtype=torch.bool, device=device)


@lru_cache(maxsize=512)
def groups_of(pattern: Pattern | None, size: tuple[int, int] | None = None) -> Groups:
    """The groups that a bound pattern makes of its map; `None` makes one of the whole map of `size`."""
    match pattern:
        case None:
            require(size is not None, "pattern is None, and then size must say how large the map is")
            return Groups(tuple(size), tuple(size), (1, 1))
        case Stripe():
            return groups_of(pattern.as_window())
        case Axial() if len(pattern.bound) == 2 and not pattern.is_causal:
            return groups_of(Stripe(width=1, axis=1 - pattern.axis % 2, size=pattern.bound))
        case Window2d():
            sides, shifts = per_axis(pattern.window, 2, "window"), per_axis(pattern.shift, 2, "shift")
            shift = tuple(along % side for along, side in zip(shifts, sides))
            # A window that is longer than the map is as long as the map, unless a shift cuts it.
            cell = tuple(
                side if moved else min(side, length)
                for side, moved, length in zip(sides, shift, pattern.bound)
            )
            count = tuple(-(-length // side) for length, side in zip(pattern.bound, cell))
            return Groups(pattern.bound, cell, count, shift=shift)
        case Dilated2d():
            strides = per_axis(pattern.stride, 2, "stride")
            count = tuple(min(step, length) for step, length in zip(strides, pattern.bound))
            cell = tuple(-(-length // step) for length, step in zip(pattern.bound, count))
            return Groups(pattern.bound, cell, count, strided=True)
    raise ValueError(f"pattern is {pattern}, but groups are made by Window2d, Stripe, Axial and Dilated2d")


def axis_offsets(
    queries: int, keys: int, origin: int, *, stride: int = 1, device: torch.device | str = "cpu"
) -> Int[Tensor, "m n"]:
    """Offsets along one axis, key minus query; queries stand `stride` apart, the keys begin at `origin`."""
    at = torch.arange(keys, device=device) + origin
    return at - torch.arange(queries, device=device)[:, None] * stride


def rectangle_offsets(
    queries: tuple[int, int], keys: tuple[int, int], origin: tuple[int, int], *, stride: int = 1,
    device: torch.device | str = "cpu",
) -> tuple[Int[Tensor, "m n"], Int[Tensor, "m n"]]:  # fmt: skip
    """Row and column offsets between two rectangles of positions, each row by row."""
    rows, columns = (
        axis_offsets(*sides, stride=stride, device=device) for sides in zip(queries, keys, origin)
    )
    shape = (*queries, *keys)
    rows, columns = rows[:, None, :, None].expand(shape), columns[None, :, None, :].expand(shape)
    return rows.reshape(prod(queries), prod(keys)), columns.reshape(prod(queries), prod(keys))


def blocks_with_halo(
    x: Float[Tensor, "b h w c"], block: tuple[int, int], halo: tuple[int, int]
) -> Float[Tensor, "b*g n c"]:
    """The positions of every block and of `halo` around it; zeros where that lies off the map.

    The blocks are those of `Window2d(block)`, the map filled up for them at the bottom and on the right.
    """
    spare = [-length % side for length, side in zip(x.shape[1:3], block)]
    x = pad(x, (0, 0, halo[1], halo[1] + spare[1], halo[0], halo[0] + spare[0]))
    wide = (block[0] + 2 * halo[0], block[1] + 2 * halo[1])
    return rectangles(x, wide, block).reshape(-1, prod(wide), x.shape[-1])


def real_with_halo(
    size: tuple[int, int], block: tuple[int, int], halo: tuple[int, int],
    device: torch.device | str = "cpu",
) -> Bool[Tensor, "g n"]:  # fmt: skip
    """Which of the positions that `blocks_with_halo` gives lie on the map."""
    ones = torch.ones(1, *size, 1, device=device)
    return blocks_with_halo(ones, block, halo)[..., 0] > 0
