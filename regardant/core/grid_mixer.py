"""Grid mixers: layers on maps, x [b, h, w, c] → y [b, h, w, c]."""

from __future__ import annotations

from functools import cache
from math import prod

from jaxtyping import Float
from torch import Tensor, nn

from regardant.core.mixer import MultiHead, check_input
from regardant.core.pattern import Pattern
from regardant.core.record import Record
from regardant.core.supports import Supports

AXES = {1: "length", 2: "height, width", 3: "depth, height, width"}


@cache
def _axes_of_maps(rank: int) -> str:
    axes = AXES.get(rank) or ", ".join(f"axis {axis}" for axis in range(rank))
    return f"batch, {axes}, channels"


class GridMixer(nn.Module):
    """A layer on maps of any height and width, channels last.

    `receptive_field` declares, for a map of given size, which positions may reach which; the contract
    suite probes it with gradients. `rank` counts the axes of a map: 2, unless a system says otherwise.
    """

    supports: Supports = Supports(
        causal=False, cross=False, causal_cross=False, step=False, pattern=False, padding=False
    )
    dim: int
    rank: int = 2

    def forward(
        self, x: Float[Tensor, "b h w c"], *, record: Record | None = None
    ) -> Float[Tensor, "b h w c"]:
        raise TypeError(f"{type(self).__name__} must define forward")

    def reference(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        """The same mathematics done plainly."""
        raise TypeError(f"{type(self).__name__} must define reference")

    def receptive_field(self, *size: int) -> Pattern | None:
        """Who may see whom on a map of this size, over row-major positions; None: everything."""
        return None

    def check_map(self, x: Tensor, weight: Tensor) -> None:
        """Rank, width and type of a map, held against the first weight that will meet it."""
        check_input("x", x, _axes_of_maps(self.rank), self.dim, weight)
        if 0 in x.shape[1:]:
            raise ValueError(f"x has shape {tuple(x.shape)}, which holds no position")


class GridMultiHead(GridMixer, MultiHead):
    """Multi-head attention under a grid pattern; `project`, `attend` and `merge` see the map flattened."""

    def __init__(self, dim: int, heads: int, *, grid_pattern: Pattern | None = None, **shared):
        MultiHead.__init__(self, dim, heads, **shared)
        self.grid_pattern = grid_pattern

    def receptive_field(self, *size):
        return None if self.grid_pattern is None else self.grid_pattern.on(*size)

    def explain(self, *size: int):
        """How this layer would run on a map of this size (the plan of its softmax under its pattern)."""
        from regardant.core.plan import explain

        pattern = self.receptive_field(*size)
        device = self.to_q.weight.device
        return explain(pattern, prod(size), heads=self.heads, head_dim=self.head_dim, device=device)

    def forward(self, x, *, record=None):
        self.check_map(x, self.to_q.weight)
        flat, size = x.flatten(1, -2), x.shape[1:-1]
        heads = self.attend(*self.project(flat), x=flat, pattern=self.receptive_field(*size), record=record)
        return self.merge(heads, x=flat, record=record).unflatten(1, size)

    def reference(self, x):
        self.check_map(x, self.to_q.weight)
        flat, size = x.flatten(1, -2), x.shape[1:-1]
        heads = self.attend_reference(*self.project(flat), x=flat, pattern=self.receptive_field(*size))
        return self.merge(heads, x=flat).unflatten(1, size)
