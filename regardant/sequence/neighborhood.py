"""Neighbourhood attention on sequences (Hassani et al., 2024, arXiv 2403.04690, with NATTEN's semantics).

    y_i = Σ_{j ∈ N(i)} softmax_j(q_i·k_j / √d + b_{j-i}) v_j

N(i) holds the `kernel` nearest positions in i's residue class modulo the `dilation`; at both ends the
window shifts, so that every query has all of its keys. When causal, N(i) is i and the kernel - 1
members of its class before it, fewer at the beginning, and decoding keeps (kernel - 1) · dilation + 1
rows. Linear in the length, at a cost that does not grow with the dilation.
"""

from __future__ import annotations

from typing import Literal

from regardant.core.grid_pattern import Neighborhood
from regardant.core.mixer import MultiHead
from regardant.core.neighborhood import (
    NeighborhoodRule,
    OffsetBias,
    explain_form,
    explain_near,
    is_all,
    neighborhood_in,
)
from regardant.core.pattern import Pattern, both
from regardant.core.supports import Supports


class NeighborhoodAttention1d(MultiHead):
    """Multi-head attention over the nearest positions, and under `pattern` as well where given."""

    supports = Supports(
        cross=False, causal_cross=False, time=1.0, memory=1.0, state=0.0,
        exempt={
            "right padding": "at a border the window shifts inwards, so a query sees where the sequence ends"
        },
    )  # fmt: skip

    def __init__(
        self, dim: int, heads: int, *, kernel: int = 63, dilation: int = 1, causal: bool = False,
        relative_bias: bool = False, form: Literal["fused", "unfused", "natten"] = "fused",
        pattern: Pattern | None = None, **shared,
    ):  # fmt: skip
        near = Neighborhood(kernel, dilation=dilation, is_causal=causal)
        super().__init__(dim, heads, causal=causal, pattern=both(near, pattern), **shared)
        self.rule = NeighborhoodRule(
            bias=self.position if self.position.biases else None,
            offsets=OffsetBias(heads, (kernel,)) if relative_bias else None,
            form=form,
        )

    def explain(self, length, *, keys=None):
        seen = self.visible(length, across=False, padding=None)
        near = neighborhood_in(seen)
        if self.rule.form != "fused":
            return explain_form(near, self.rule.form)
        if not is_all(near, seen):
            return super().explain(length, keys=keys)
        return explain_near(
            near, heads=self.heads, head_dim=self.head_dim, device=self.to_q.weight.device.type,
            bias=self.rule.bias is not None or self.rule.offsets is not None,
        )  # fmt: skip
