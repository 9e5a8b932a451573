"""Neighbourhood attention in its parts (Hassani et al.): logits, softmax, values, each a tensor to hold.

    PN  logits_ij = q_i·k_j          for the K neighbours j of i, compact: [n, K]
    NN  out_i     = Σ_j w_ij v_j
    IN  grad_j    = Σ_{i: j ∈ N(i)} g_ij q_i     the transpose of NN, which makes the gradients of k and v

As matrix products over tiles: each axis is cut, residue class by residue class, into tiles of T positions;
a tile meets its halo, T + k - 1 positions away from the borders, in one dense product, of which the band
that is real is kept. That computes ((T + k - 1)/k)^r times the pairs that there are on r axes. Memory is
linear in the n·K weights, which the fused form never holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, prod

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from regardant.core.grid_pattern import Neighborhood
from regardant.core.pattern import Pattern


@dataclass(frozen=True)
class NeighborTiles:
    """Tile t holds the queries `rows[t]` and the keys `keys[t]`; entries are positions, void ones -1.

    `slots[t, r]` says where among the tile's keys the K neighbours of row r stand, in the order of the
    grid; `real` which of them there are.
    """

    rows: Int[Tensor, "t r"]
    keys: Int[Tensor, "t s"]
    slots: Int[Tensor, "t r K"]
    real: Bool[Tensor, "t r K"]

    @property
    def pairs(self) -> int:
        """Pairs that are computed."""
        return self.keys.numel() * self.rows.shape[1]

    def neighbors(self) -> Int[Tensor, "n K"]:
        """The neighbours of every position, -1 where there is none."""
        found = self.keys[:, None].expand(-1, self.rows.shape[1], -1).gather(2, self.slots)
        return self.in_order(found.masked_fill(~self.real, -1)[None, None])[0, 0]

    def in_order(self, tiled: Float[Tensor, "*b h t r x"]) -> Float[Tensor, "*b h n x"]:
        """Rows of tiles in the order of the positions."""
        flat = self.rows.flatten()
        inside = (flat >= 0).nonzero()[:, 0]
        return tiled.flatten(-3, -2).index_select(-2, inside[flat[inside].argsort()])

    def by_tile(self, x: Float[Tensor, "*b h n x"]) -> Float[Tensor, "*b h t r x"]:
        """The inverse; void rows repeat the first position's."""
        return _gather(x, self.rows)


def neighbor_tiles(near: Neighborhood, device: torch.device) -> NeighborTiles:
    """Tiles about as long as the kernel along each axis, on the grid that the neighbourhood is bound to."""
    axes = [_axis(*axis, device) for axis in near.axes]
    rank = len(axes)
    widths = [keys.shape[1] for _, keys, _, _ in axes]

    def across(parts: list[Tensor], strides: list[int], void: bool) -> Tensor:
        """Per axis [tiles, x, …] → all combinations, tiles first: Σ stride · part, -1 where one is void."""
        total, inside, inner = 0, True, parts[0].ndim - 1
        for axis, (part, stride) in enumerate(zip(parts, strides)):
            shape = [1] * (rank * (inner + 1))
            for level, length in enumerate(part.shape):
                shape[level * rank + axis] = length
            spread = part.reshape(shape)
            total, inside = total + stride * spread, inside & (spread >= 0)
        total = torch.where(inside, total, -1) if void else total
        for level in range(inner + 1):
            total = total.flatten(level, level + rank - 1)
        return total

    steps = [prod(near.bound[axis + 1 :]) for axis in range(rank)]
    places = [prod(widths[axis + 1 :]) for axis in range(rank)]
    rows, keys = (across([axis[which] for axis in axes], steps, True) for which in (0, 1))
    slots = across([axis[2].masked_fill(~axis[3], -1) for axis in axes], places, True)
    return NeighborTiles(rows, keys, slots.clamp(min=0), slots >= 0)


def _axis(length: int, kernel: int, dilation: int, is_causal: bool, device: torch.device):
    """Of one axis: rows [t, r] and keys [t, s] as coordinates, slots [t, r, k], and which slots are real."""
    longest = -(-length // dilation)
    side = min(max(kernel, 4), 32, longest)
    first = torch.arange(0, longest, side, device=device)
    place = first[:, None] + torch.arange(side, device=device)  # [t, r], inside a residue class
    rows = (place * dilation + torch.arange(dilation, device=device)[:, None, None]).flatten(0, 1)
    rows = rows.masked_fill(rows >= length, -1)
    start, place = Neighborhood.starts(rows.clamp(min=0), length, kernel, dilation, is_causal)
    residue = rows.amax(1, keepdim=True).clamp(min=0) % dilation
    members = (length - residue + dilation - 1) // dilation
    inside = rows >= 0
    low = start.clamp(min=0).masked_fill(~inside, longest).amin(1, keepdim=True)
    last = torch.minimum(place if is_causal else start + kernel - 1, members - 1)
    width = int((last.masked_fill(~inside, -1).amax(1, keepdim=True) - low).amax().clamp(min=0)) + 1
    low = torch.where(low < longest, low, 0)
    held = low + torch.arange(width, device=device)
    keys = (held * dilation + residue).masked_fill(held >= members, -1)
    wanted = start[..., None] + torch.arange(kernel, device=device)
    real = (wanted >= 0) & (wanted <= last[..., None]) & inside[..., None]
    return rows, keys, (wanted - low[..., None]).clamp(0, width - 1), real


def neighbor_logits(
    q: Float[Tensor, "b h n d"], k: Float[Tensor, "b g n d"], tiles: NeighborTiles
) -> Float[Tensor, "b h n K"]:
    """PN: every query with its neighbours' keys. Void entries hold no meaning."""
    return _Pairs.apply(q, k, tiles)


def neighbor_values(
    weights: Float[Tensor, "b h n K"], v: Float[Tensor, "b g n e"], tiles: NeighborTiles
) -> Float[Tensor, "b h n e"]:
    """NN: the neighbours' values, weighted. Weights of void entries must be zero."""
    return _Sums.apply(weights, v, tiles)


class _Pairs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, tiles):
        ctx.save_for_backward(q, k)
        ctx.tiles = tiles
        return _pairs(q, k, tiles)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        q, k = ctx.saved_tensors
        grad = grad * _there(ctx.tiles, grad)
        return _sums(grad, k, ctx.tiles), _transposed_sums(grad, q, k.shape[1], ctx.tiles), None


