"""Neighbourhood attention on maps (Hassani et al., 2024, arXiv 2403.04690, with NATTEN's semantics).

    y_i = Σ_{j ∈ N(i)} softmax_j(q_i·k_j / √d + b_{j-i}) v_j

N(i) is the product over the axes of the `kernel` nearest positions in i's residue class modulo the
`dilation`. At a border the window shifts, so that every query has all of its keys; a causal axis has
the last `kernel` positions, clipped at the beginning, and does not shift. kernel = length is full
attention, kernel = 1 passes the values through.

The map is cut into tiles, and the keys that a tile needs are its halo: time and memory are linear in
the positions. The paper asks for kernel · dilation ≤ length; here a longer kernel is as long as its
residue class. The offset bias b is NATTEN's optional one.

`form` is how it runs: "fused", softmax online over tiles; "unfused", logits, weights and values one after
the other as products over tiles, which holds the weights; "natten", the authors' kernels.
"""

from __future__ import annotations

from typing import Literal

from regardant.core.grid_mixer import GridMultiHead
from regardant.core.grid_pattern import Neighborhood, per_axis
from regardant.core.neighborhood import NeighborhoodRule, OffsetBias, explain_form
from regardant.core.supports import Supports


class NeighborhoodAttention(GridMultiHead):
    """Multi-head attention over the nearest positions.

    `kernel`, `dilation` and `is_causal` are one value for all axes, or a tuple with one an axis. `rank`
    counts the axes of a map: 1 for [b, n, c], 2 for [b, h, w, c], 3 for [b, d, h, w, c]. It follows from
    the tuples, and is 2 where nothing tells.
    """

    supports = Supports(
        causal=False, cross=False, causal_cross=False, step=False, pattern=False, padding=False,
        time=1.0, memory=1.0, state=0.0,
    )  # fmt: skip

    def __init__(
        self, dim: int, heads: int, *, kernel: int | tuple[int, ...] = 7, dilation: int | tuple[int, ...] = 1,
        is_causal: bool | tuple[bool, ...] = False, relative_bias: bool = False, rank: int | None = None,
        form: Literal["fused", "unfused", "natten"] = "fused", kv_heads: int | None = None,
        head_dim: int | None = None, bias: bool = False, scale: float | None = None,
    ):  # fmt: skip
        rank = rank or Neighborhood(kernel, dilation=dilation, is_causal=is_causal).rank or 2
        near = Neighborhood(
            kernel=per_axis(kernel, rank, "kernel"),
            dilation=per_axis(dilation, rank, "dilation"),
            is_causal=per_axis(is_causal, rank, "is_causal"),
        )
        offsets = OffsetBias(heads, near.kernel) if relative_bias else None
        super().__init__(
            dim,
            heads,
            grid_pattern=near,
            kv_heads=kv_heads,
            head_dim=head_dim,
            bias=bias,
            scale=scale,
            rule=NeighborhoodRule(offsets=offsets, form=form),
        )
        self.rank = rank

    def explain(self, *size):
        if self.rule.form == "fused":
            return super().explain(*size)
        return explain_form(self.receptive_field(*size), self.rule.form)


class NeighborhoodAttention3d(NeighborhoodAttention):
    """The same on volumes, [b, d, h, w, c]: video, or scans."""

    rank = 3

    def __init__(self, dim: int, heads: int, *, kernel: int | tuple[int, int, int] = 3, **shared):
        super().__init__(dim, heads, kernel=kernel, rank=3, **shared)
