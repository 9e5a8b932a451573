"""Routing attention (Roy et al., "Efficient Content-Based Sparse Attention with Routing Transformers",
2020, arXiv:2003.05997).

Queries and keys are laid on a sphere (a layer norm without scale or bias) and belong to clusters around
centroids μ that k-means moves along; attention runs inside the clusters. With about √n clusters of √n
members it costs n^1.5. Half of the heads route, the others see a sliding window.

    balanced: the w tokens with the largest x·μ_c form cluster c; a token in several clusters gets the
              mean of its outputs, a token in none gets 0
    nearest:  a token joins the cluster of its largest x·μ_c and attends to the last w members up to itself

Balanced is the paper's. It chooses members over the whole sequence, so when causal no value leaks, but a
later token can push an earlier one out of a cluster: it fails a strict test of causality and cannot
decode. So the causal default is nearest, in which the past stands, and decoding does what training did.
When causal, queries are the keys (K = Q), and a token attends to itself only if it has nobody else.

    μ_c ← norm(γ μ_c + (1 - γ) norm(Σ x assigned to c))

Centroids are buffers. They move in training alone, when a record is passed and its `settle` is called,
so never twice in a step and never behind a gradient checkpoint's back. The record also gets the loss
"commitment", β |norm(x) - μ|².

What differs from the paper: its centroids move by plain sums, whose size depends on the batch. What
differs from the official (TensorFlow) code: there a causal token always sees itself, and the norm comes
behind the 1/√d and undoes it; here positions act on the local heads alone, so that routing goes by
content.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, inf, sqrt

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regardant.core.clusters import Centroids, attend_balanced, attend_nearest, take_rows
from regardant.core.errors import require, unknown
from regardant.core.mixer import MultiHead, check_input
from regardant.core.pattern import Causal, Pattern, Window, both, split_padding
from regardant.core.plan import attend_rows
from regardant.core.rule import HeadShape
from regardant.core.state import Cache, State
from regardant.core.supports import Supports

MEMBERSHIPS = ("balanced", "nearest")


@dataclass
class RoutingState(State):
    """The routed heads' keys, values and clusters, and the window of the local heads."""

    keys: Cache
    values: Cache
    clusters: Cache
    local: State | None


