"""A pattern behind a convolution: who hears of whom when keys already know their neighbours."""

from __future__ import annotations

from dataclasses import dataclass, replace

from regardant.core.grid_geometry import GridPattern


@dataclass(frozen=True)
class Widened(GridPattern):
    """A query hears of a key that stands at most `far` rows and columns from one that it may see."""

    pattern: GridPattern = None
    far: int = 1

    def on(self, *size):
        return replace(super().on(*size), pattern=self.pattern.on(*size))

    def allows(self, i, j, *, batch=None, head=None):
        (height, width), (row, column) = self.bound, self.coordinates(j)
        result = None
        for down in range(-self.far, self.far + 1):
            for right in range(-self.far, self.far + 1):
                y, x = row + down, column + right
                inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
                at = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
                here = inside & self.pattern.allows(i, at)
                result = here if result is None else result | here
        return result
