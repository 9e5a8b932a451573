"""Rotary positions with a bias by distance, after "The Nature of Mathematical Modeling and Probabilistic
Optimization Engineering in Generative AI" (2024, arXiv:2410.18441).

Rotary positions say in which direction a token lies, a bias says how much its distance costs; both at once:

    logits_ij = a · (R_i q_i)·(R_j k_j) / √d - c · m_h · f(|i - j|)

    form="harmonic":   f(n) = H_n = 1 + 1/2 + … + 1/n, which grows as ln n;  m_h = 2^(-8h/H) as ALiBi's
    form="linear":     f(n) = n, ALiBi's own;                                m_h = 1/h, the harmonic series

a and c are 1, or learned (`learn=True`); `from_dense` grows this out of a layer with rotary or no positions.
The paper's abstract speaks of a harmonic series and gives no formula that we could read: both forms are our
reading, and the formula is not the author's.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from regardant.core.errors import require
from regardant.core.mixer import MultiHead
from regardant.core.position import Position, Rotary, alibi_slopes
from regardant.core.supports import Supports

EULER = 0.5772156649015329


class RotaryHarmonic(Rotary):
    """Turns as rotary positions do, and takes off the logits what a distance costs."""

    biases = stationary = True

    def __init__(self, head_dim: int, heads: int, *, form: Literal["harmonic", "linear"], learn: bool):
        super().__init__(head_dim)
        harmonic = form == "harmonic"
        slopes = alibi_slopes(heads) if harmonic else [1 / head for head in range(1, heads + 1)]
        self.register_buffer("slopes", torch.tensor(slopes), persistent=False)
        self.form, self.weight = form, nn.Parameter(torch.ones(())) if learn else None

    def block(self, i, j):
        apart = (i[:, None] - j[None, :]).abs()
        if self.form == "harmonic":
            kind = torch.promote_types(self.slopes.dtype, torch.float32)
            apart = torch.digamma(apart.to(kind) + 1) + EULER
        cost = -self.slopes[:, None, None] * apart
        return cost if self.weight is None else self.weight * cost


class HarmonicAttention(MultiHead):
    """Softmax attention with rotary positions and a bias that grows as the harmonic series."""

    supports = Supports(cross=False, causal_cross=False, time=2.0, memory=1.0, state=1.0)

    def __init__(
        self, dim: int, heads: int, *, form: Literal["harmonic", "linear"] = "harmonic", learn: bool = False,
        position: str | Position = "none", **shared,
    ):  # fmt: skip
        given = position if isinstance(position, str) else type(position).__name__
        require(
            given in ("none", "Position", "Rotary"), f"position is {given}, but this layer brings its own"
        )
        require(form in ("harmonic", "linear"), f"form is {form!r}, but it is 'harmonic' or 'linear'")
        width = shared.get("head_dim") or dim // max(heads, 1)
        own = RotaryHarmonic(width, heads, form=form, learn=learn)
        super().__init__(dim, heads, position=own, **shared)
        self.query_weight = nn.Parameter(torch.ones(())) if learn else None

    def project(self, x, context=None, *, offset=0):
        q, k, v = super().project(x, context, offset=offset)
        return (q if self.query_weight is None else q * self.query_weight), k, v
