"""Relative convolutional attention ("RCMHA: Relative Convolutional Multi-Head Attention for Natural Language
Modelling", 2023, arXiv:2308.03429).

Two known parts together: queries, keys and values are each convolved along time by a short filter a channel
(Primer's multi-DConv-head attention), and the score knows distances (Transformer-XL):

    A_ij = ((q_i + u)·k_j + (q_i + w)·r_(i-j)) / √d

Each head learns u and w, which start at 0, and r: one vector a distance up to `max_distance` - 1, which those
farther away share. The second product is read askew (`regardant.core.relative_logits`), so that memory is
linear in the length. Filters look back when causal, and to both sides otherwise; padding is zero to them.

There is no official code, and we had the abstract: filters of 3 taps on values too are Primer's, r as a table
is one of the two usual forms: a reading. `kernel=None` leaves the filters out and `relative=False` the
distances; so the paper's four models are all here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regardant.core.checks import check_input
from regardant.core.errors import require
from regardant.core.mixer import MultiHead, MultiHeadState
from regardant.core.plan import attend_rows
from regardant.core.relative_logits import RelativeLogits
from regardant.core.rule import HeadShape, SoftmaxRule
from regardant.core.short_convolution import ShortConvolution
from regardant.core.supports import Supports


class DistanceRule(SoftmaxRule):
    """softmax(((q + u)·k + (q + w)·r) · scale) v. Row `farthest` of the table is r_0."""

    supports = Supports(cross=False, causal_cross=False, time=2.0, memory=1.0, state=1.0)

    def __init__(self, heads: int, head_dim: int, *, max_distance: int, causal: bool):
        super().__init__()
        self.farthest = max_distance - 1
        rows = max_distance if causal else 2 * max_distance - 1
        self.table = nn.Parameter(torch.randn(heads, rows, head_dim) * head_dim**-0.5)
        self.to_content = nn.Parameter(torch.zeros(heads, head_dim))
        self.to_distance = nn.Parameter(torch.zeros(heads, head_dim))

    def added(self, q, *, scale, offset=0):
        q = q + (self.to_distance - self.to_content)[:, None]
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        return RelativeLogits(q, self.table, origin=self.farthest, offset=offset, scale=scale)

    def forward(self, q, k, v, *, pattern=None, scale=None):
        return super().forward(q + self.to_content[:, None], k, v, pattern=pattern, scale=scale)

    def step(self, q, k, v, state, *, pattern=None, scale=None):
        return super().step(q + self.to_content, k, v, state, pattern=pattern, scale=scale)

    def reference(self, q, k, v, *, pattern=None, scale=None):
        """With r_(i-j) written out."""
        i, j = torch.arange(q.shape[2], device=q.device), torch.arange(k.shape[2], device=q.device)
        row = (j - i[:, None] + self.farthest).clamp(0, self.table.shape[1] - 1)
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        by_distance = torch.einsum("bhid,hijd->bhij", q + self.to_distance[:, None], self.table[:, row])
        mask = None if pattern is None else pattern.block(i, j, batch=len(q), heads=q.shape[1])
        return attend_rows(
            q + self.to_content[:, None], k, v, mask, scale=scale, bias=by_distance * scale
        )  # fmt: skip


@dataclass
class ConvolvedState(MultiHeadState):
    """Also the last projections in front of the filters: of queries, keys and values."""

    recent: tuple[Float[Tensor, "b p c"], ...] = ()


class Rcmha(MultiHead):
    """Softmax attention with filters of `kernel` taps on queries, keys and values, and relative distances."""

    supports = Supports(
        cross=False, causal_cross=False, pattern=False, linear_in_values=False, time=2.0, memory=1.0,
        state=1.0,
    )  # fmt: skip
    """A filter carries a key into its neighbours, whatever a pattern says, and each channel of a value on a
    way of its own: so there is neither a pattern nor a matrix of a head's values."""

    def __init__(
        self, dim: int, heads: int, *, kernel: int | None = 3, relative: bool = True,
        max_distance: int = 512, **shared,
    ):  # fmt: skip
        require(max_distance >= 1, f"max_distance is {max_distance}, but a token is at distance 0 of itself")
        super().__init__(dim, heads, **shared)
        if relative:
            require(
                not self.position.biases,
                f"position is {type(self.position).__name__}, a bias on logits: give relative=False",
            )
            self.rule = DistanceRule(heads, self.head_dim, max_distance=max_distance, causal=self.causal)
        self.filters = None
        if kernel is not None:
            widths = [count * self.head_dim for count in (heads, self.kv_heads, self.kv_heads)]
            self.filters = nn.ModuleList(
                ShortConvolution(width, kernel, causal=self.causal) for width in widths
            )

    def project(self, x, context=None, *, offset=0, padding: Bool[Tensor, "b n"] | None = None):
        return self._heads(*self._filtered(self._projected(x, offset), padding), offset)

    def _projected(self, x: Tensor, offset: int) -> tuple[Tensor, Tensor, Tensor]:
        x = self.position.embed(x, offset)
        return self.to_q(x), self.to_k(x), self.to_v(x)

    def _filtered(self, parts: tuple[Tensor, ...], padding: Tensor | None) -> tuple[Tensor, ...]:
        if self.filters is None:
            return parts
        if padding is not None:
            parts = tuple(part.masked_fill(~padding[..., None], 0) for part in parts)
        return tuple(convolve(part) for convolve, part in zip(self.filters, parts))

    def _heads(self, q: Tensor, k: Tensor, v: Tensor, offset: int) -> tuple[Tensor, Tensor, Tensor]:
        q = q.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = (part.unflatten(-1, (self.kv_heads, -1)).transpose(1, 2) for part in (k, v))
        return self.position.turn(q, offset), self.position.turn(k, offset), v

    def forward(self, x, context=None, padding=None, *, record=None):
        self.check_inputs(x, context, padding)
        q, k, v = self.project(x, padding=padding)
        pattern = self.visible(k.shape[2], across=False, padding=padding)
        return self.merge(self.rule(q, k, v, pattern=pattern, scale=self.scale), x=x, record=record)

    def reference(self, x, context=None, padding=None):
        """Filters tap by tap, over tokens that padding leaves out."""
        self.check_inputs(x, context, padding)
        n, parts = x.shape[1], list(self._projected(x, 0))
        real = x.new_ones(x.shape[:2]) if padding is None else padding.to(x.dtype)
        for which, convolve in enumerate(self.filters or ()):
            part = torch.zeros_like(parts[which])
            for t in range(n):
                for tap in range(convolve.weight.shape[1]):
                    s = t - convolve.before + tap
                    if 0 <= s < n:
                        seen = parts[which][:, s] * real[:, s, None] * convolve.weight[:, tap]
                        part = part + torch.nn.functional.pad(seen[:, None], (0, 0, t, n - 1 - t))
            parts[which] = part
        pattern = self.visible(n, across=False, padding=padding)
        heads = self.rule.reference(*self._heads(*parts, 0), pattern=pattern, scale=self.scale)
        return self.merge(heads, x=x)

    def start(self, batch, *, context=None, padding=None):
        begun = super().start(batch, context=context, padding=padding)
        x = self.to_q.weight.new_zeros(batch, 0, self.dim)
        return ConvolvedState(0, begun.inner, recent=self._recent(self._projected(x, 0)))

    def prefill(self, x):
        self.start(x.shape[0])
        self.check_inputs(x, None, None)
        parts = self._projected(x, 0)
        q, k, v = self._heads(*self._filtered(parts, None), 0)
        pattern = self.visible(k.shape[2], across=False, padding=None)
        shape = HeadShape(len(x), self.heads, self.kv_heads, self.head_dim, self.head_dim, x.device, k.dtype)
        inner = self.rule.start(shape, pattern=pattern, keys=k, values=v)
        y = self.merge(self.rule(q, k, v, pattern=pattern, scale=self.scale), x=x)
        return y, ConvolvedState(x.shape[1], inner, recent=self._recent(parts))

    def _recent(self, parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(convolve.start(part) for convolve, part in zip(self.filters or (), parts))

    def step(self, x_t, state):
        check_input("x_t", x_t, "batch, width", self.dim, self.to_q.weight)
        x, recent = x_t[:, None], ()
        parts = self._projected(x, state.length)
        if self.filters is not None:
            taken = [
                convolve.step(part[:, 0], past)
                for convolve, part, past in zip(self.filters, parts, state.recent)
            ]
            parts, recent = tuple(part[:, None] for part, _ in taken), tuple(past for _, past in taken)
        q, k, v = self._heads(*parts, state.length)
        pattern = self.visible(state.length + 1, across=False, padding=None)
        heads, inner = self.rule.step(
            q[:, :, 0], k[:, :, 0], v[:, :, 0], state.inner, pattern=pattern, scale=self.scale
        )
        y = self.merge(heads[:, :, None], x=x)[:, 0]
        return y, ConvolvedState(state.length + 1, inner, recent=recent)
