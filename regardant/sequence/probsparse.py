"""ProbSparse attention (Zhou et al., "Informer: Beyond Efficient Transformer for Long Sequence Time-Series
Forecasting", 2020, arXiv:2012.07436).

Most queries attend almost evenly, and an even query's output is the mean of the values. So only the least
even ones are worked out, u = factor·⌈ln n⌉ of them a head; the others are given the mean:

    M(q_i) = max_j s_ij - mean_j s_ij        y_i = softmax_j(s_ij) v  for the u largest M, else mean_j v_j

where M is measured on as many keys, factor·⌈ln n⌉, drawn for each query. Which queries are chosen depends
on all of them, later ones too: there is no causal form that does not leak (the paper's masked one hides the
keys only). What differs from the official code: the draw is not random but a low-discrepancy sequence over
the real keys, the same in every call, so that a result can be had again; and M's mean is that of the drawn
keys, where theirs divides their sum by n. Padding is neither drawn, chosen nor averaged.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil, log

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regardant.core.errors import require
from regardant.core.mixer import MultiHead
from regardant.core.padding import padding_alone
from regardant.core.rule import Rule
from regardant.core.segments import softmax_over
from regardant.core.supports import Supports

GOLDEN, PLASTIC = 0.6180339887498949, 0.7548776662466927
"""Irrational steps, so that multiples spread over [0, 1)."""


class ProbSparseRule(Rule):
    """Full attention for the `factor`·⌈ln n⌉ queries that need it, the mean for the rest."""

    supports = Supports(
        causal=False, cross=False, causal_cross=False, step=False, pattern=False, time=1.0, memory=1.0
    )

    def __init__(self, factor: int):
        super().__init__()
        require(factor >= 1, f"factor is {factor}, but at least 1·⌈ln n⌉ queries are worked out")
        self.factor = factor

    def forward(self, q, k, v, *, pattern=None, scale=None):
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        kind, real, n = v.dtype, padding_alone(self, pattern), k.shape[2]
        share, exact = q.shape[1] // k.shape[1], torch.promote_types(v.dtype, torch.float32)
        q, k, v = (x.to(exact) for x in (q, k, v))
        k, v = (x.repeat_interleave(share, dim=1) for x in (k, v))
        real = q.new_ones(1, n, dtype=torch.bool) if real is None else real
        count = real.sum(dim=1)
        chosen_of = self._budget(count)
        most = int(chosen_of.max())
        shown = real[:, None, None]
        mean = (v * real[:, None, :, None]).sum(2, keepdim=True) / count.clamp(min=1)[:, None, None, None]
        out = mean.expand(*q.shape[:3], -1)
        if most == 0:
            return out.to(kind)
        uneven = self._unevenness(q, k, real, chosen_of, scale).masked_fill(~real[:, None], -torch.inf)
        # Stable, so that of equals (every query, where one key is drawn) the first are chosen.
        chosen = uneven.sort(dim=-1, descending=True, stable=True).indices[..., :most, None]
        rows = q.gather(2, chosen.expand(-1, -1, -1, q.shape[-1]))
        worked = softmax_over(rows @ k.mT * scale, shown) @ v
        asked = (torch.arange(most, device=q.device) < chosen_of[:, None])[:, None, :, None]
        worked = torch.where(asked, worked, mean)
        return out.scatter(2, chosen.expand_as(worked), worked).to(kind)

    def _budget(self, count: Int[Tensor, "b"]) -> Int[Tensor, "b"]:
        """factor·⌈ln n⌉, at most n."""
        rounds = [ceil(log(max(each, 1))) for each in count.tolist()]
        return torch.minimum(count, self.factor * torch.tensor(rounds, device=count.device))

    @staticmethod
    @torch.no_grad()
    def _unevenness(
        q: Float[Tensor, "b h n d"], k: Float[Tensor, "b h n d"], real: Bool[Tensor, "#b n"],
        draws: Int[Tensor, "#b"], scale: float,
    ) -> Float[Tensor, "b h n"]:  # fmt: skip
        """M of every query, from so many keys drawn for it; one draw at a time, to hold one row a query."""
        largest, total = q.new_full(q.shape[:3], -torch.inf), q.new_zeros(q.shape[:3])
        for turn, key in enumerate(drawn_keys(real, int(draws.max()))):
            key = key.expand(len(q), -1)[:, None, :, None].expand_as(k)
            score = (k.gather(2, key) * q).sum(dim=-1) * scale
            counts = (turn < draws)[:, None, None]
            largest = torch.where(counts, torch.maximum(largest, score), largest)
            total = total + score * counts
        return largest - total / draws.clamp(min=1)[:, None, None]

    def reference(self, q, k, v, *, pattern=None, scale=None):
        """All pairs, from which the sampled ones are read."""
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        real = padding_alone(self, pattern)
        real = q.new_ones(1, k.shape[2], dtype=torch.bool) if real is None else real
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
        rows = []
        for sample, queries in enumerate(q):
            mine = (
                q.new_ones(k.shape[2], dtype=torch.bool) if real is None else real.expand(len(k), -1)[sample]
            )
            keys, values = k[sample][:, mine], v[sample][:, mine]
            count = keys.shape[1]
            if count == 0:
                rows.append(torch.zeros_like(values.sum(1, keepdim=True)).expand(-1, queries.shape[1], -1))
                continue
            budget = min(count, self.factor * ceil(log(count)))
            scores = queries @ keys.mT * scale
            out = values.mean(dim=1, keepdim=True).expand(-1, queries.shape[1], -1)
            if budget:
                everyone = mine.new_ones(1, count)
                ranks = torch.cat([*drawn_keys(everyone, budget)]).mT
                read = scores[:, mine].gather(2, ranks.expand(len(scores), -1, -1))
                uneven = q.new_full(queries.shape[:2], -torch.inf)
                uneven[:, mine] = read.amax(-1) - read.mean(-1)
                order = uneven.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
                out = torch.where((order < budget)[..., None], scores.softmax(-1) @ values, out)
            rows.append(out)
        return torch.stack(rows)


def drawn_keys(real: Bool[Tensor, "b n"], turns: int) -> Iterator[Int[Tensor, "b n"]]:
    """Turn by turn, the position of the real key that each query draws: evenly spread over turns and over
    queries."""
    rank = (real.cumsum(dim=1) - 1).clamp(min=0).double()
    count, last = real.sum(dim=1, keepdim=True), real.shape[1] - 1
    position = (~real).to(torch.int8).argsort(dim=1, stable=True)
    for turn in range(1, turns + 1):
        spread = (rank * GOLDEN + turn * PLASTIC) % 1.0
        yield position.gather(1, (spread * count).long().clamp(max=last))


class ProbSparse(MultiHead):
    """Softmax for the `factor`·⌈ln n⌉ least even queries of every head, the values' mean for the rest."""

    supports = Supports(
        causal=False, cross=False, causal_cross=False, step=False, pattern=False, time=1.0, memory=1.0
    )

    def __init__(self, dim: int, heads: int, *, factor: int = 5, **shared):
        super().__init__(dim, heads, rule=ProbSparseRule(factor), **shared)
