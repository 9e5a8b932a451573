"""Patterns on grids: positions are flattened row by row, and a pattern is bound to a size by `.on`.

    Neighborhood(7).on(32, 32).dense(1024)

Most of them are a relation per axis, so they say their reach per axis (`reaches`), which lets the
plans cut the grid into tiles with halos.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regardant.core.errors import require
from regardant.core.grid_geometry import GridPattern, per_axis
from regardant.core.pattern import Partition, Reach

__all__ = [
    "Axial", "Circle", "CrissCross", "Dilated2d", "GridPattern", "Halo", "Neighborhood", "Stripe", "Window2d",
    "per_axis",
]  # fmt: skip


@dataclass(frozen=True)
class Neighborhood(GridPattern):
    """The `kernel` nearest positions along every axis (Hassani et al., as NATTEN computes it).

    At a border the window shifts instead of shrinking, so that every query sees the same number of
    keys. `dilation` d takes every d-th position, within the query's own residue class. A causal axis
    sees the last `kernel` positions and does not shift. Each of the three may be a tuple, one an axis.
    A kernel longer than an axis is as long as the axis.
    """

    kernel: int | tuple[int, ...] = 3
    dilation: int | tuple[int, ...] = 1
    is_causal: bool | tuple[bool, ...] = False

    def __post_init__(self):
        for name in ("kernel", "dilation"):
            value = getattr(self, name)
            least = value if isinstance(value, int) else min(value)
            require(least >= 1, f"{name} is {value}, but it is at least 1")

    @property
    def rank(self):
        given = [value for value in (self.kernel, self.dilation, self.is_causal) if isinstance(value, tuple)]
        return len(given[0]) if given else None

    @property
    def axes(self) -> list[tuple[int, int, int, bool]]:
        """(length, kernel, dilation, causal) of each axis."""
        rank = len(self.bound)
        return list(
            zip(
                self.bound,
                per_axis(self.kernel, rank, "kernel"),
                per_axis(self.dilation, rank, "dilation"),
                per_axis(self.is_causal, rank, "is_causal"),
            )
        )

    @property
    def causal(self):
        return self.size is not None and len(self.size) == 1 and self.axes[0][3]

    def stationary(self):
        # A window that shifts at the borders is another one there.
        return 0 if self.causal else None

    @staticmethod
    def starts(at: Tensor, length: int, kernel: int, dilation: int, is_causal: bool) -> tuple[Tensor, Tensor]:
        """The first neighbour's place inside the query's residue class, and the query's own place."""
        place = at // dilation
        if is_causal:
            return place - (kernel - 1), place
        members = (length - at % dilation + dilation - 1) // dilation
        return torch.minimum(place - kernel // 2, members - kernel).clamp(min=0), place

    def allows(self, i, j, *, batch=None, head=None):
        result = None
        for query, key, axis in zip(self.coordinates(i), self.coordinates(j), self.axes):
            _, kernel, dilation, is_causal = axis
            start, place = self.starts(query, *axis)
            other = key // dilation
            here = (query % dilation == key % dilation) & (other >= start) & (other < start + kernel)
            if is_causal:
                here = here & (other <= place)
            result = here if result is None else result & here
        return result

    def reaches(self):
        result = []
        for _length, kernel, dilation, is_causal in self.axes:
            far = (kernel - 1) * dilation
            result.append(Reach(far, 0 if is_causal else far))
        return tuple(result)

    def around(self, i):
        result = []
        for query, axis in zip(self.coordinates(i), self.axes):
            length, kernel, dilation, _ = axis
            start, _ = self.starts(query, *axis)
            steps = torch.arange(min(kernel, length), device=i.device)
            if axis[3]:
                steps = steps + kernel - len(steps)
            result.append((start[:, None] + steps) * dilation + (query % dilation)[:, None])
        return result


@dataclass(frozen=True)
class Window2d(GridPattern):
    """Full attention inside windows; with `shift`, inside windows of the grid rolled by that much.

    Shifted windows that straddle the border are cut there (Swin), so nothing wraps around.
    """

    window: int | tuple[int, int] = 7
    shift: int | tuple[int, int] = 0

    def __post_init__(self):
        require(
            min(per_axis(self.window, 2, "window")) >= 1, f"window is {self.window}, but it is at least 1"
        )

    def allows(self, i, j, *, batch=None, head=None):
        result = None
        sides, shifts = per_axis(self.window, 2, "window"), per_axis(self.shift, 2, "shift")
        for query, key, side, shift in zip(self.coordinates(i), self.coordinates(j), sides, shifts):
            here = (query - shift) // side == (key - shift) // side
            result = here if result is None else result & here
        return result

    def reaches(self):
        return tuple(Reach(side - 1, side - 1) for side in per_axis(self.window, 2, "window"))

    def around(self, i):
        sides, shifts = per_axis(self.window, 2, "window"), per_axis(self.shift, 2, "shift")
        return [
            ((query - shift) // side * side + shift)[:, None] + torch.arange(side, device=i.device)
            for query, side, shift in zip(self.coordinates(i), sides, shifts)
        ]

    def partition(self, n, device):
        sides, shifts = per_axis(self.window, 2, "window"), per_axis(self.shift, 2, "shift")
        corners = [
            torch.arange(shift % side - side if shift % side else 0, length, side, device=device)
            for length, side, shift in zip(self.bound, sides, shifts)
        ]
        inner = [torch.arange(side, device=device) for side in sides]
        rows = (corners[0][:, None, None, None] + inner[0][:, None]).expand(-1, len(corners[1]), -1, sides[1])
        columns = (corners[1][None, :, None, None] + inner[1]).expand(len(corners[0]), -1, sides[0], -1)
        order = self.flatten([rows, columns]).reshape(-1, sides[0] * sides[1])
        whole = bool((order >= 0).all())
        return Partition(order.shape[1], order.clamp(min=0), None if whole else order >= 0)


@dataclass(frozen=True)
class Axial(GridPattern):
    """Only along `axis`: all other coordinates are equal (Ho et al.). `is_causal`: not what follows."""

    axis: int = 1
    is_causal: bool = False

    @property
    def rank(self):
        return None

    def on(self, *size):
        require(
            -len(size) <= self.axis < len(size),
            f"axis is {self.axis}, but a grid of {len(size)} axes has 0 to {len(size) - 1}",
        )
        return super().on(*size)

    def allows(self, i, j, *, batch=None, head=None):
        result = None
        for which, (query, key) in enumerate(zip(self.coordinates(i), self.coordinates(j))):
            if which == self.axis % len(self.bound):
                here = key <= query if self.is_causal else None
            else:
                here = query == key
            result = here if result is None else result if here is None else result & here
        return torch.ones_like(i + j, dtype=torch.bool) if result is None else result

    def around(self, i):
        result = [coordinate[:, None] for coordinate in self.coordinates(i)]
        axis = self.axis % len(self.bound)
        result[axis] = torch.arange(self.bound[axis], device=i.device).expand(len(i), -1)
        return result

    def partition(self, n, device):
        if self.is_causal:
            return None
        axis, size = self.axis % len(self.bound), self.bound
        order = torch.arange(n, device=device).view(size).movedim(axis, -1).reshape(-1, size[axis])
        return Partition(size[axis], order)


@dataclass(frozen=True)
class CrissCross(GridPattern):
    """The query's row and column, its own position once (Huang et al., CCNet)."""

    def allows(self, i, j, *, batch=None, head=None):
        (row, column), (key_row, key_column) = self.coordinates(i), self.coordinates(j)
        return (row == key_row) | (column == key_column)

    @property
    def union(self):
        return Axial(axis=1, size=self.size), Axial(axis=0, size=self.size)

    def candidates(self, i, keys):
        height, width = self.bound
        if height + width - 1 >= keys:
            return None
        row, column = self.coordinates(i)
        along = row[:, None] * width + torch.arange(width, device=i.device)
        others = torch.arange(height - 1, device=i.device)
        others = others + (others >= row[:, None])
        return torch.cat([along, others * width + column[:, None]], dim=1)


@dataclass(frozen=True)
class Stripe(GridPattern):
    """Full attention inside stripes of `width` rows (`axis=0`) or columns (`axis=1`) (Dong et al., CSWin)."""

    width: int = 1
    axis: int = 0

    def __post_init__(self):
        require(self.width >= 1, f"width is {self.width}, but a stripe is at least 1 wide")
        require(self.axis in (0, 1), f"axis is {self.axis}, but a grid has axes 0 and 1")

    def as_window(self) -> Window2d:
        """The same as windows that are as long as the map along one axis."""
        height, width = self.bound
        sides = (self.width, width) if self.axis == 0 else (height, self.width)
        return Window2d(window=sides, size=self.size)

    def allows(self, i, j, *, batch=None, head=None):
        return self.as_window().allows(i, j)

    def around(self, i):
        return self.as_window().around(i)

    def partition(self, n, device):
        return self.as_window().partition(n, device)


@dataclass(frozen=True)
class Halo(GridPattern):
    """Queries of a block see the block and `halo` positions around it (Vaswani et al., HaloNet)."""

    block_size: int = 8
    halo: int = 3

    def __post_init__(self):
        require(self.block_size >= 1, f"block_size is {self.block_size}, but a block is at least 1 wide")
        require(self.halo >= 0, f"halo is {self.halo}, but it is at least 0")

    def allows(self, i, j, *, batch=None, head=None):
        result = None
        for query, key in zip(self.coordinates(i), self.coordinates(j)):
            start = query // self.block_size * self.block_size - self.halo
            here = (key >= start) & (key < start + self.block_size + 2 * self.halo)
            result = here if result is None else result & here
        return result

    def reaches(self):
        far = self.block_size - 1 + self.halo
        return (Reach(far, far),) * len(self.bound)

    def around(self, i):
        span = torch.arange(self.block_size + 2 * self.halo, device=i.device)
        return [
            (query // self.block_size * self.block_size - self.halo)[:, None] + span
            for query in self.coordinates(i)
        ]


@dataclass(frozen=True)
class Circle(GridPattern):
    """Positions within Euclidean distance `radius`."""

    radius: float = 3.0

    def __post_init__(self):
        require(self.radius >= 0, f"radius is {self.radius}, but a distance is at least 0")

    def allows(self, i, j, *, batch=None, head=None):
        apart = sum((query - key) ** 2 for query, key in zip(self.coordinates(i), self.coordinates(j)))
        return apart <= self.radius**2

    def reaches(self):
        return (Reach(int(self.radius), int(self.radius)),) * len(self.bound)

    def around(self, i):
        span = torch.arange(-int(self.radius), int(self.radius) + 1, device=i.device)
        return [query[:, None] + span for query in self.coordinates(i)]


@dataclass(frozen=True)
class Dilated2d(GridPattern):
    """Positions that a stride of `stride` steps reaches: same remainders along both axes (MaxViT's grid)."""

    stride: int | tuple[int, int] = 2

    def __post_init__(self):
        least = min(per_axis(self.stride, 2, "stride"))
        require(least >= 1, f"stride is {self.stride}, but steps are at least 1")

    def allows(self, i, j, *, batch=None, head=None):
        result = None
        strides = per_axis(self.stride, 2, "stride")
        for query, key, stride in zip(self.coordinates(i), self.coordinates(j), strides):
            here = query % stride == key % stride
            result = here if result is None else result & here
        return result

    def around(self, i):
        strides = per_axis(self.stride, 2, "stride")
        return [
            query[:, None] % stride + torch.arange(0, length, stride, device=i.device)
            for query, length, stride in zip(self.coordinates(i), self.bound, strides)
        ]

    def partition(self, n, device):
        strides = per_axis(self.stride, 2, "stride")
        reach = [-(-length // stride) for length, stride in zip(self.bound, strides)]
        rest = [torch.arange(stride, device=device) for stride in strides]
        step = [torch.arange(count, device=device) * stride for count, stride in zip(reach, strides)]
        rows = rest[0][:, None, None, None] + step[0][:, None]
        columns = rest[1][None, :, None, None] + step[1]
        order = self.flatten([axis.contiguous() for axis in torch.broadcast_tensors(rows, columns)])
        order = order.reshape(-1, reach[0] * reach[1])
        whole = bool((order >= 0).all())
        return Partition(order.shape[1], order.clamp(min=0), None if whole else order >= 0)
