"""Superlinear multi-step attention ("Superlinear Multi-Step Attention", 2026, arXiv:2601.18401).

Causal attention as a search. A query q looks at about √q anchors, reads the spans that end at the best k
of them, and mixes what it read by the anchors' scores:

    a_i = q - ⌊i^(1/p)⌋ + 1,  i = s+1, s+2, … while a_i ≥ 0     the anchors; p = ½: gaps grow as 2i+1
    S_j = [a_j - ⌈β (q+1)^r⌉, a_j + ⌈φ (q+1)^r⌉]                of the k anchors with the largest q₁·k_a
    O_j = softmax over S_j and the window of (q₂·k/√d) v
    y   = Σ_j softmax_j(q₁·k_{a_j}) O_j

The window holds the last ⌊(s+1)^(1/p)⌋ - 1 tokens, so the first anchor stands right before it; spans stop
there too. With β = 2 and p = r = ½ every earlier token lies in the span of some anchor: none is ruled out.
k and v are shared, only the queries are two. Gradients reach q₁ through the mixture, there is no other
loss. It wants a layer below that sums up the past in each token (a recurrence, a convolution), so that an
anchor's key can speak for its span.

Written from the official reference code, whose search scores have no 1/√d either. What differs from it:
its window and its spans are kernels of their own, ours are both `regardant.core.selected.attend_spans`; it
takes powers in float32, we take them in float64, exact at whole roots; ties go to the nearest anchor; k is
any number, not 2 or 3; padding may stand anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, inf

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.core.mixer import MultiHead, check_input
from regardant.core.partial_softmax import merge
from regardant.core.pattern import split_padding
from regardant.core.selected import attend_spans, best, exact, rows_at, strongest
from regardant.core.state import Cache, State
from regardant.core.supports import Supports


@dataclass
class SuperlinearState(State):
    """All keys and values; a step reads about √n of them."""

    keys: Cache
    values: Cache


class Superlinear(MultiHead):
    """Span search, then span attention: O(n^1.5) for every token within reach.

    `spans` is k. `stripes` is s: that many of the nearest anchors give way to the window (0: no window).
    `backward` is β, `forward_reach` φ, `search_power` p, `span_power` r. To leave no hole between spans,
    keep β ≥ 2 with p = r = ½, or make r larger than 1 - p.
    """

    supports = Supports(
        noncausal=False, cross=False, causal_cross=False, pattern=False, time=1.5, memory=1.0, state=1.0
    )

    def __init__(
        self, dim: int, heads: int, *, causal: bool = True, spans: int = 3, stripes: int = 3,
        backward: float = 2.0, forward_reach: float = 0.0, search_power: float = 0.5,
        span_power: float = 0.5, bias: bool = False, **shared,
    ):  # fmt: skip
        super().__init__(dim, heads, causal=causal, bias=bias, **shared)
        require(spans >= 1, f"spans is {spans}, but a query reads at least 1")
        require(stripes >= 0, f"stripes is {stripes}, but anchors are counted from 0")
        require(backward >= 0, f"backward is {backward}, but a span does not end before it begins")
        require(
            forward_reach >= 0, f"forward_reach is {forward_reach}, but a span reaches at least its anchor"
        )
        for name, power in (("search_power", search_power), ("span_power", span_power)):
            require(0 < power < 1, f"{name} is {power}, but it lies between 0 and 1")
        require(
            not self.position.biases,
            f"position is {type(self.position).__name__}, a bias on all logits, but few are computed",
        )
        self.spans, self.stripes, self.backward, self.forward_reach = spans, stripes, backward, forward_reach
        self.search_power, self.span_power = search_power, span_power
        self.to_search = nn.Linear(dim, heads * self.head_dim, bias=bias)

    @property
    def window(self) -> int:
        """How many of the last tokens every query reads."""
        return self._shift(self.stripes + 1)

    def _shift(self, stripe: int) -> int:
        """How far behind its query a stripe's anchor stands; whole powers are exact."""
        return floor(stripe ** (1 / self.search_power)) - 1

    def shifts(self, length: int) -> list[int]:
        """The shifts of all anchors that some query of a sequence has, nearest first."""
        found, stripe = [], self.stripes + 1
        while (shift := self._shift(stripe)) < length:
            found.append(shift)
            stripe += 1
        return found

    def spans_of(
        self, at: Int[Tensor, "*#b m"], anchors: Int[Tensor, "*b m s"], begin: Int[Tensor, "*#b 1"] | int = 0
    ) -> tuple[Int[Tensor, "*b m s"], Int[Tensor, "*b m s"]]:
        """The first and the last key of the spans at these anchors, for queries at positions `at`.

        `begin` is the first real position: lengths are counted from it, and no span reaches before it.
        """
        begin = torch.as_tensor(begin, device=at.device)
        reach = (at + 1 - begin).clamp(min=0).double() ** self.span_power
        # A root that comes out a rounding above its whole number must not lengthen the span.
        back, ahead = (
            (factor * reach - 1e-9).ceil().long() for factor in (self.backward, self.forward_reach)
        )
        first = torch.maximum(anchors - back[..., None], begin[..., None])
        stop = at - self.window
        return first, torch.minimum(anchors + ahead[..., None], stop[..., None])

    def project(self, x, context=None, *, offset=0):
        """The queries are twice as many heads: those that read, and behind them those that search."""
        q, k, v = super().project(x, context, offset=offset)
        search = (
            self.to_search(self.position.embed(x, offset)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        )
        return torch.cat([q, self.position.turn(search, offset)], dim=1), k, v

    def search(
        self, q: Float[Tensor, "b h n d"], k: Float[Tensor, "b g n d"], real: Bool[Tensor, "b n"] | None
    ) -> tuple[Int[Tensor, "b h n s"], Bool[Tensor, "b h n s"]]:
        """The best anchors of each query, and which of them are there; a choice, so without gradients."""
        (b, h, n, _), shifts = q.shape, self.shifts(k.shape[2])
        q, k = exact(q.detach()).unflatten(1, (k.shape[1], -1)), exact(k.detach())[:, :, None]

        def score(rows: slice) -> Float[Tensor, "b h r c"]:
            scores = k.new_full((b, h, rows.stop - rows.start, max(len(shifts), 1)), -inf)
            for column, shift in enumerate(shifts):
                low = max(rows.start, shift)
                if low >= rows.stop:
                    break
                keys = slice(low - shift, rows.stop - shift)
                found = (q[:, :, :, low : rows.stop] * k[:, :, :, keys]).sum(-1).flatten(1, 2)
                if real is not None:
                    found = found.masked_fill(~real[:, None, keys], -inf)
                scores[:, :, low - rows.start :, column] = found
            return scores

        at, there = strongest(score, n, self.spans, pairs_a_row=b * h * max(len(shifts), 1))
        anchors = torch.arange(n, device=q.device)[:, None] - torch.tensor(shifts or [0], device=q.device)[at]
        return anchors.masked_fill(~there, 0), there

    def attend(self, q, k, v, *, x, pattern, padding=None, record=None):
        real, (q, search) = _rows(split_padding(pattern)[1], len(q)), q.chunk(2, dim=1)
        n, scale = k.shape[2], self._logit_scale
        anchors, there = self.search(search, k, real)
        at = torch.arange(n, device=q.device)
        begin = 0 if real is None else _begin(real)
        first, last = self.spans_of(at, anchors, begin)
        last = torch.where(there, last, -1)
        widest = int((last - first + 1).max()) if last.numel() else 1
        out, lse = attend_spans(q, k, v, first, last, tile=_tile(widest), scale=scale, real=real)
        if self.window:
            recent = (at - self.window + 1).clamp(min=0)[:, None].expand(*q.shape[:3], 1)
            whole = at[:, None].expand(*q.shape[:3], 1)
            near = attend_spans(q, k, v, recent, whole, tile=_tile(self.window), scale=scale, real=real)
            out, lse = merge([(out, lse), (near[0].expand_as(out), near[1].expand_as(lse))])
        shares = _shares(_gains(search, k, anchors), there)
        return (shares[..., None].to(v.dtype) * out.to(v.dtype)).sum(-2)

    def attend_reference(self, q, k, v, *, x, pattern, padding=None):
        """All pairs; the best anchor is looked for and crossed out, k times."""
        real, (q, search) = _rows(split_padding(pattern)[1], len(q)), q.chunk(2, dim=1)
        share, n = q.shape[1] // k.shape[1], k.shape[2]
        k, v = k.repeat_interleave(share, dim=1), v.repeat_interleave(share, dim=1)
        at = torch.arange(n, device=q.device)
        apart = at[:, None] - at
        sees = torch.ones_like(apart, dtype=torch.bool).expand(len(q), 1, n, n)
        if real is not None:
            sees = real[:, None, None, :].expand_as(sees)
        window = (apart >= 0) & (apart < self.window) & sees
        anchor = torch.isin(apart, torch.tensor(self.shifts(n), device=q.device)) & sees
        scores = (search @ k.mT).masked_fill(~anchor, -inf)
        logits, left, outputs, gains, chosen = q @ k.mT * self._logit_scale, scores, [], [], []
        begin = 0 if real is None else _begin(real)
        for _ in range(self.spans):
            gain, best_at = left.flip(-1).max(-1)  # the last of equal ones: the nearest
            best_at = n - 1 - best_at
            first, last = self.spans_of(at, best_at[..., None], begin)
            span = (at >= first) & (at <= last) & (gain > -inf)[..., None] & sees | window
            some = span.any(-1, keepdim=True)
            outputs.append((logits.masked_fill(~(span | ~some), -inf).softmax(-1) * some) @ v)
            gains.append(gain)
            chosen.append(gain > -inf)
            left = left.masked_fill(at == best_at[..., None], -inf)
        shares = _shares(torch.stack(gains, -1), torch.stack(chosen, -1))
        return (shares[..., None] * torch.stack(outputs, -2)).sum(-2)

    @property
    def _logit_scale(self) -> float:
        return self.head_dim**-0.5 if self.scale is None else self.scale

    def start(self, batch, *, context=None, padding=None):
        super().start(batch, context=context, padding=padding)
        rows = self.to_q.weight.new_empty(batch, self.kv_heads, 0, self.head_dim)
        return SuperlinearState(0, Cache(rows), Cache(rows))

    def prefill(self, x):
        self.start(x.shape[0])
        self.check_inputs(x, None, None)
        q, k, v = self.project(x)
        y = self.merge(self.attend(q, k, v, x=x, pattern=None), x=x)
        return y, SuperlinearState(x.shape[1], Cache(k), Cache(v))

    def step(self, x_t, state):
        check_input("x_t", x_t, "batch, width", self.dim, self.to_q.weight)
        x, t = x_t[:, None], state.length
        q, k, v = self.project(x, offset=t)
        keys, values = state.keys.append(k), state.values.append(v)
        q, search = q.chunk(2, dim=1)
        lead = (*q.shape[:2], 1)
        near = self.shifts(t + 1)
        anchors = t - torch.tensor(near or [0], device=x.device)
        scores = _gains(search, keys.rows, anchors.expand(*lead, -1))
        chosen, there = best(scores if near else scores.fill_(-inf), self.spans)
        first, last = self.spans_of(torch.tensor([t], device=x.device), anchors[chosen])
        reach = first[..., None] + torch.arange(max(int((last - first).max()) + 1, 0), device=x.device)
        sees = there[..., None] & (reach <= last[..., None])
        recent = torch.arange(max(t + 1 - self.window, 0), t + 1, device=x.device)[: self.window]
        reach = torch.cat([reach.clamp(max=t), recent.expand(*first.shape, -1)], dim=-1)
        sees = F.pad(sees, (0, len(recent)), value=True)
        logits = _gains(q[..., None, :], keys.rows, reach) * self._logit_scale
        weights = (
            logits.masked_fill(~sees, -inf).softmax(-1) * _shares(scores.gather(-1, chosen), there)[..., None]
        )
        out = (weights[..., None] * exact(rows_at(values.rows, reach))).sum((-3, -2))
        return self.merge(out.to(v.dtype), x=x)[:, 0], SuperlinearState(t + 1, keys, values)


def _gains(q: Float[Tensor, "b h *m d"], k: Float[Tensor, "b g n d"], at: Int[Tensor, "b h *m s"]) -> Tensor:
    """q·k for a query's own list of keys."""
    return (exact(q)[..., None, :] * exact(rows_at(k, at))).sum(-1)


def _rows(real: Tensor | None, batch: int) -> Bool[Tensor, "b n"] | None:
    return None if real is None else real.expand(batch, -1)


def _begin(real: Bool[Tensor, "b n"]) -> Int[Tensor, "b 1 1"]:
    """The first real position of each sample (0 where there is none)."""
    return real.int().argmax(-1)[:, None, None]


def _shares(scores: Float[Tensor, "*m s"], there: Bool[Tensor, "*m s"]) -> Float[Tensor, "*m s"]:
    """Softmax over the anchors that are there; where none is, all alike."""
    none = ~there.any(-1, keepdim=True)
    return scores.masked_fill(~there, -inf).masked_fill(none, 0).softmax(-1)


def _tile(width: int) -> int:
    """Tiles as wide as the spans, so that one touches two at most."""
    return max(16, -(-width // 16) * 16)
