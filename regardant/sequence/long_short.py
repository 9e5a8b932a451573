"""Long-Short Transformer (Zhu et al., "Long-Short Transformer: Efficient Transformers for Language and
Vision", 2021, arXiv:2107.02192).

One softmax over two kinds of keys: near ones as they are, and far ones compressed by a projection that is
made from the keys themselves,

    P = softmax over tokens of (K W_P), r columns        K̄ = Pᵀ K,  V̄ = Pᵀ V
    y_i = softmax(s q_i·[LN_s(K_near); LN_l(K̄)]) [LN_s(V_near); LN_l(V̄)]

The two are normed apart (over all heads), because means are shorter than what they are means of. A layer
that sees everything cuts the sequence into segments of `window` tokens; near is the own segment with half a
segment to either side, and all tokens are compressed together, into `rank` keys a head. A causal layer's near
keys are the last `window` tokens, and every `chunk` of tokens is compressed by itself, into `rank` keys; a
query sees those of whole chunks before its own, as far as `memory` tokens back, so that it costs the same at
every length. What differs from the official code: P comes from the keys, as in the paper, where theirs takes
the layer's input; no position is added to the compressed keys; near and far may overlap, as in theirs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from regardant.core.errors import require
from regardant.core.mixer import MultiHead, check_heads
from regardant.core.rule import HeadShape, Rule, causal_and_padding
from regardant.core.segments import softmax_over
from regardant.core.state import Cache, State
from regardant.core.supports import Supports


@dataclass
class LongShortState(State):
    """The near keys and values; those of the chunk that is not compressed yet; and the compressed ones."""

    near_keys: Cache
    near_values: Cache
    open_keys: Cache
    open_values: Cache
    far_keys: Cache
    far_values: Cache


class LongShortRule(Rule):
    """Softmax over near keys and compressed far ones."""

    supports = Supports(
        cross=False, causal_cross=False, pattern=False, grouped=False, linear_in_values=False,
        time=1.0, memory=1.0, state=0.0,
    )  # fmt: skip

    def __init__(self, heads: int, head_dim: int, *, window: int, rank: int, chunk: int, memory: int):
        super().__init__()
        for name, size in (("window", window), ("rank", rank), ("chunk", chunk), ("memory", memory)):
            require(size >= 1, f"{name} is {size}, but it is at least 1")
        self.window, self.rank, self.chunk, self.chunks = window, rank, chunk, -(-memory // chunk)
        self.projection = nn.Parameter(torch.empty(heads, head_dim, rank))
        nn.init.normal_(self.projection, std=head_dim**-0.5)
        self.near_norm, self.far_norm = (nn.LayerNorm(heads * head_dim) for _ in range(2))

    def forward(self, q, k, v, *, pattern=None, scale=None):
        causal, real = causal_and_padding(self, pattern)
        n = k.shape[2]
        real = q.new_ones(1, n, dtype=torch.bool) if real is None else real.reshape(-1, n)
        if not causal:
            far = self._compressed(k, v, real, size=n)
            half = self.window // 2
            cut = Cut(self.window, before=half, after=half)
        else:
            far = self._behind(*self._compressed(k, v, real, size=self.chunk))
            cut = Cut(self.chunk, before=self.window - 1, window=self.window)
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        near = (_exact(self._normed(self.near_norm, x)) for x in (k, v))
        return cut.attend(_exact(q) * scale, *near, real, *far).to(v.dtype)

    def _normed(self, norm: nn.LayerNorm, x: Float[Tensor, "b h n d"]) -> Float[Tensor, "b h n d"]:
        """Normed over the channels of all heads."""
        return norm(x.transpose(1, 2).flatten(2)).unflatten(-1, (x.shape[1], -1)).transpose(1, 2)

    def _compressed(self, k, v, real, *, size: int):
        """For every `size` tokens: `rank` normed keys and values [b, h, c, r, d]; whether there are any."""
        rest, kind = -k.shape[2] % size, k.dtype
        k, v = (F.pad(_exact(x), (0, 0, 0, rest)).unflatten(2, (-1, size)) for x in (k, v))
        real = F.pad(real, (0, rest)).unflatten(1, (-1, size))
        logits = (k @ _exact(self.projection)[:, None]).mT
        share = softmax_over(logits, real[:, None, :, None])
        far = (self._normed(self.far_norm, (share @ x).flatten(2, 3).to(kind)) for x in (k, v))
        far_k, far_v = (_exact(x).unflatten(2, (-1, self.rank)) for x in far)
        return far_k, far_v, real.any(dim=-1)

    def _behind(self, far_k, far_v, there):
        """For every chunk, the compressed keys and values of the last chunks before it."""
        count = there.shape[1]
        back = min(self.chunks, count)
        far_k, far_v = (
            F.pad(x, (0, 0, 0, 0, back, 0)).unfold(2, back, 1)[:, :, :count].movedim(-1, 3).flatten(3, 4)
            for x in (far_k, far_v)
        )
        there = F.pad(there, (back, 0)).unfold(1, back, 1)[:, :count]
        return far_k, far_v, there.repeat_interleave(self.rank, dim=-1)

    def reference(self, q, k, v, *, pattern=None, scale=None):
        """Near and far keys in one row of logits, with a mask written from the positions."""
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        causal, real = causal_and_padding(self, pattern)
        n, w, size = k.shape[2], self.window, self.chunk if causal else k.shape[2]
        real = q.new_ones(1, n, dtype=torch.bool) if real is None else real.reshape(-1, n)
        real, at = real.expand(len(q), n), torch.arange(n, device=q.device)
        far_k, far_v, far_seen = [], [], []
        for begin in range(0, n, size):
            its_k, its_v = (x[:, :, begin : begin + size] for x in (k, v))
            its = real[:, begin : begin + size]
            share = (its_k @ self.projection).masked_fill(~its[:, None, :, None], -torch.inf)
            share = share.softmax(2).nan_to_num(0.0).mT
            far_k.append(self._normed(self.far_norm, share @ its_k))
            far_v.append(self._normed(self.far_norm, share @ its_v))
            age = at // size - begin // size
            visible = (age >= 1) & (age <= self.chunks) if causal else age == age
            far_seen.append((visible & its.any(1)[:, None])[..., None].expand(-1, -1, self.rank))
        i, j = at[:, None], at
        near = (j <= i) & (i - j < w)
        if not causal:
            near = (j >= i // w * w - w // 2) & (j < (i // w + 1) * w + w // 2)
        seen = torch.cat([near & real[:, None], *far_seen], dim=-1)[:, None]
        keys = torch.cat([self._normed(self.near_norm, k), *far_k], dim=2)
        values = torch.cat([self._normed(self.near_norm, v), *far_v], dim=2)
        weights = (q @ keys.mT * scale).masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0.0)
        return weights @ values

    def start(self, shape: HeadShape, *, pattern=None, keys=None, values=None):
        if keys is None:
            lead = (shape.batch, shape.kv_heads, 0)
            keys, values = (
                torch.zeros(*lead, width, device=shape.device, dtype=shape.dtype)
                for width in (shape.head_dim, shape.value_dim)
            )
        n = keys.shape[2]
        whole = max(n - 1, 0) // self.chunk * self.chunk
        near = (self._normed(self.near_norm, x)[:, :, -self.window :] for x in (keys, values))
        far = [_exact(x[:, :, :0]) for x in (keys, values)]
        if whole:
            real = keys.new_ones(1, whole, dtype=torch.bool)
            *far, _ = self._compressed(keys[:, :, :whole], values[:, :, :whole], real, size=self.chunk)
            far = [x[:, :, -self.chunks :].flatten(2, 3) for x in far]
        return LongShortState(
            n, *(Cache(x, keep=self.window) for x in near), *(Cache(x[:, :, whole:]) for x in (keys, values)),
            *(Cache(x, keep=self.chunks * self.rank) for x in far),
        )  # fmt: skip

    def step(self, q, k, v, state, *, pattern=None, scale=None):
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        k, v = k[:, :, None], v[:, :, None]
        open_, far = (state.open_keys, state.open_values), (state.far_keys, state.far_values)
        if open_[0].rows.shape[2] == self.chunk:  # the chunk is behind us now
            real = k.new_ones(1, self.chunk, dtype=torch.bool)
            *more, _ = self._compressed(open_[0].rows, open_[1].rows, real, size=self.chunk)
            far = tuple(cache.append(x[:, :, 0]) for cache, x in zip(far, more))
            open_ = tuple(Cache(cache.rows[:, :, :0]) for cache in open_)
        open_ = tuple(cache.append(x) for cache, x in zip(open_, (k, v)))
        near = tuple(
            cache.append(self._normed(self.near_norm, x))
            for cache, x in zip((state.near_keys, state.near_values), (k, v))
        )
        keys, values = (torch.cat([_exact(a.rows), b.rows], dim=2) for a, b in zip(near, far))
        weights = (_exact(q)[:, :, None] @ keys.mT * scale).softmax(dim=-1)
        state = LongShortState(state.length + 1, *near, *open_, *far)
        return (weights @ values)[:, :, 0].to(q.dtype), state


@dataclass(frozen=True)
class Cut:
    """Queries in blocks of `size`, each with the keys of its block, `before` it and `after` it; of these a
    query sees the last `window`, or all."""

    size: int
    before: int
    after: int = 0
    window: int | None = None

    def attend(
        self, q: Float[Tensor, "b h n d"], k: Float[Tensor, "b h n d"], v: Float[Tensor, "b h n d"],
        real: Bool[Tensor, "#b n"], far_k: Float[Tensor, "b h #c f d"], far_v: Float[Tensor, "b h #c f d"],
        there: Bool[Tensor, "#b c*f"],
    ) -> Float[Tensor, "b h n d"]:  # fmt: skip
        """One softmax over the near keys and those that every block has besides."""
        n, size = q.shape[2], self.size
        sides, width = (self.before, self.after + -n % size), self.before + size + self.after
        k, v = (F.pad(x, (0, 0, *sides)).unfold(2, width, size).mT for x in (k, v))
        seen = F.pad(real, sides).unfold(1, width, size)[:, None, :, None]
        if self.window is not None:
            back = torch.arange(size, device=q.device)[:, None] - torch.arange(width, device=q.device)
            back = back + self.before
            seen = seen & (back >= 0) & (back < self.window)
        q = F.pad(q, (0, 0, 0, -n % size)).unflatten(2, (-1, size))
        there = (
            there.view(len(there), 1, -1, 1, far_k.shape[3])
            if there.ndim == 3
            else there[:, None, :, None, None]
        )
        lead = (len(q) if len(seen) + len(there) > 2 else 1, 1, q.shape[2], size)
        seen = torch.cat([seen.expand(*lead, -1), there.expand(*lead, far_k.shape[3])], dim=-1)
        logits = torch.cat([q @ k.mT, q @ far_k.mT], dim=-1)
        weights = softmax_over(logits, seen) * seen
        out = weights[..., :width] @ v + weights[..., width:] @ far_v
        return out.flatten(2, 3)[:, :, :n]


def _exact(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


class LongShort(MultiHead):
    """Attention to near keys and to `rank` compressed ones, of the whole or (causal) of every `chunk`."""

    supports = Supports(
        cross=False, causal_cross=False, pattern=False, grouped=False, linear_in_values=False,
        time=1.0, memory=1.0, state=0.0,
    )  # fmt: skip

    def __init__(
        self, dim: int, heads: int, *, causal: bool = False, window: int = 64, rank: int | None = None,
        chunk: int = 16, memory: int = 1024, head_dim: int | None = None, **shared,
    ):  # fmt: skip
        check_heads(dim, heads, None, head_dim)
        rank = (1 if causal else 16) if rank is None else rank
        rule = LongShortRule(
            heads, head_dim or dim // heads, window=window, rank=rank, chunk=chunk, memory=memory
        )
        super().__init__(dim, heads, causal=causal, head_dim=head_dim, rule=rule, **shared)
