"""Combiner, the logsparse form (Ren et al., "Combiner: Full Attention Transformer with Sparse Computation
Cost", 2021, arXiv:2107.05768).

A query sees itself, and everything before it through one key and one value for each of log n intervals,
whose lengths are powers of two (those of the ones in the binary number of its position):

    position 11 = 8 + 2 + 1:  [0, 8)  [8, 10)  [10, 11)  11
    [p_i, p_r] = softmax(q·k_i/√d, q·key_r/√d)        y = p_i v_i + Σ_r p_r value_r

with key_r and value_r as in `regardant.core.regions`. Where both ways are seen, the interval beside the
query's own is taken at each level, before or after it, and these are all other tokens, too. O(n log n).

What differs from the official code: it is causal alone, and wants the sequence in its full length.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from regardant.core.mixer import check_input
from regardant.core.regions import RegionAttention, real_of, summarise
from regardant.core.state import Cache, State
from regardant.core.supports import Supports
from regardant.core.written import attend_rows


@dataclass
class IntervalState(State):
    """All tokens, and at each level the last finished interval with an even number: key and value."""

    queries: Cache
    keys: Cache
    values: Cache
    intervals: tuple[Tensor, ...] = ()
    """Level by level, key and value in a row [b, h, 2, d]."""


class CombinerLogsparse(RegionAttention):
    """Direct attention to the token itself, summaries of intervals of 1, 2, 4, … tokens."""

    supports = Supports(
        cross=False, causal_cross=False, pattern=False, grouped=False, time=1.0, memory=1.0, state=1.0
    )

    def __init__(self, dim: int, heads: int, *, summary: Literal["max", "mean", "sum"] = "max", **shared):
        super().__init__(dim, heads, summary=summary, **shared)

    def parts(self, n):
        at, regions, visible = torch.arange(n), [], []
        for level in range((n - 1).bit_length()):
            for interval in range(-(-n >> level)):
                regions.append(at >> level == interval)
                beside = (at >> level) == interval ^ 1
                visible.append(beside & (interval % 2 == 0) if self.causal else beside)
        members, seers = (
            torch.stack(x) if x else torch.zeros(0, n, dtype=torch.bool) for x in (regions, visible)
        )
        return at[:, None] == at, members, seers.T

    def attend(self, q, k, v, *, x, pattern, padding=None, record=None):
        real, n, scale = real_of(pattern, len(q)), k.shape[2], self.pooling["scale"]
        own = (q * k).sum(-1) * scale
        logits, summaries = [own if real is None else own.masked_fill(~real[:, None], -inf)], []
        for level in range((n - 1).bit_length()):
            keys, value, there = self._level(q, k, v, real, level)
            score = (self._pairs(q, level) * keys.flip(3)[..., None, :]).sum(-1) * scale
            if self.causal:
                there = there & torch.tensor([True, False], device=q.device)
            score = score.masked_fill(~there.flip(-1)[:, None, :, :, None], -inf)
            logits.append(score.flatten(2)[:, :, :n])
            summaries.append(value.flip(3))
        logits = torch.stack(logits, dim=-1)
        none = ~(logits > -inf).any(-1, keepdim=True)
        weights = (logits.masked_fill(none, 0).softmax(-1) * ~none).to(v.dtype).unbind(-1)
        out = weights[0][..., None] * v
        for level, (weight, value) in enumerate(zip(weights[1:], summaries)):
            shares = self._pairs(weight[..., None], level)
            out = out + (shares * value[..., None, :]).flatten(2, 4)[:, :, :n]
        return out

    @staticmethod
    def _pairs(rows: Float[Tensor, "b h n d"], level: int) -> Float[Tensor, "b h pairs two size d"]:
        """Rows in intervals of 2^level, and these in pairs."""
        short = -rows.shape[2] % (2 << level)
        return F.pad(rows, (0, 0, 0, short)).unflatten(2, (-1, 2, 1 << level))

    def _level(self, q: Tensor, k: Tensor, v: Tensor, real: Tensor | None, level: int):
        """Keys and values of all intervals of a level, and which of them hold a real token."""
        n, short = k.shape[2], -k.shape[2] % (2 << level)
        if real is None:
            real = torch.ones(1, n, dtype=torch.bool, device=k.device)
        there: Bool[Tensor, "b pairs two size"] = F.pad(real, (0, short)).unflatten(1, (-1, 2, 1 << level))
        keys, values = summarise(
            *(self._pairs(rows, level) for rows in (q, k, v)), there[:, None], **self.pooling
        )
        return keys, values, there.any(-1)

    def start(self, batch, *, context=None, padding=None):
        super().start(batch, context=context, padding=padding)
        rows = self.to_q.weight.new_empty(batch, self.heads, 0, self.head_dim)
        return IntervalState(0, *(Cache(rows) for _ in range(3)))

    def prefill(self, x):
        self.start(x.shape[0])
        self.check_inputs(x, None, None)
        rows, n = self.project(x), x.shape[1]
        pattern = self.visible(n, across=False, padding=None)
        y = self.merge(self.attend(*rows, x=x, pattern=pattern), x=x)
        intervals = ()
        for level in range(n.bit_length()):
            last = (n >> level) - 1
            intervals += (self._interval(rows, (last - last % 2) << level, level),)
        return y, IntervalState(n, *map(Cache, rows), intervals)

    def _interval(self, rows, begin: int, level: int) -> Float[Tensor, "b h two d"]:
        inside = slice(begin, begin + (1 << level))
        return torch.stack(summarise(*(each[:, :, inside] for each in rows), None, **self.pooling), dim=2)

    def step(self, x_t, state):
        check_input("x_t", x_t, "batch, width", self.dim, self.to_q.weight)
        x, t = x_t[:, None], state.length
        rows = self.project(x, offset=t)
        seen = [each for level, each in enumerate(state.intervals) if t >> level & 1]
        keys, values = (
            torch.cat([row, *(each[:, :, which, None] for each in seen)], dim=2)
            for which, row in enumerate(rows[1:])
        )
        out = attend_rows(rows[0], keys, values, scale=self.pooling["scale"])
        held = [cache.append(row) for cache, row in zip((state.queries, state.keys, state.values), rows)]
        intervals = list(state.intervals)
        for level in range((t + 1).bit_length()):
            count = t + 1 >> level
            if t + 1 == count << level and count % 2:  # an interval with an even number is finished
                made = self._interval([cache.rows for cache in held], (count - 1) << level, level)
                intervals[level : level + 1] = [made]
        return self.merge(out, x=x)[:, 0], IntervalState(t + 1, *held, tuple(intervals))
