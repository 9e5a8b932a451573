"""Multi-axis attention (Tu et al., 2022, "MaxViT", arXiv 2204.01697): dense in windows, sparse over the map.

    block: positions of one window of P × P attend to each other
    grid:  the map is laid over by a grid of G × G; positions that stand a stride of H/G and W/G apart do

    A = softmax(q kᵀ / √d + B[Δrow, Δcolumn])

B is a number a head and an offset; on the grid, offsets are counted in its steps. One after the other, the
two connect any two positions at a cost that is linear in their number. Where P or G do not divide a side, the
last window is smaller, and the stride is rounded up; nothing of what fills the map up is seen.
"""

from __future__ import annotations

from regardant.core.errors import require
from regardant.core.grid_attention import GroupedAttention
from regardant.core.grid_geometry import per_axis
from regardant.core.grid_pattern import Dilated2d
from regardant.core.grid_position import TableBias
from regardant.core.grid_window import WindowAttention


class BlockAttention(WindowAttention):
    """Multi-head attention inside windows of `window` positions a side, with a bias by offset."""

    def __init__(self, dim: int, heads: int, *, window: int = 7, head_dim: int | None = None):
        require(window >= 1, f"window is {window}, but it is at least 1 wide")
        super().__init__(dim, heads, window=window, head_dim=head_dim, position=TableBias(heads, window))


class GridAttention(GroupedAttention):
    """Multi-head attention among `cells` × `cells` positions spread over the whole map."""

    def __init__(self, dim: int, heads: int, *, cells: int = 7, head_dim: int | None = None):
        require(cells >= 1, f"cells is {cells}, but a grid has at least 1")
        super().__init__(dim, heads, head_dim=head_dim, position=TableBias(heads, cells))
        self.cells = per_axis(cells, 2, "cells")

    def patterns(self, *size):
        stride = tuple(-(-length // cells) for length, cells in zip(size, self.cells))
        return (Dilated2d(stride).on(*size),)
