"""Landmark attention at inference (Mohtashami & Jaggi, "Landmark Attention: Random-Access Infinite Context
Length for Transformers", 2023, arXiv:2305.16300): the blocks that a query reads are retrieved.

`regardant.sequence.landmark_attention` trains landmarks to open their blocks. With its weights, each query
and head here reads its own block and the `retrieved` earlier ones whose landmarks have the largest q·k;
these, and the tokens of its own block, share the same grouped softmax:

    [p_own, p_i for i in R] = softmax over {s_j in the own block} and the landmarks' s of R
    y = Σ_{j own} p_j v_j + Σ_{i in R} p_i Σ_{j in i} softmax_{j in i}(s)_j v_j

With all of them retrieved, it is what was trained. A step scores one landmark a block and reads
retrieved·ℓ tokens. Only the landmarks' keys and the block at hand need stand on the layer's device:
finished blocks may wait on another (`cache_device`), and those that are retrieved travel.

Beyond the training length, rotary positions would meet distances that they never saw. So the distance
between two blocks counts as at most retrieved + 1: the nearest blocks keep their place, all others stand
where the first of them would. That is our reading of the paper's mapping; the official code deals out the
places among the blocks that it retrieved. Keys are kept turned by their place in the block alone, and the
query is turned as each block meets it.

What else differs from the official code: it works through a text in chunks of several blocks, all of which
a query sees; here the chunk is the block.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regardant.core.errors import require, unknown
from regardant.core.landmarks import grouped_softmax, is_landmark, softmax_where
from regardant.core.mixer import MultiHead, check_input
from regardant.core.pattern import split_padding
from regardant.core.position import Position
from regardant.core.selected import attend_spans, exact, rows_at, strongest
from regardant.core.state import Cache, State
from regardant.core.supports import Supports

CHOICES = ("head", "token")


@dataclass
class LandmarkState(State):
    """The block at hand, the landmarks of all finished blocks, and these blocks, wherever they are kept."""

    keys: Cache
    values: Cache
    landmarks: Cache
    block_keys: Cache
    """A row a block: its keys side by side, the landmark's not among them."""
    block_values: Cache


