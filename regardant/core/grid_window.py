"""Attention inside windows, shifted ones too: the layer that most vision papers begin with."""

from __future__ import annotations

from regardant.core.errors import require
from regardant.core.grid_attention import GroupedAttention
from regardant.core.grid_geometry import per_axis
from regardant.core.grid_pattern import Window2d
from regardant.core.grid_position import GridPosition


class WindowAttention(GroupedAttention):
    """Multi-head attention inside windows of `window` positions a side, the first at `shift` from the border.

    On a map that is no larger than a window it is attention to everything, whatever the shift.
    """

    def __init__(
        self, dim: int, heads: int, *, window: int | tuple[int, int] = 7, shift: int | tuple[int, int] = 0,
        position: GridPosition | None = None, head_dim: int | None = None, bias: bool = True,
        scale: float | None = None,
    ):  # fmt: skip
        super().__init__(dim, heads, head_dim=head_dim, position=position, bias=bias, scale=scale)
        self.window, self.shift = per_axis(window, 2, "window"), per_axis(shift, 2, "shift")
        require(min(self.window) >= 1, f"window is {window}, but it is at least 1 wide")

    def patterns(self, *size):
        shift = tuple(
            0 if length <= side else along for length, side, along in zip(size, self.window, self.shift)
        )
        return (Window2d(self.window, shift=shift).on(*size),)
