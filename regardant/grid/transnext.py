"""Aggregated attention (Shi, 2023, "TransNeXt", arXiv 2311.17132): a fovea and a periphery under one softmax.

Position i sees the k × k positions around it as they are, and the whole map pooled to few positions:

    q̂ = q / |q|                q̃_i = (q̂_i + e) · softplus(τ) · ln n_i        n_i: how many keys i sees
    s_ij = q̃_i · k̂_j + b_{j-i}            j around i; b a number a head and place
    s_iJ = q̃_i · k̂_J + MLP(J - i)         J a pooled position, at the mean of the positions that it is of
    a_i = softmax over both                y_i = Σ_j (a_ij + q̂_i · t_{j-i} + c_{j-i}) v_j + Σ_J a_iJ v_J

e, τ, b, t and c are learned, for each head. What lies off the map is not seen and not counted: n_i is
smaller at a border. The learned tokens t act after the softmax, so that weights need not sum to one. The
pooled map is LN(mean(GELU(W x))), and its keys and values come from the same projection as those around i.

With a pooled map of fixed size, cost is linear in the positions; the authors divide each side of the map
(`reduction`) and make everything for one size of image, where here it follows the map. Offsets are those of
key minus query, the reverse of the released code's: loading released weights turns the first layer of the
MLP round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import expm1, log

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from regardant.core.checks import check_heads
from regardant.core.errors import require
from regardant.core.grid_attention import attend_groups, attend_plainly, joint_softmax
from regardant.core.grid_geometry import per_axis
from regardant.core.grid_mixer import GridMixer
from regardant.core.grid_near import near_logits, near_real, near_sums
from regardant.core.grid_position import LogSpacedBias, Pair, on_channels_first
from regardant.core.record import Record
from regardant.core.supports import Supports

TEMPERATURE = 1 / 0.24
"""What softplus(τ) begins at."""
PLACES = ("offsets", "down", "across")
"""What `LogSpacedBias.places` gives."""


class LengthScale(nn.Module):
    """Queries and keys of length one, and q̂ → q̃: an embedding that all queries share, a temperature, and the
    logarithm of how many keys are seen."""

    def __init__(self, heads: int, head_dim: int):
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(heads, head_dim))
        nn.init.trunc_normal_(self.embedding, std=0.02)
        self.temperature = nn.Parameter(torch.full((heads,), log(expm1(TEMPERATURE))))

    def unit(self, x: Float[Tensor, "b e n d"]) -> Float[Tensor, "b e n d"]:
        return F.normalize(x, dim=-1)

    def forward(self, q: Float[Tensor, "b e n d"], seen: Float[Tensor, "n"]) -> Float[Tensor, "b e n d"]:
        gain = F.softplus(self.temperature)[:, None] * seen.log()
        return (q + self.embedding[:, None]) * gain[..., None].to(q.dtype)


class AggregatedAttention(GridMixer):
    """Attention to the `window` × `window` positions around each one, and to the whole map pooled.

    `pool` are the sides of the pooled map; or else `reduction`: the map's sides divided by so much. `trained`
    are the sides of the map in training, which set the scale of the offsets at every size.
    """

    supports = Supports(
        causal=False, cross=False, causal_cross=False, step=False, pattern=False, padding=False,
        grouped=False, linear_in_values=False, time=1.0, memory=1.0, state=0.0,
    )  # fmt: skip

    def __init__(
        self, dim: int, heads: int, *, window: int = 3, pool: Pair | None = 7, reduction: int | None = None,
        trained: Pair = 14, bias: bool = True,
    ):  # fmt: skip
        super().__init__()
        check_heads(dim, heads, None, None)
        require(window >= 1 and window % 2 == 1, f"window is {window}, but it is odd, with a middle")
        require(
            (pool is None) != (reduction is None),
            f"pool is {pool} and reduction is {reduction}, but one of them is given and the other is None",
        )
        require(reduction is None or reduction >= 1, f"reduction is {reduction}, but it is at least 1")
        self.dim, self.heads, self.reach, self.reduction = dim, heads, window // 2, reduction
        self.pool = None if pool is None else per_axis(pool, 2, "pool")
        require(pool is None or min(self.pool) >= 1, f"pool is {pool}, but a map is at least 1 wide")
        self.to_q = nn.Linear(dim, dim, bias=bias)
        self.to_kv = nn.Linear(dim, 2 * dim, bias=bias)
        self.to_out = nn.Linear(dim, dim)
        self.scale = LengthScale(heads, dim // heads)
        self.to_pool, self.pool_norm = nn.Linear(dim, dim), nn.LayerNorm(dim)
        self.position = LogSpacedBias(heads, trained)
        self.near_bias = nn.Parameter(torch.empty(heads, window**2))
        nn.init.trunc_normal_(self.near_bias, std=0.0004)
        self.tokens = nn.Parameter(torch.empty(heads, dim // heads, window**2))
        nn.init.trunc_normal_(self.tokens, std=0.02)
        self.token_bias = nn.Parameter(torch.zeros(heads, window**2))

    def pooled_size(self, height: int, width: int) -> tuple[int, int]:
        """The sides of the pooled map; no longer than the map's."""
        if self.pool is None:
            return max(height // self.reduction, 1), max(width // self.reduction, 1)
        return min(self.pool[0], height), min(self.pool[1], width)

    def _project(
        self, x: Float[Tensor, "b n c"], pooled: Float[Tensor, "b p c"]
    ) -> tuple[Float[Tensor, "b e n d"], Sequence[Tensor], Sequence[Tensor]]:
        """Queries and keys of length one, and values; keys and values of the map and of the pooled one."""
        q = self.scale.unit(_by_heads(self.to_q(x), self.heads).contiguous())
        kv = _by_heads(self.to_kv(torch.cat([x, pooled], dim=1)), 2 * self.heads)
        k, v = kv.chunk(2, dim=1)
        parts = x.shape[1], pooled.shape[1]
        return q, self.scale.unit(k).split(parts, dim=2), v.split(parts, dim=2)

    def forward(self, x, *, record=None):
        self.check_map(x, self.to_q.weight)
        size, flat = x.shape[1:3], x.flatten(1, 2)
        pool = self.pooled_size(*size)
        hidden, seen, *places = self._surroundings(size, pool, record)
        pooled = F.gelu(self.to_pool(x))
        pooled = on_channels_first(lambda each: F.adaptive_avg_pool2d(each, pool), pooled)
        q, (k, far_k), (v, far_v) = self._project(flat, self.pool_norm(pooled).flatten(1, 2))
        scaled = self.scale(q, seen)

        near = near_logits(scaled, k, size, self.reach) + (self.near_bias[:, None] + hidden)
        far = scaled @ far_k.mT + self.position.at_places(*places)
        near, far = joint_softmax([near, far])
        if record is not None:
            record.note("near weights", near)
            record.note("far weights", far)
        near = near + (q @ self.tokens + self.token_bias[:, None])
        heard = near_sums(near, v, size) + far @ far_v
        return self.to_out(heard.transpose(1, 2).flatten(2)).view(x.shape)

    def _surroundings(
        self, size: tuple[int, int], pool: tuple[int, int], record: Record | None
    ) -> list[Tensor]:
        """-inf for what lies off the map [n, near], how many keys are seen [n], the places of pooled ones."""
        weight = self.to_q.weight

        def make() -> Iterable[Tensor]:
            real = near_real(size, self.reach, weight.device)
            hidden = torch.zeros_like(real, dtype=weight.dtype).masked_fill(~real, -torch.inf)
            seen = (real.sum(-1) + pool[0] * pool[1]).to(_exact(weight.dtype))
            return hidden, seen, *_places(self.position, size, pool)

        sizes = (size, pool, self.reach, self.position.trained, weight.dtype, weight.device)
        return _once(record, ("hidden", "seen", *PLACES), sizes, make)

    def reference(self, x):
        """Every pair of positions written out, and every pair with a pooled one."""
        self.check_map(x, self.to_q.weight)
        (height, width), flat = x.shape[1:3], x.flatten(1, 2)
        at = torch.arange(height * width, device=x.device)
        apart = [along[None, :] - along[:, None] for along in (at // width, at % width)]
        around = (apart[0].abs() <= self.reach) & (apart[1].abs() <= self.reach)
        place = (apart[0] + self.reach) * (2 * self.reach + 1) + apart[1] + self.reach
        place = place.masked_fill(~around, 0)
        down, across = (means(*each).to(x) for each in zip((height, width), self.pooled_size(height, width)))
        seen = (around.sum(1) + len(down) * len(across)).to(x.dtype)

        coarse = torch.einsum("ih,jw,bhwc->bijc", down, across, F.gelu(self.to_pool(x)))
        q, (k, far_k), (v, far_v) = self._project(flat, self.pool_norm(coarse).flatten(1, 2))
        scaled = self.scale(q, seen)
        there = torch.cartesian_prod(down @ torch.arange(height).to(x), across @ torch.arange(width).to(x))
        here = torch.stack([at // width, at % width], dim=-1)

        near = (scaled @ k.mT + self.near_bias[:, place]).masked_fill(~around, -torch.inf)
        far = scaled @ far_k.mT + self.position.at(there - here[:, None])
        near, far = joint_softmax([near, far])
        tokens = q @ self.tokens + self.token_bias[:, None]
        tokens = tokens.gather(-1, place.expand(*tokens.shape[:2], -1, -1))
        heard = (near + tokens.masked_fill(~around, 0)) @ v + far @ far_v
        return self.to_out(heard.transpose(1, 2).flatten(2)).unflatten(1, (height, width))


class LengthScaledAttention(GridMixer):
    """Attention to the whole map with the same queries, keys and bias, for where nothing is pooled."""

    supports = Supports(
        causal=False, cross=False, causal_cross=False, step=False, pattern=False, padding=False,
        grouped=False, time=2.0, memory=2.0, state=0.0,
    )  # fmt: skip

    def __init__(self, dim: int, heads: int, *, trained: Pair = 7, bias: bool = True):
        super().__init__()
        check_heads(dim, heads, None, None)
        self.dim, self.heads = dim, heads
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.to_out = nn.Linear(dim, dim)
        self.scale = LengthScale(heads, dim // heads)
        self.position = LogSpacedBias(heads, trained)

    def _project(self, x: Float[Tensor, "b n c"]) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled queries, keys of length one, and values: [b, heads, n, d]."""
        both, v = _by_heads(self.to_qkv(x), 3 * self.heads).split([2 * self.heads, self.heads], dim=1)
        q, k = self.scale.unit(both.contiguous()).chunk(2, dim=1)
        seen = torch.full(q.shape[2:3], q.shape[2], dtype=_exact(q.dtype), device=q.device)
        return self.scale(q, seen), k, v

    def forward(self, x, *, record=None):
        self.check_map(x, self.to_qkv.weight)
        size = x.shape[1:3]
        q, k, v = self._project(x.flatten(1, 2))
        sizes = (size, size, self.position.trained, q.dtype, q.device)
        places = _once(record, PLACES, sizes, lambda: _places(self.position, size, size))
        added = self.position.at_places(*places)
        heard = attend_groups(q, k, v, added=added[None].to(q.dtype), scale=1.0)
        return self.to_out(heard.transpose(1, 2).flatten(2)).unflatten(1, size)

    def reference(self, x):
        self.check_map(x, self.to_qkv.weight)
        size = x.shape[1:3]
        q, k, v = self._project(x.flatten(1, 2))
        heard = attend_plainly(q, k, v, None, size, position=self.position, scale=1.0)
        return self.to_out(heard.transpose(1, 2).flatten(2)).unflatten(1, size)


def _once(
    record: Record | None, names: Sequence[str], sizes: tuple, make: Callable[[], Iterable[Tensor]]
) -> list[Tensor]:
    """What follows from the sizes alone: made by the first layer of a stage, and handed on to the others."""
    handed = {} if record is None else record.handed
    keys = [f"{name} {sizes}" for name in names]
    if keys[0] not in handed:
        handed |= zip(keys, make(), strict=True)
    return [handed[key] for key in keys]


def _places(
    position: LogSpacedBias, size: tuple[int, int], pool: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Where the pooled positions stand as seen from all positions."""
    return position.places(
        *(pooled_places(length, count) - torch.arange(length)[:, None] for length, count in zip(size, pool))
    )


def _exact(dtype: torch.dtype) -> torch.dtype:
    """Numbers of keys, and logarithms of them, are more than halves tell apart."""
    return torch.promote_types(dtype, torch.float32)


def _by_heads(x: Float[Tensor, "b n c"], heads: int) -> Float[Tensor, "b e n d"]:
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def pooled_places(length: int, count: int) -> Float[Tensor, "p"]:
    """Where the means of `count` runs of a side stand, as adaptive pooling cuts it: at their middles."""
    runs = ((at * length // count, -(-(at + 1) * length // count)) for at in range(count))
    return torch.tensor([(first + beyond - 1) / 2 for first, beyond in runs])


def means(length: int, count: int) -> Float[Tensor, "p n"]:
    """The same runs as a matrix that takes their means."""
    at, place = torch.arange(count)[:, None], torch.arange(length)
    inside = (place >= at * length // count) & (place < -(-(at + 1) * length // count))
    return inside.double() / inside.sum(1, keepdim=True)
