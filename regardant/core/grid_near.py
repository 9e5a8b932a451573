"""The square of positions around every position of a map, cut off at the border: logits and weighted sums.

    logits[i, δ] = q_i · k_{i+δ}        sums[i] = Σ_δ w[i, δ] v_{i+δ}        |δ| ≤ `reach` along each axis

What lies off the map counts as zeros; `near_real` says which δ lie on it. (Squares that shift at the border,
as NATTEN's do, are those of `regardant.core.neighborhood_unfused`.)

As products over tiles: T × T queries meet all (T + 2 reach)² positions of the tile and its halo at once, and
the band of pairs that are near is kept. The band is a view: one query along is one key along. The gradients
are the same two operations, the weights seen from the keys' side.

They are operations of their own for torch, so that whoever counts multiply-adds counts the pairs that there
are, and not those of the tiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import isqrt, prod

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad
from torch.utils.flop_counter import register_flop_formula

from regardant.core.errors import require

LONGEST = 8
"""Queries along the side of a tile, at most."""
Size = tuple[int, int]


def near_logits(
    q: Float[Tensor, "b e n d"], k: Float[Tensor, "b e n d"], size: Size, reach: int
) -> Float[Tensor, "b e n near"]:
    """Every query with the keys of the (2 reach + 1)² positions around it, row by row, on a map of this size;
    0 off the map."""
    require(reach >= 0, f"reach is {reach}, but it is at least 0")
    return _Logits.apply(q, k, *size, reach)


def near_sums(
    weights: Float[Tensor, "b e n near"], v: Float[Tensor, "b e n d"], size: Size
) -> Float[Tensor, "b e n d"]:
    """The values around every position, weighted; weights off the map meet zeros."""
    return _Sums.apply(weights, v, *size)


def near_real(size: Size, reach: int, device: torch.device | str = "cpu") -> Bool[Tensor, "n near"]:
    """Which of the positions around each one lie on the map."""
    steps = 2 * reach + 1
    real = pad(torch.ones(size, dtype=torch.bool, device=device), (reach,) * 4)
    return real.unfold(0, steps, 1).unfold(1, steps, 1).reshape(-1, steps**2)


@dataclass(frozen=True)
class _Tiles:
    """How a map of `size` is cut: `count` tiles of `side` queries, down and across; `wide` is a side with its
    halo, and `spare` what the last tiles have too much."""

    size: Size
    reach: int
    count: Size
    side: Size
    wide: Size
    spare: Size

    @staticmethod
    @cache
    def of(height: int, width: int, reach: int) -> _Tiles:
        count = -(-height // LONGEST), -(-width // LONGEST)
        side = -(-height // count[0]), -(-width // count[1])
        spare = count[0] * side[0] - height, count[1] * side[1] - width
        return _Tiles((height, width), reach, count, side, (side[0] + 2 * reach, side[1] + 2 * reach), spare)

    def cut(self, x: Float[Tensor, "b e n d"], halo: int) -> Float[Tensor, "bet m d"]:
        """The positions of each tile and of `halo` around it, a matrix for each sample, head and tile."""
        batch, heads, _, dim = x.shape
        if halo or any(self.spare):
            x = x.view(batch, heads, *self.size, dim)
            x = pad(x, (0, 0, halo, halo + self.spare[1], halo, halo + self.spare[0]))
        wide = [side + 2 * halo for side in self.side]
        if self.count != (1, 1):
            x = x.view(
                batch, heads, *(count * side + 2 * halo for count, side in zip(self.count, self.side)), dim
            )
            x = (
                x.unfold(2, wide[0], self.side[0])
                .unfold(3, wide[1], self.side[1])
                .permute(0, 1, 2, 3, 5, 6, 4)
            )
        return x.reshape(-1, wide[0] * wide[1], dim)

    def real(self, x: Float[Tensor, "b e i y j x *d"]) -> Float[Tensor, "b e n c"]:
        """Tiles in the order of the map, without what is spare."""
        whole = [count * side for count, side in zip(self.count, self.side)]
        if not any(self.spare):
            return x.reshape(*x.shape[:2], prod(whole), prod(x.shape[6:]))
        x = x.reshape(*x.shape[:2], *whole, prod(x.shape[6:]))
        return x[:, :, : self.size[0], : self.size[1]].flatten(2, 3)

    def band(self, dense: Float[Tensor, "bet m s"], heads: int) -> Float[Tensor, "b e i y j x p r"]:
        """The pairs that are near, as a view: tile, query and step down, and the same across."""
        dense = dense.view(-1, heads, *self.count, *self.side, *self.wide)
        b, e, i, j, y, x, p, r = dense.stride()
        steps = 2 * self.reach + 1
        shape = (len(dense), heads, self.count[0], self.side[0], self.count[1], self.side[1], steps, steps)
        return dense.as_strided(shape, (b, e, i, y + p, j, x + r, p, r))

    def spread(self, weights: Float[Tensor, "b e n near"], *, turned: bool) -> Float[Tensor, "bet m s"]:
        """Weights of near pairs among all pairs of the tiles, where the others are zero. `turned`: for
        position j and step δ the weight that j + δ has for j."""
        batch, heads, _, near = weights.shape
        steps, (below, right) = isqrt(near), self.spare
        weights = weights.view(batch, heads, *self.size, steps, steps)
        if turned:
            far = self.reach
            wide = pad(weights, (0, 0, 0, 0, far, far + right, far, far + below))
            b, e, y, x, p, r = wide.stride()
            shape = (batch, heads, self.size[0] + below, self.size[1] + right, steps, steps)
            weights = wide.as_strided(shape, (b, e, y, x, y - p, x - r), (steps - 1) * (p + r))
        elif below or right:
            weights = pad(weights, (0, 0, 0, 0, 0, right, 0, below))
        dense = weights.new_zeros(batch * heads * prod(self.count), prod(self.side), prod(self.wide))
        band = self.band(dense, heads)
        band.copy_(weights.view(band.shape))
        return dense


torch.library.define(
    "regardant::near_logits", "(Tensor q, Tensor k, int height, int width, int reach) -> Tensor"
)
torch.library.define(
    "regardant::near_sums", "(Tensor weights, Tensor v, int height, int width, bool turned) -> Tensor"
)


@torch.library.impl("regardant::near_logits", "CompositeExplicitAutograd")
def _in_tiles(q: Tensor, k: Tensor, height: int, width: int, reach: int) -> Tensor:
    tiles = _Tiles.of(height, width, reach)
    dense = torch.bmm(tiles.cut(q, 0), tiles.cut(k, reach).mT)
    return tiles.real(tiles.band(dense, q.shape[1]))


@torch.library.impl("regardant::near_sums", "CompositeExplicitAutograd")
def _over_tiles(weights: Tensor, v: Tensor, height: int, width: int, turned: bool) -> Tensor:
    tiles = _Tiles.of(height, width, isqrt(weights.shape[-1]) // 2)
    parts = torch.bmm(tiles.spread(weights, turned=turned), tiles.cut(v, tiles.reach))
    return tiles.real(parts.view(-1, v.shape[1], *tiles.count, *tiles.side, v.shape[-1]).transpose(3, 4))


@register_flop_formula(torch.ops.regardant.near_logits)
def _operations_of_logits(q_shape, k_shape, height, width, reach, *_, **__) -> int:
    return 2 * prod(q_shape) * (2 * reach + 1) ** 2


@register_flop_formula(torch.ops.regardant.near_sums)
def _operations_of_sums(weights_shape, v_shape, *_, **__) -> int:
    return 2 * prod(v_shape) * weights_shape[-1]


_LOGITS, _SUMS = torch.ops.regardant.near_logits.default, torch.ops.regardant.near_sums.default


def _alike(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Of one type: autocast makes some of the tensors halves, and not all."""
    if first.dtype == second.dtype:
        return first, second
    exact = torch.promote_types(first.dtype, second.dtype)
    return first.to(exact), second.to(exact)


class _Logits(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, height, width, reach):
        ctx.save_for_backward(q, k)
        ctx.size = height, width
        return _LOGITS(*_alike(q, k), height, width, reach)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        q, k = ctx.saved_tensors
        by_q = _SUMS(*_alike(grad, k), *ctx.size, False)
        return by_q, _SUMS(*_alike(grad, q), *ctx.size, True), None, None, None


class _Sums(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weights, v, height, width):
        ctx.save_for_backward(weights, v)
        ctx.size = height, width
        return _SUMS(*_alike(weights, v), height, width, False)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        weights, v = ctx.saved_tensors
        by_weight = _LOGITS(*_alike(grad, v), *ctx.size, isqrt(weights.shape[-1]) // 2)
        return by_weight, _SUMS(*_alike(weights, grad), *ctx.size, True), None, None
