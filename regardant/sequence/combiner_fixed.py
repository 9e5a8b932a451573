"""Combiner, the fixed form (Ren et al., "Combiner: Full Attention Transformer with Sparse Computation Cost",
2021, arXiv:2107.05768).

Attention is an expectation over positions; Combiner factorises it. A query sees the tokens of its own
segment directly, and every other segment through one key and one value, under one softmax:

    [p_j in own segment, p_r other segments] = softmax(q·k_j/√d, q·key_r/√d)
    key_r = max_{j in r} k_j        value_r = Σ_{j in r} softmax_{j in r}(max_{j in r} q_j · k_j/√d) v_j
    y = Σ_j p_j v_j + Σ_r p_r value_r

so that token j of segment r gets p_r softmax(…)_j > 0: full attention, at the cost n (ℓ + n/ℓ). Causal, the
own segment is seen up to the query, and only earlier segments are summarised.

What differs from the official code: seen both ways, it lets a query see the summary of its own segment
beside its tokens, which counts them twice, so we leave that out; its dropout of direct weights and its
learned pooling (a linear layer and a ReLU) are not here; padding is in no summary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from regardant.core.errors import require
from regardant.core.mixer import check_input
from regardant.core.partial_softmax import attend_parts
from regardant.core.pattern import Causal
from regardant.core.regions import RegionAttention, real_of, summarise
from regardant.core.state import Cache, State
from regardant.core.supports import Supports
from regardant.core.tiles import Run
from regardant.core.visibility import Visibility
from regardant.core.written import attend_rows


@dataclass
class SegmentState(State):
    """The tokens of the segment at hand, and the summaries of those that are finished."""

    queries: Cache
    keys: Cache
    values: Cache
    summary_keys: Cache
    summary_values: Cache


class CombinerFixed(RegionAttention):
    """Direct attention inside segments of `segment` tokens, summaries of the others.

    Make `segment` about the square root of the longest sequence: then a layer costs n^1.5.
    """

    supports = Supports(
        cross=False, causal_cross=False, pattern=False, grouped=False, time=1.5, memory=1.0, state=1.0
    )

    def __init__(
        self, dim: int, heads: int, *, segment: int = 64, summary: Literal["max", "mean", "sum"] = "max",
        **shared,
    ):  # fmt: skip
        super().__init__(dim, heads, summary=summary, **shared)
        require(segment >= 1, f"segment is {segment}, but a segment holds at least 1 token")
        self.segment = segment

    def parts(self, n):
        at = torch.arange(n)
        own, segments = at // self.segment, torch.arange(-(-n // self.segment))
        direct = own[:, None] == own
        if self.causal:
            direct = direct & (at[:, None] >= at)
        visible = segments < own[:, None] if self.causal else segments != own[:, None]
        return direct, own == segments[:, None], visible

    def attend(self, q, k, v, *, x, pattern, padding=None, record=None):
        real, n, size = real_of(pattern, len(q)), k.shape[2], self.segment
        keys, values = self._summaries(q, k, v, real)
        count, sees = keys.shape[2], None
        if real is not None:
            blocks = F.pad(real, (0, -n % size)).unflatten(1, (-1, size)).any(-1)
            order = Causal() if self.causal else None
            whole = (torch.cat([real, blocks], 1), None, len(q), self.heads, n, n + count)
            own, sees = Visibility(order, *whole), Visibility(None, *whole)
        last = (count - 1) * size
        local = [Run(last, n - last, last, n - last, causal=self.causal and real is None)]
        if count > 1:
            local.append(Run(0, size, 0, size, count - 1, causal=self.causal and real is None))
        if real is not None:
            local = [Run(run.row, run.rows, run.key, run.keys, run.count, sees=own) for run in local]
        starts = [(which, which * size, min(size, n - which * size)) for which in range(count)]
        before = [Run(row, rows, n, which, sees=sees) for which, row, rows in starts if which]
        after = [
            Run(row, rows, n + which + 1, count - which - 1, sees=sees)
            for which, row, rows in starts
            if which + 1 < count and not self.causal
        ]
        sources = [source for source in (local, before, after) if source]
        together = (torch.cat([k, keys], dim=2), torch.cat([v, values], dim=2))
        return attend_parts(q, *together, sources, scale=self.pooling["scale"])

    def _summaries(self, q: Tensor, k: Tensor, v: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
        short = -k.shape[2] % self.segment
        if short and real is None:
            real = torch.ones(1, k.shape[2], dtype=torch.bool, device=k.device)
        if real is not None:
            real = F.pad(real, (0, short)).unflatten(1, (-1, self.segment))[:, None]
        blocks = (F.pad(rows, (0, 0, 0, short)).unflatten(2, (-1, self.segment)) for rows in (q, k, v))
        return summarise(*blocks, real, **self.pooling)

    def start(self, batch, *, context=None, padding=None):
        super().start(batch, context=context, padding=padding)
        rows = self.to_q.weight.new_empty(batch, self.heads, 0, self.head_dim)
        return SegmentState(0, *(Cache(rows) for _ in range(5)))

    def prefill(self, x):
        self.start(x.shape[0])
        self.check_inputs(x, None, None)
        rows, n = self.project(x), x.shape[1]
        whole = n // self.segment * self.segment
        pattern = self.visible(n, across=False, padding=None)
        y = self.merge(self.attend(*rows, x=x, pattern=pattern), x=x)
        made = self._summaries(*(each[:, :, :whole] for each in rows), None)
        return y, SegmentState(n, *(Cache(each[:, :, whole:]) for each in rows), *map(Cache, made))

    def step(self, x_t, state):
        check_input("x_t", x_t, "batch, width", self.dim, self.to_q.weight)
        x, rows = x_t[:, None], self.project(x_t[:, None], offset=state.length)
        held = [cache.append(row) for cache, row in zip((state.queries, state.keys, state.values), rows)]
        made = [state.summary_keys, state.summary_values]
        seen = (torch.cat([own.rows, others.rows], dim=2) for own, others in zip(held[1:], made))
        out = attend_rows(rows[0], *seen, scale=self.pooling["scale"])
        if held[0].rows.shape[2] == self.segment:
            done = summarise(*(cache.rows for cache in held), None, **self.pooling)
            made = [cache.append(row[:, :, None]) for cache, row in zip(made, done)]
            held = [Cache(cache.rows[:, :, :0]) for cache in held]
        return self.merge(out, x=x)[:, 0], SegmentState(state.length + 1, *held, *made)