class _Sums(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weights, v, tiles):
        ctx.save_for_backward(weights, v)
        ctx.tiles = tiles
        return _sums(weights, v, tiles)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        weights, v = ctx.saved_tensors
        return _pairs(grad, v, ctx.tiles), _transposed_sums(weights, grad, v.shape[1], ctx.tiles), None


def _pairs(q: Tensor, k: Tensor, tiles: NeighborTiles) -> Tensor:
    """PN, as dense products of which the band is kept."""
    rows = _grouped(tiles.by_tile(q), k.shape[1])
    dense = (rows @ _gather(k, tiles.keys)[:, :, None].mT).flatten(1, 2)
    return tiles.in_order(dense.gather(-1, tiles.slots.expand(*dense.shape[:2], -1, -1, -1)))


def _sums(weights: Tensor, v: Tensor, tiles: NeighborTiles) -> Tensor:
    """NN, with the band laid out densely."""
    dense = _grouped(_dense(weights, tiles), v.shape[1])
    return tiles.in_order((dense @ _gather(v, tiles.keys)[:, :, None]).flatten(1, 2))


def _transposed_sums(weights: Tensor, x: Tensor, shared: int, tiles: NeighborTiles) -> Tensor:
    """IN: for every key, the rows that see it, weighted, over all heads that share it."""
    rows = tiles.by_tile(x).masked_fill((tiles.rows < 0)[..., None], 0)
    parts = (_grouped(_dense(weights, tiles), shared).mT @ _grouped(rows, shared)).sum(2)
    parts = parts.masked_fill((tiles.keys < 0)[..., None], 0).flatten(2, 3)
    out = x.new_zeros(len(x), shared, x.shape[2], x.shape[3])
    return out.index_add_(2, tiles.keys.clamp(min=0).flatten(), parts)


def _dense(weights: Tensor, tiles: NeighborTiles) -> Float[Tensor, "b h t r s"]:
    """Compact weights laid out over the keys of their tile."""
    tiled = tiles.by_tile(weights).masked_fill(~tiles.real, 0)
    dense = tiled.new_zeros(*tiled.shape[:-1], tiles.keys.shape[1])
    # Void entries point at slot 0 with a weight of 0, hence adding.
    return dense.scatter_add_(-1, tiles.slots.expand_as(tiled), tiled)


def _grouped(x: Float[Tensor, "b h *x"], shared: int) -> Float[Tensor, "b g r *x"]:
    """Query heads by the key head that they share."""
    return x.unflatten(1, (shared, -1))


def _gather(x: Float[Tensor, "*b h n x"], at: Int[Tensor, "t s"]) -> Float[Tensor, "*b h t s x"]:
    return x.index_select(-2, at.clamp(min=0).flatten()).unflatten(-2, tuple(at.shape))


def _there(tiles: NeighborTiles, like: Tensor) -> Bool[Tensor, "n K"]:
    return tiles.in_order(tiles.real[None, None])[0, 0].to(like.device)


def attend_unfused(
    q: Float[Tensor, "b h n d"], k: Float[Tensor, "b g n d"], v: Float[Tensor, "b g n e"],
    near: Neighborhood, pattern: Pattern, *, scale: float | None, offsets: object | None = None,
) -> Float[Tensor, "b h n e"]:  # fmt: skip
    """softmax(PN · scale + bias) through NN. `pattern` holds `near` and whatever else must be obeyed;
    `offsets` is a bias by the neighbour's place minus the query's, as in `OffsetBias`."""
    tiles, exact = neighbor_tiles(near, q.device), torch.promote_types(q.dtype, torch.float32)
    scale, dtype = q.shape[-1] ** -0.5 if scale is None else scale, q.dtype
    if q.device.type == "cpu":  # few CPUs multiply halves fast
        q, k, v = q.to(exact), k.to(exact), v.to(exact)
    logits = neighbor_logits(q * scale, k, tiles).to(exact)
    i, j = torch.arange(q.shape[2], device=q.device)[:, None], tiles.neighbors()
    if offsets is not None:
        apart = [
            key // dilation - query // dilation
            for query, key, (_, _, dilation, _) in zip(near.coordinates(i), near.coordinates(j), near.axes)
        ]
        logits = logits + offsets.at(apart).to(exact)
    sample = torch.arange(len(q), device=q.device).view(-1, 1, 1, 1)
    head = torch.arange(q.shape[1], device=q.device).view(-1, 1, 1)
    sees = (j >= 0) & pattern.allows(i, j.clamp(min=0), batch=sample, head=head)
    nobody = ~sees.any(-1, keepdim=True)
    weights = logits.masked_fill(~(sees | nobody), -inf).softmax(-1).masked_fill(~sees, 0)
    return neighbor_values(weights.to(v.dtype), v, tiles).to(dtype)