class LandmarkRetrieval(MultiHead):
    """Landmark attention that reads its own block and the `retrieved` best of the earlier ones.

    With `choice="token"` the heads of a token choose together, by the largest share that one of them gives
    a landmark: fewer blocks travel, and quality drops. `cache_device` is where decoding keeps finished
    blocks; by default they stay on the layer's own.
    """

    supports = Supports(
        noncausal=False, cross=False, causal_cross=False, pattern=False, time=2.0, memory=1.0, state=1.0
    )

    def __init__(
        self, dim: int, heads: int, *, causal: bool = True, block: int = 50, retrieved: int = 2,
        choice: Literal["head", "token"] = "head", cache_device: str | torch.device | None = None, **shared,
    ):  # fmt: skip
        super().__init__(dim, heads, causal=causal, **shared)
        require(block >= 1, f"block is {block}, but a landmark stands behind at least 1 token")
        require(retrieved >= 1, f"retrieved is {retrieved}, but a query retrieves at least 1 block")
        if choice not in CHOICES:
            raise unknown("choice", choice, CHOICES)
        require(
            not self.position.biases,
            f"position is {type(self.position).__name__}, a bias on all logits, but few are computed",
        )
        self.block, self.retrieved, self.choice, self.cache_device = block, retrieved, choice, cache_device

    @property
    def width(self) -> int:
        """Positions of a block with its landmark."""
        return self.block + 1

    def project(self, x, context=None, *, offset=0):
        """Queries and keys as they are before their positions turn them."""
        x = self.position.embed(x, offset)
        heads = ((self.to_q, self.heads), (self.to_k, self.kv_heads), (self.to_v, self.kv_heads))
        return tuple(linear(x).unflatten(-1, (count, -1)).transpose(1, 2) for linear, count in heads)

    @property
    def _logit_scale(self) -> float:
        return self.head_dim**-0.5 if self.scale is None else self.scale

    @property
    def _turns(self) -> bool:
        return type(self.position).turn is not Position.turn

    def _turned(self, rows: Float[Tensor, "b h n d"], offset: int = 0) -> Float[Tensor, "b h n d"]:
        """Rows turned by where they stand in their block, and `offset` more."""
        if not self._turns:
            return rows
        n = rows.shape[2]
        blocks = F.pad(rows, (0, 0, 0, -n % self.width)).unflatten(2, (-1, self.width))
        return self.position.turn(blocks, offset).flatten(2, 3)[:, :, :n]

    def _from_afar(self, q: Float[Tensor, "b h n d"]) -> Float[Tensor, "b h n a d"]:
        """The queries as blocks at distance 0, 1, … retrieved + 1 meet them: one for all where none turns."""
        distances = range(self.retrieved + 2) if self._turns else range(1)
        return torch.stack([self._turned(q, distance * self.width) for distance in distances], dim=3)

    def choose(
        self, q: Float[Tensor, "b h n a d"], landmarks: Float[Tensor, "b g c d"],
        own: Int[Tensor, "#b 1 n"], usable: Bool[Tensor, "#b c"],
    ) -> tuple[Int[Tensor, "b h n s"], Bool[Tensor, "b h n s"]]:  # fmt: skip
        """The earlier blocks that each query reads, and which of them are there."""
        (b, h, n, afar, _), (g, c) = q.shape, landmarks.shape[1:3]
        q, landmarks = exact(q.detach()), exact(landmarks.detach()).repeat_interleave(h // g, dim=1)
        which = torch.arange(c, device=q.device)

        def score(rows: slice) -> Float[Tensor, "b h r c"]:
            mine = own[:, :, rows, None]
            scores = q[:, :, rows, -1] @ landmarks.mT
            for distance in range(1, afar - 1):  # the nearest blocks stand nearer
                near = (mine - distance).clamp(min=0)
                there = rows_at(landmarks, near[..., 0].expand(b, h, -1))
                exactly = (q[:, :, rows, distance] * there).sum(-1, keepdim=True)
                scores = torch.where(which == near, exactly, scores)
            scores = scores.masked_fill(~(usable[:, None, None] & (which < mine)), -inf)
            if self.choice == "token":
                shares = softmax_where(scores * self._logit_scale, scores > -inf)
                together = shares.amax(1, keepdim=True).expand_as(shares)
                scores = together.masked_fill(scores == -inf, -inf)
            return scores

        return strongest(score, n, self.retrieved, pairs_a_row=b * h * c)

    def attend(self, q, k, v, *, x, pattern, padding=None, record=None):
        real = split_padding(pattern)[1]
        real = None if real is None else real.expand(len(q), -1)
        n, width, scale = k.shape[2], self.width, self._logit_scale
        at, own, usable = self._layout(real, n, q.device)
        keys, views = self._turned(k), self._from_afar(q)
        begin = own * width
        last = torch.minimum(at, begin + self.block - 1)[..., None].expand(*q.shape[:3], 1)
        begin = begin[..., None].expand_as(last)
        tile = -(-width // 16) * 16
        outs = [attend_spans(views[..., 0, :], keys, v, begin, last, tile=tile, scale=scale, real=real)]
        marks = keys[:, :, self.block :: width]
        if marks.shape[2]:
            chosen, there = self.choose(views, marks, own, usable[:, : marks.shape[2]])
            q = self._met(views, own[..., None] - chosen)
            gates = (exact(q) * exact(rows_at(marks, chosen))).sum(-1) * scale
            first = (chosen * width).masked_fill(~there, n).flatten(2)[..., None]
            spans = (q.flatten(2, 3), keys, v, first, first + self.block - 1)
            out, _ = attend_spans(*spans, tile=tile, scale=scale, real=real)
            outs.append((out.unflatten(2, chosen.shape[2:])[..., 0, :], gates.masked_fill(~there, -inf)))
        sums = torch.cat([lse for _, lse in outs], dim=-1)
        shares = softmax_where(sums, sums > -inf)
        return (shares[..., None].to(v.dtype) * torch.cat([out for out, _ in outs], dim=3)).sum(3)

    def _layout(self, real: Tensor | None, n: int, device: torch.device):
        """Positions, the own block of each query, and the blocks that have a landmark and a token."""
        at = torch.arange(n, device=device)
        if real is None:
            return at, (at // self.width)[None, None], at.new_ones(1, n // self.width).bool()
        own = torch.where(real, at, -1).cummax(-1).values // self.width  # of the last key that is seen
        blocks = real[:, : n // self.width * self.width].unflatten(1, (-1, self.width))
        return at, own[:, None], blocks[..., -1] & blocks[..., :-1].any(-1)

    def _met(
        self, views: Float[Tensor, "b h n a d"], distance: Int[Tensor, "b h n s"]
    ) -> Float[Tensor, "b h n s d"]:
        """The queries as the chosen blocks meet them."""
        if views.shape[3] == 1:
            return views.expand(-1, -1, -1, distance.shape[-1], -1)
        distance = distance.clamp(0, self.retrieved + 1)[..., None]
        return views.gather(3, distance.expand(*distance.shape[:-1], views.shape[-1]))

    def attend_reference(self, q, k, v, *, x, pattern, padding=None):
        """All pairs at their mapped distance; every landmark but the best ones is crossed out."""
        share, n, width = q.shape[1] // k.shape[1], k.shape[2], self.width
        k, v = k.repeat_interleave(share, dim=1), v.repeat_interleave(share, dim=1)
        at = torch.arange(n, device=q.device)
        mask = pattern.block(at, at, batch=len(q), heads=self.heads).expand(len(q), self.heads, n, n)
        landmark, keys = is_landmark(n, block=self.block).to(q.device), self._turned(k)
        own = torch.where(mask, at, -1).amax(-1, keepdim=True) // width
        logits, apart = q.new_zeros(mask.shape), (own - at // width).clamp(0, self.retrieved + 1)
        for distance in range(self.retrieved + 2):
            logits = torch.where(apart == distance, self._turned(q, distance * width) @ keys.mT, logits)
        logits = logits * self._logit_scale
        tokens = torch.stack(
            [(mask & (at // width == i) & ~landmark).any(-1) for i in range(-(-n // width))], -1
        )
        gates = mask & landmark & (at // width < own) & tokens[..., at // width]
        scores = logits if self.choice == "head" else softmax_where(logits, gates).amax(1, keepdim=True)
        scores = scores.masked_fill(~gates, -inf)
        better = (scores[..., None, :] > scores[..., :, None]).sum(-1)
        keep = gates & (better < self.retrieved)
        read = torch.stack([(keep & (at // width == i)).any(-1) for i in range(-(-n // width))], -1)
        return grouped_softmax(logits, mask & ((at // width == own) | read[..., at // width]), landmark) @ v

    def start(self, batch, *, context=None, padding=None):
        super().start(batch, context=context, padding=padding)
        weight, d = self.to_q.weight, self.head_dim
        here = weight.new_empty(batch, self.kv_heads, 0, d)
        there = weight.new_empty(batch, self.kv_heads, 0, self.block * d, device=self.cache_device)
        return LandmarkState(0, Cache(here), Cache(here), Cache(here), Cache(there), Cache(there))

    def prefill(self, x):
        state, n, width = self.start(x.shape[0]), x.shape[1], self.width
        self.check_inputs(x, None, None)
        q, k, v = self.project(x)
        pattern = self.visible(n, across=False, padding=None)
        y = self.merge(self.attend(q, k, v, x=x, pattern=pattern), x=x)
        whole, keys = n // width * width, self._turned(k)
        blocks, held = [], []
        for rows in (keys, v):
            finished = rows[:, :, :whole].unflatten(2, (-1, width))[..., :-1, :].flatten(3)
            blocks.append(Cache(finished.to(state.block_keys.rows.device)))
            held.append(Cache(rows[:, :, whole:]))
        return y, LandmarkState(n, *held, Cache(keys[:, :, self.block :: width]), *blocks)

    def step(self, x_t, state):
        check_input("x_t", x_t, "batch, width", self.dim, self.to_q.weight)
        x, (cycle, place) = x_t[:, None], divmod(state.length, self.width)
        q, k, v = self.project(x, offset=state.length)
        k = self.position.turn(k, place)
        distances = range(self.retrieved + 2) if self._turns else range(1)
        views = torch.stack([self.position.turn(q, place + far * self.width) for far in distances], dim=3)
        keys, values = state.keys.append(k), state.values.append(v)
        landmarks, stored = state.landmarks, (state.block_keys, state.block_values)
        tokens = slice(0, min(place + 1, self.block))
        logits = exact(views[..., 0, :]) @ _shared(keys.rows[:, :, tokens], self.heads).mT * self._logit_scale
        sums = [logits.logsumexp(-1, keepdim=True)]
        parts = [logits.softmax(-1) @ _shared(values.rows[:, :, tokens], self.heads)]
        if cycle:
            own = torch.full((1, 1, 1), cycle, device=x.device)
            usable = torch.ones(1, cycle, dtype=torch.bool, device=x.device)
            chosen, _ = self.choose(views, landmarks.rows, own, usable)
            q = self._met(views, cycle - chosen)
            sums.append((exact(q) * exact(rows_at(landmarks.rows, chosen))).sum(-1) * self._logit_scale)
            near = [rows_at(cache.rows, chosen.to(cache.rows.device)).to(x.device) for cache in stored]
            near = [exact(rows.unflatten(-1, (self.block, -1))) for rows in near]
            inside = ((exact(q)[..., None, :] * near[0]).sum(-1) * self._logit_scale).softmax(-1)
            parts.append((inside[..., None] * near[1]).sum(-2)[:, :, 0])
        shares = torch.cat(sums, dim=-1).softmax(-1)[:, :, 0, :, None]
        out = (shares * torch.cat(parts, dim=2)).sum(2, keepdim=True).to(v.dtype)
        if place == self.block:
            landmarks = landmarks.append(k)
            stored = [
                cache.append(rows.rows[:, :, : self.block].flatten(2)[:, :, None].to(cache.rows.device))
                for cache, rows in zip(stored, (keys, values))
            ]
            keys, values = (Cache(rows.rows[:, :, :0]) for rows in (keys, values))
        return self.merge(out, x=x)[:, 0], LandmarkState(state.length + 1, keys, values, landmarks, *stored)


def _shared(rows: Float[Tensor, "b g n d"], heads: int) -> Float[Tensor, "b h n d"]:
    """Rows for every query head."""
    return exact(rows).repeat_interleave(heads // rows.shape[1], dim=1)