class RoutingAttention(MultiHead):
    """Half local, half content-routed attention.

    `length` is the length to expect: about √length `clusters` of `window` = length / clusters members,
    unless these are given. `window` is also the reach of the `local_heads`. Across two sequences and
    without causality all heads may route; `membership` is "nearest" when causal, else "balanced".
    """

    supports = Supports(causal_cross=False, pattern=False, grouped=False, time=1.5, memory=1.5, state=1.0)

    def __init__(
        self, dim: int, heads: int, *, length: int = 1024, clusters: int | None = None,
        window: int | None = None, local_heads: int | None = None, membership: str | None = None,
        decay: float = 0.999, commitment: float = 1e-4, **shared,
    ):  # fmt: skip
        super().__init__(dim, heads, **shared)
        across = self.context_dim is not None
        clusters = round(sqrt(length)) if clusters is None else clusters
        membership = membership or ("nearest" if self.causal else "balanced")
        local_heads = (0 if across else heads // 2) if local_heads is None else local_heads
        require(length >= 1, f"length is {length}, but a sequence has at least 1 token")
        require(clusters >= 1, f"clusters is {clusters}, but there is at least 1")
        window = ceil(length / clusters) if window is None else window
        require(window >= 1, f"window is {window}, but a cluster has at least 1 member")
        require(
            0 <= local_heads < heads,
            f"local_heads is {local_heads}, but of heads={heads} at least one routes",
        )
        require(
            not (across and local_heads),
            f"local_heads is {local_heads}, but there is no neighbourhood across two sequences: make it 0",
        )
        if membership not in MEMBERSHIPS:
            raise unknown("membership", membership, MEMBERSHIPS)
        require(
            self.causal or membership == "balanced",
            "membership is 'nearest', which looks back in time, but causal=False: make it 'balanced'",
        )
        require(
            not self.position.biases,
            f"position is {type(self.position).__name__}, a bias on all logits, but routed heads compute few",
        )
        self.window, self.local_heads, self.membership = window, local_heads, membership
        self.decay, self.commitment = decay, commitment
        self.centroids = Centroids(heads - local_heads, clusters, self.head_dim)
        if self.causal:  # routed keys are the queries
            bias = self.to_q.bias is not None
            self.to_k = nn.Linear(dim, local_heads * self.head_dim, bias=bias) if local_heads else None

    @classmethod
    def from_dense(cls, layer, **config):
        require(
            not layer.causal, "the layer is causal, but causal routing has no keys to take weights: K = Q"
        )
        return super().from_dense(layer, **config)

    def check_inputs(self, x, context, padding):
        require(
            context is None or self.local_heads == 0,
            f"context is given, but local_heads={self.local_heads} look at x: make a layer with context_dim",
        )
        super().check_inputs(x, context, padding)

    def project(self, x, context=None, *, offset=0):
        x = self.position.embed(x, offset)
        source = x if context is None else context
        q, v = (
            linear(rows).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear, rows in ((self.to_q, x), (self.to_v, source))
        )
        local_q, routed_q = self._split(q)
        k, routed_q = local_q, _sphere(routed_q)
        if self.to_k is not None:
            k = self.to_k(source).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        local_k, routed_k = (k, routed_q) if self.causal else self._split(k)
        local_q, local_k = (self.position.turn(rows, offset) for rows in (local_q, local_k))
        routed_k = routed_k if self.causal else _sphere(routed_k)
        return torch.cat([local_q, routed_q], dim=1), torch.cat([local_k, routed_k], dim=1), v

    def _split(self, rows: Float[Tensor, "b h n d"]) -> tuple[Tensor, Tensor]:
        """The local heads and the routed ones."""
        return rows.split([self.local_heads, self.heads - self.local_heads], dim=1)

    def attend(self, q, k, v, *, x, pattern, padding=None, record=None):
        local, (q, k, v) = zip(*(self._split(rows) for rows in (q, k, v)))
        real, near = split_padding(pattern)[1], self._near(self.rule, *local, pattern)
        if self.membership == "nearest":
            clusters = self.centroids.nearest(q)
            if real is not None:  # padding keeps to itself
                clusters = clusters.masked_fill(~real[:, None], self.centroids.directions.shape[1])
            routed = attend_nearest(q, v, clusters, window=self.window, scale=self._logit_scale)
            if real is not None:
                routed = routed.masked_fill(~real[:, None, :, None], 0)
        else:
            queries = self._members(q, padding)
            keys = queries if self.causal else self._members(k, real)
            routed = attend_balanced(
                q, k, v, queries, keys, real_queries=padding, real_keys=real, causal=self.causal,
                scale=self._logit_scale,
            )  # fmt: skip
        if record is not None:
            self._report(q, k, padding, real, record)
        return torch.cat([*near, routed], dim=1)

    def _near(self, rule, q: Tensor, k: Tensor, v: Tensor, pattern: Pattern | None) -> list[Tensor]:
        """What the local heads, if any, make of their window."""
        if not self.local_heads:
            return []
        return [rule(q, k, v, pattern=both(pattern, Window(self.window)), scale=self.scale)]

    @property
    def _logit_scale(self) -> float:
        return self.head_dim**-0.5 if self.scale is None else self.scale

    def _members(self, x: Tensor, real: Bool[Tensor, "b n"] | None) -> Int[Tensor, "b h c w"]:
        """The `window` tokens closest to each centroid, in the order of the sequence."""
        closeness = self.centroids.closeness(x).mT
        if real is not None:
            closeness = closeness.masked_fill(~real[:, None, None, :], -inf)
        return closeness.topk(min(self.window, x.shape[2]), dim=-1).indices.sort(dim=-1).values

    def _report(self, q, k, padding, real, record) -> None:
        tokens = q if self.causal else torch.cat([q, k], dim=2)
        if not self.causal and (padding is not None or real is not None):
            everyone = (q.new_ones(len(q), rows.shape[2], dtype=torch.bool) for rows in (q, k))
            one, other = (each if mask is None else mask for mask, each in zip((padding, real), everyone))
            real = torch.cat([one, other], dim=1)
        record.add_loss("commitment", self.commitment * self.centroids.distance(tokens, real))
        if self.training:
            moved = self.centroids.moved(tokens, real, decay=self.decay)
            record.defer(self.centroids, lambda: self.centroids.directions.copy_(moved))

    def attend_reference(self, q, k, v, *, x, pattern, padding=None):
        local, (q, k, v) = zip(*(self._split(rows) for rows in (q, k, v)))
        real, near = split_padding(pattern)[1], self._near(self.rule.reference, *local, pattern)
        total, copies = v.new_zeros(*q.shape[:3], v.shape[-1]), v.new_zeros(*q.shape[:3], 1)
        for cluster in range(self.centroids.directions.shape[1]):
            if self.membership == "nearest":
                asks = tells = self._plainly_nearest(q, real, cluster)
            else:
                asks, tells = self._plainly_best(q, padding, cluster), self._plainly_best(k, real, cluster)
            sees = asks[..., :, None] & tells[..., None, :]
            if self.membership == "nearest":
                rank = tells.cumsum(-1)
                sees = sees & (rank[..., :, None] - rank[..., None, :] < self.window)
            if self.causal:
                earlier = sees & Causal().dense(q.shape[2], device=q.device).tril(-1)
                itself = sees & torch.eye(q.shape[2], dtype=torch.bool, device=q.device)
                sees = earlier | itself & ~earlier.any(-1, keepdim=True)
            some = sees.any(-1, keepdim=True)
            weights = (q @ k.mT * self._logit_scale).masked_fill(~(sees | ~some), -inf).softmax(-1)
            total, copies = total + (weights * some) @ v, copies + some
        return torch.cat([*near, total / copies.clamp(min=1)], dim=1)

    def _plainly_nearest(self, x, real, cluster) -> Bool[Tensor, "b h n"]:
        closeness = x @ self.centroids.directions.mT.to(x.dtype)
        joins = closeness.argmax(-1) == cluster
        return joins if real is None else joins & real[:, None]

    def _plainly_best(self, x, real, cluster) -> Bool[Tensor, "b h n"]:
        closeness = x @ self.centroids.directions[:, cluster, :, None].to(x.dtype)
        if real is not None:
            closeness = closeness.masked_fill(~real[:, None, :, None], -inf)
        better = (closeness.mT > closeness).sum(-1)
        return (better < self.window) & (closeness[..., 0] > -inf)

    def start(self, batch, *, context=None, padding=None):
        super().start(batch, context=context, padding=padding)
        require(
            self.membership == "nearest",
            "membership is 'balanced', a competition over the whole sequence, which no step can know: "
            "make it 'nearest' to decode",
        )
        weight, routed = self.to_q.weight, self.heads - self.local_heads
        rows = weight.new_empty(batch, routed, 0, self.head_dim)
        ids = torch.empty(batch, routed, 0, 1, dtype=torch.long, device=weight.device)
        return RoutingState(0, Cache(rows), Cache(rows), Cache(ids), self._start_local(batch))

    def _start_local(self, batch: int, **prompt: Tensor) -> State | None:
        if not self.local_heads:
            return None
        weight, local, width = self.to_q.weight, self.local_heads, self.head_dim
        shape = HeadShape(batch, local, local, width, width, weight.device, weight.dtype)
        return self.rule.start(shape, pattern=Causal() & Window(self.window), **prompt)

    def prefill(self, x):
        self.start(x.shape[0])
        self.check_inputs(x, None, None)
        q, k, v = self.project(x)
        y = self.merge(self.attend(q, k, v, x=x, pattern=Causal()), x=x)
        local = self.local_heads
        clusters = self.centroids.nearest(k[:, local:])[..., None]
        near = self._start_local(x.shape[0], keys=k[:, :local], values=v[:, :local])
        return y, RoutingState(x.shape[1], Cache(k[:, local:]), Cache(v[:, local:]), Cache(clusters), near)

    def step(self, x_t, state):
        check_input("x_t", x_t, "batch, width", self.dim, self.to_q.weight)
        x, local, near, heads = x_t[:, None], self.local_heads, state.local, []
        q, k, v = self.project(x, offset=state.length)
        if local:
            row = (rows[:, :local, 0] for rows in (q, k, v))
            out, near = self.rule.step(*row, near, pattern=Causal() & Window(self.window), scale=self.scale)
            heads.append(out[:, :, None])
        q, k, v = q[:, local:], k[:, local:], v[:, local:]
        mine = self.centroids.nearest(q)[..., None]
        keys, values, clusters = state.keys.append(k), state.values.append(v), state.clusters.append(mine)
        at = torch.arange(state.length + 1, device=x.device)
        latest = torch.where((clusters.rows == mine)[..., 0], at, -1).topk(min(self.window, len(at))).values
        others = (latest >= 0) & (latest < state.length)
        sees = others | (latest == state.length) & ~others.any(-1, keepdim=True)
        members = (take_rows(rows, latest.clamp(min=0)) for rows in (keys.rows, values.rows))
        heads.append(attend_rows(q, *members, sees[:, :, None], scale=self._logit_scale))
        state = RoutingState(state.length + 1, keys, values, clusters, near)
        return self.merge(torch.cat(heads, dim=1), x=x)[:, 0], state


def _sphere(x: Float[Tensor, "b h n d"]) -> Float[Tensor, "b h n d"]:
    return F.layer_norm(x, x.shape[-1:])
