"""Growth: the exponent p of cost ≈ a·nᵖ, fitted to measurements by least squares on a log-log scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from regardant.core.errors import require


@dataclass(frozen=True)
class Growth:
    """A fitted exponent, its standard error (None where two points leave nothing over), and the
    exponent between the two longest lengths, where constant parts weigh least."""

    exponent: float
    error: float | None
    last: float

    def __str__(self) -> str:
        return f"{self.exponent:.2f}" + ("" if self.error is None else f" ± {self.error:.2f}")


def fit(lengths: Sequence[int], values: Sequence[float]) -> Growth:
    """The growth of `values` over `lengths`: at least two different lengths, everything positive."""
    require(len(lengths) == len(values), f"{len(lengths)} lengths are given, but {len(values)} values")
    require(len(set(lengths)) >= 2, f"lengths is {list(lengths)}, but growth needs two different ones")
    require(min(*lengths, *values) > 0, "growth is fitted to positive lengths and values")
    points = sorted((math.log(n), math.log(value)) for n, value in zip(lengths, values))
    middle_x, middle_y = (sum(axis) / len(points) for axis in zip(*points))
    spread = sum((x - middle_x) ** 2 for x, _ in points)
    exponent = sum((x - middle_x) * (y - middle_y) for x, y in points) / spread
    left = sum((y - middle_y - exponent * (x - middle_x)) ** 2 for x, y in points)
    error = math.sqrt(left / (len(points) - 2) / spread) if len(points) > 2 else None
    (x0, y0), (x1, y1) = points[-2:]
    last = (y1 - y0) / (x1 - x0) if x1 > x0 else exponent
    return Growth(exponent, error, last)
