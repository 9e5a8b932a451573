"""Axial attention (Ho et al., 2019, arXiv 1912.12180): attention along one axis of a map at a time.

Along axis k every line of the map is a sequence of its own; the other axes are batch:

    y[…, i, …] = Σ_j softmax_j(q_i·k_j / √d) v_j        j on the line of i, j ≤ i when the axis is causal

A map of N positions and equal sides costs O(N^{(r+1)/r}) on r axes instead of O(N²). A row layer and
then a column layer connect every two positions. The paper's autoregressive model is made of the same
layer: unmasked rows and causal columns, the result shifted down one row (`shift`), then causal rows
over that and over the input shifted right; both masks include the diagonal, the shifts exclude the
pixel itself. Norms, residuals and positions are the block's business, as they are in the paper.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn.functional import pad

from regardant.core.errors import require, unknown
from regardant.core.grid_mixer import GridMixer
from regardant.core.grid_pattern import Axial, Neighborhood, per_axis
from regardant.core.mixer import MultiHead
from regardant.core.pattern import Or
from regardant.core.supports import Supports


def shift(x: Tensor, axis: int) -> Tensor:
    """Every line moved on by one step along `axis`: position i gets what stood at i - 1, the first gets 0."""
    require(0 < axis % x.ndim < x.ndim, f"axis is {axis}, but a shift moves along an axis of the map")
    moved = x.narrow(axis, 0, x.shape[axis] - 1)
    return pad(moved, (0, 0) * (x.ndim - 1 - axis % x.ndim) + (1, 0))


class AxialAttention(GridMixer):
    """Multi-head attention along each of `axes`, every axis with projections of its own.

    `axes=(1, 0)` attends along the rows (the width), then along the columns. `combine="turn"` feeds one
    into the next; `"sum"` lets all of them look at x and adds up what they say. `is_causal` is one value
    for all `axes` or one for each of them. `rank` counts the axes of a map, 2 where nothing is said.
    """

    supports = Supports(
        causal=False, cross=False, causal_cross=False, step=False, pattern=False, padding=False,
        time=1.5, memory=1.0, state=0.0,
    )  # fmt: skip

    def __init__(
        self, dim: int, heads: int, *, axes: int | tuple[int, ...] = (1, 0),
        is_causal: bool | tuple[bool, ...] = False, combine: Literal["turn", "sum"] = "turn",
        rank: int | None = None,
        kv_heads: int | None = None, head_dim: int | None = None, bias: bool = False,
        scale: float | None = None,
    ):  # fmt: skip
        super().__init__()
        if combine not in ("turn", "sum"):
            raise unknown("way to combine axes", combine, ("turn", "sum"))
        given = (axes,) if isinstance(axes, int) else tuple(axes)
        rank = 2 if rank is None else rank
        require(
            len(given) > 0 and all(-rank <= axis < rank for axis in given),
            f"axes is {axes}, but a map of rank {rank} has the axes 0 to {rank - 1}",
        )
        self.axes = tuple(axis % rank for axis in given)
        require(len(set(self.axes)) == len(given), f"axes is {axes}, but each axis is attended along once")
        require(
            isinstance(is_causal, bool) or len(is_causal) == len(given),
            f"is_causal is {is_causal}, but there are {len(given)} axes to attend along",
        )
        self.is_causal = per_axis(is_causal, len(given), "is_causal")
        self.dim, self.heads, self.rank, self.combine = dim, heads, rank, combine
        self.along = nn.ModuleList(
            MultiHead(dim, heads, causal=causal, kv_heads=kv_heads, head_dim=head_dim, bias=bias, scale=scale)
            for causal in self.is_causal
        )

    def forward(self, x, *, record=None):
        return self._combined(x, self._lines)

    def reference(self, x):
        return self._combined(x, self._masked)

    def _combined(self, x: Tensor, attend) -> Tensor:
        self.check_map(x, self.along[0].to_q.weight)
        if self.combine == "sum":
            return sum(attend(x, layer, axis) for layer, axis in zip(self.along, self.axes))
        for layer, axis in zip(self.along, self.axes):
            x = attend(x, layer, axis)
        return x

    @staticmethod
    def _lines(x: Tensor, layer: MultiHead, axis: int) -> Tensor:
        """Each line along the axis as a sequence of a batch."""
        lines = x.movedim(axis + 1, -2)
        return layer(lines.flatten(0, -3)).unflatten(0, lines.shape[:-2]).movedim(-2, axis + 1)

    @staticmethod
    def _masked(x: Tensor, layer: MultiHead, axis: int) -> Tensor:
        """All positions in one sequence, under a mask that leaves only the line."""
        flat, size = x.flatten(1, -2), x.shape[1:-1]
        line = Axial(axis, is_causal=layer.causal).on(*size)
        heads = layer.attend_reference(*layer.project(flat), x=flat, pattern=line)
        return layer.merge(heads, x=flat).unflatten(1, size)

    def receptive_field(self, *size):
        lines = [Axial(axis, is_causal=causal).on(*size) for axis, causal in zip(self.axes, self.is_causal)]
        if len(lines) == 1:
            return lines[0]
        if self.combine == "sum":
            return Or.of(*lines)
        # One axis after the other reaches the product of what each reaches: a neighbourhood as long as
        # the axis where it is attended along, and of one position where it is not.
        kernel, causal = [1] * self.rank, [False] * self.rank
        for axis, is_causal in zip(self.axes, self.is_causal):
            kernel[axis], causal[axis] = size[axis], is_causal
        return Neighborhood(tuple(kernel), is_causal=tuple(causal)).on(*size)
