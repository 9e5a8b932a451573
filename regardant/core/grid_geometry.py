"""Positions on a grid, flattened row by row, and the base of all patterns on them.

The members live in `regardant.core.grid_pattern`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import inf, prod
from typing import Self

import torch
from torch import Tensor

from regardant.core.errors import require
from regardant.core.pattern import Pattern, Reach


@dataclass(frozen=True, kw_only=True)
class GridPattern(Pattern):
    """Base of the grid patterns. `size` is (height, width) once bound, None before."""

    size: tuple[int, ...] | None = None

    @property
    def rank(self) -> int | None:
        """How many axes the grid must have; None: any number."""
        return 2

    def on(self, *size: int) -> Self:
        try:
            return _bound(self, size)
        except TypeError:  # lists for tuples can't be remembered
            return _bound.__wrapped__(self, size)

    @property
    def bound(self) -> tuple[int, ...]:
        require(
            self.size is not None, f"{type(self).__name__} has no grid yet: call .on(height, width) first"
        )
        return self.size

    def coordinates(self, positions: Tensor) -> list[Tensor]:
        """Row-major positions → one index tensor an axis."""
        result = []
        for length in reversed(self.bound):
            result.append(positions % length)
            positions = positions // length
        return result[::-1]

    def flatten(self, coordinates: list[Tensor]) -> Tensor:
        """The inverse of `coordinates`; -1 where a coordinate lies off the grid."""
        position, inside = 0, None
        for length, along in zip(self.bound, coordinates):
            here = (along >= 0) & (along < length)
            inside = here if inside is None else inside & here
            position = position * length + along
        return torch.where(inside, position, -1)

    def reaches(self) -> tuple[Reach, ...]:
        """The reach along each axis, in grid steps."""
        return (Reach(inf, inf),) * len(self.bound)

    def reach(self) -> Reach:
        """The reach over flattened positions; on one axis that is the axis' own."""
        reaches = self.reaches() if self.size is not None else (Reach(inf, inf),)
        return reaches[0] if len(reaches) == 1 else Reach(inf, inf)

    def around(self, i: Tensor) -> list[Tensor] | None:
        """Per axis, the coordinates that a query at `i` [m] might see: [m, w_axis]; None: no short list."""
        return None

    def candidates(self, i, keys):
        around = self.around(i)
        if around is None or prod(axis.shape[1] for axis in around) >= keys:
            return None
        count = len(around)
        spread = [
            axis.reshape(len(i), *(-1 if other == which else 1 for other in range(count)))
            for which, axis in enumerate(around)
        ]
        return self.flatten([axis.contiguous() for axis in torch.broadcast_tensors(*spread)]).flatten(1)


@lru_cache(maxsize=1024)
def _bound(pattern: GridPattern, size: tuple[int, ...]) -> GridPattern:
    """Layers ask for the same ones at every pass."""
    require(
        pattern.rank in (None, len(size)),
        f"{type(pattern).__name__} lives on a grid of {pattern.rank} axes, but the size given is {size}",
    )
    require(min(size) >= 1, f"size is {size}, but a grid is at least 1 long along every axis")
    return replace(pattern, size=size)


def per_axis(value: int | tuple[int, ...], rank: int, name: str) -> tuple[int, ...]:
    """One value an axis, from one for all or a tuple."""
    values = (value,) * rank if isinstance(value, int) else tuple(value)
    require(len(values) == rank, f"{name} is {value}, but the grid has {rank} axes")
    return values
