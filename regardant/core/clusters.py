"""Attention inside clusters of content: directions that k-means moves, and softmax among a cluster's members.

Nothing here is n×n: a token is compared with c centroids and with the w members of a cluster.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


class Centroids(nn.Module):
    """Unit directions [h, c, d], a set for every routed head."""

    def __init__(self, heads: int, clusters: int, width: int):
        super().__init__()
        self.register_buffer("directions", F.normalize(torch.randn(heads, clusters, width), dim=-1))

    def closeness(self, x: Float[Tensor, "b h n d"]) -> Float[Tensor, "b h n c"]:
        exact = torch.promote_types(x.dtype, torch.float32)
        return x.detach().to(exact) @ self.directions.to(exact).mT

    def nearest(self, x: Float[Tensor, "b h n d"]) -> Int[Tensor, "b h n"]:
        return self.closeness(x).argmax(-1)

    def distance(self, x: Float[Tensor, "b h n d"], real: Bool[Tensor, "b n"] | None) -> Float[Tensor, ""]:
        """The mean of (norm(x) - μ)² over the real tokens: what the commitment loss makes small."""
        head = torch.arange(x.shape[1], device=x.device)[:, None]
        mine = self.directions[head, self.nearest(x)].to(x.dtype)
        apart = (F.normalize(x, dim=-1) - mine).square().mean((1, 3))
        return apart.mean() if real is None else (apart * real).sum() / real.sum().clamp(min=1)

    @torch.no_grad()
    def moved(
        self, x: Float[Tensor, "b h n d"], real: Bool[Tensor, "b n"] | None, *, decay: float
    ) -> Float[Tensor, "h c d"]:
        """Where a step of k-means on these tokens moves them; a cluster without tokens stays."""
        joins = F.one_hot(self.nearest(x), self.directions.shape[1]).to(self.directions.dtype)
        if real is not None:
            joins = joins * real[:, None, :, None]
        sums = torch.einsum("bhnc,bhnd->hcd", joins, F.normalize(x, dim=-1).to(joins.dtype))
        means = decay * self.directions + (1 - decay) * F.normalize(sums, dim=-1)
        met = joins.sum((0, 2))[..., None] > 0
        return torch.where(met, F.normalize(means, dim=-1), self.directions)


def attend_nearest(
    x: Float[Tensor, "b h n d"], v: Float[Tensor, "b h n e"], clusters: Int[Tensor, "b h n"],
    *, window: int, scale: float,
) -> Float[Tensor, "b h n e"]:  # fmt: skip
    """Each token, query and key in one, attends to the last `window` tokens of its cluster.

    Sorted by cluster that is a band. A token attends to itself only if it has nobody else.
    """
    b, h, n, _ = x.shape
    window = min(window, n)
    # A stable sort, so that inside a cluster the order in time survives.
    sorted_ids, order = clusters.sort(dim=-1, stable=True)
    short = -n % window
    x, v = (F.pad(take_rows(rows, order), (0, 0, 0, short)).unflatten(2, (-1, window)) for rows in (x, v))
    ids = F.pad(sorted_ids, (0, short), value=-1).unflatten(2, (-1, window))
    before = F.pad(ids[:, :, :-1], (0, 0, 1, 0), value=-2)
    same = ids[..., :, None] == torch.cat([before, ids], dim=-1)[..., None, :]
    step = torch.arange(window, device=x.device)[:, None] + window - torch.arange(2 * window, device=x.device)
    alone = ids != torch.cat([before[..., -1:], ids[..., :-1]], dim=-1)
    if window == 1:
        alone = torch.ones_like(alone)
    sees = same & ((step > 0) & (step < window)) | (step == 0) & alone[..., None]
    # Every block with the one before it; before the first stands the last, which it does not see.
    keys, values = (torch.cat([rows.roll(1, dims=2), rows], dim=3) for rows in (x, v))
    out = F.scaled_dot_product_attention(
        x.flatten(0, 1), keys.flatten(0, 1), values.flatten(0, 1), sees.flatten(0, 1), scale=scale
    )
    back = torch.empty_like(order).scatter_(2, order, torch.arange(n, device=x.device).expand_as(order))
    return take_rows(out.view(b, h, -1, out.shape[-1]), back)


def attend_balanced(
    q: Float[Tensor, "b h m d"], k: Float[Tensor, "b h n d"], v: Float[Tensor, "b h n e"],
    queries: Int[Tensor, "b h c w"], keys: Int[Tensor, "b h c u"],
    *, real_queries: Bool[Tensor, "b m"] | None = None, real_keys: Bool[Tensor, "b n"] | None = None,
    causal: bool, scale: float,
) -> Float[Tensor, "b h m e"]:  # fmt: skip
    """Each cluster's queries attend to its keys; a token's outputs are averaged over its clusters.

    When causal, queries are keys: a token sees earlier members, or itself when there is none.
    """
    b, h, m, _ = q.shape
    at_q, at_k = queries[..., :, None], keys[..., None, :]
    sees = torch.ones_like(at_q == at_k)
    if real_keys is not None:
        sees = sees & _real_at(real_keys, keys)[..., None, :]
    if causal:
        earlier = sees & (at_k < at_q)
        sees = earlier | sees & (at_k == at_q) & ~earlier.any(-1, keepdim=True)
    counts = sees.any(-1)
    if real_queries is not None:
        counts = counts & _real_at(real_queries, queries)
    sees = sees | ~sees.any(-1, keepdim=True)  # nobody's softmax is over nothing: such rows count for 0
    parts = (
        take_rows(rows, index.flatten(2)).unflatten(2, index.shape[2:]).flatten(0, 1)
        for rows, index in ((q, queries), (k, keys), (v, keys))
    )
    out = F.scaled_dot_product_attention(*parts, sees.flatten(0, 1), scale=scale)
    weight = counts.to(out.dtype).flatten(2)[..., None]
    rows = (torch.arange(b * h, device=q.device)[:, None] * m + queries.flatten(0, 1).flatten(1)).flatten()
    total = out.new_zeros(b * h * m, out.shape[-1] + 1).index_add(
        0, rows, torch.cat([out.view(b, h, -1, out.shape[-1]) * weight, weight], dim=-1).flatten(0, 2)
    )
    return (total[:, :-1] / total[:, -1:].clamp(min=1)).view(b, h, m, -1)


def take_rows(x: Float[Tensor, "b h n d"], index: Int[Tensor, "b h m"]) -> Float[Tensor, "b h m d"]:
    """Rows of x by index, head by head."""
    b, h, n, d = x.shape
    first = torch.arange(b * h, device=x.device).view(b, h, 1) * n
    return x.reshape(-1, d).index_select(0, (index + first).flatten()).view(b, h, -1, d)


def _real_at(real: Bool[Tensor, "b n"], index: Int[Tensor, "b h *w"]) -> Bool[Tensor, "b h *w"]:
    return real.gather(1, index.flatten(1)).view(index.shape)
