"""Positions: how a layer tells where a token stands.

A position acts in up to three places: on the input (`embed`), on queries and keys (`turn`), and on
the logits (`block`, a bias between index tensors). Each of the named ones uses one of them.
"""

from __future__ import annotations

from math import log2

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from regardant.core.errors import require, unknown


class Position(nn.Module):
    """No position at all, and the base of the others."""

    biases = False
    """Whether `block` has something to say."""
    stationary = False
    """Whether `block` depends on `i - j` alone, so that the tiles of a band can share one."""
    relates = False
    """Whether it relates queries to keys of the same sequence (and so means nothing across two)."""

    def embed(self, x: Float[Tensor, "b n c"], offset: int = 0) -> Float[Tensor, "b n c"]:
        return x

    def turn(self, q_or_k: Float[Tensor, "b h n d"], offset: int = 0) -> Float[Tensor, "b h n d"]:
        return q_or_k

    def block(self, i: Int[Tensor, "m"], j: Int[Tensor, "n"]) -> Float[Tensor, "h m n"]:
        raise TypeError(f"{type(self).__name__} adds nothing to the logits")


class Learned(Position):
    """A learned vector a position, added to the input; it knows `max_length` positions and no more."""

    def __init__(self, dim: int, max_length: int):
        super().__init__()
        self.table = nn.Parameter(torch.empty(max_length, dim))
        nn.init.normal_(self.table, std=0.02)

    def embed(self, x, offset=0):
        end, limit = offset + x.shape[1], len(self.table)
        require(
            end <= limit, f"the sequence reaches length {end}, but max_length={limit} positions are learned"
        )
        return x + self.table[offset:end]


class Rotary(Position):
    """Rotates pairs of channels by angles that grow with the position (Su et al., RoPE)."""

    relates = True

    def __init__(self, head_dim: int, base: float = 10000.0):
        super().__init__()
        require(head_dim % 2 == 0, f"head_dim is {head_dim}, but rotary positions turn pairs: make it even")
        self.base, self.head_dim = base, head_dim

    def turn(self, q_or_k, offset=0, *, stride: int = 1):
        """The first stands at `offset`, each next one `stride` positions on."""
        half, n = self.head_dim // 2, q_or_k.shape[-2]
        # Angles in float32 at least: at position 10,000 bfloat16 is off by more than a turn.
        exact = torch.promote_types(q_or_k.dtype, torch.float32)
        rate = self.base ** (-torch.arange(half, device=q_or_k.device, dtype=exact) / half)
        place = offset + stride * torch.arange(n, device=q_or_k.device, dtype=exact)
        angle = place[:, None] * rate
        cos, sin = angle.cos().to(q_or_k.dtype), angle.sin().to(q_or_k.dtype)
        first, second = q_or_k[..., :half], q_or_k[..., half:]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def alibi_slopes(heads: int) -> list[float]:
    """2^(-8h/H), h = 1…H, where H is a power of two, else the next lower one's and some of the next."""
    whole = 2 ** int(log2(heads))
    slopes = [2 ** (-8 * (head + 1) / whole) for head in range(whole)]
    return slopes + [2 ** (-4 * (2 * head + 1) / whole) for head in range(heads - whole)]


class Alibi(Position):
    """A penalty on the logits that grows with the distance, steeper for some heads (Press et al.)."""

    biases = relates = stationary = True

    def __init__(self, heads: int):
        super().__init__()
        self.register_buffer("slopes", torch.tensor(alibi_slopes(heads)), persistent=False)

    def block(self, i, j):
        return -self.slopes[:, None, None] * (i[:, None] - j[None, :]).abs()


class RelativeBias(Position):
    """A learned bias a head and a bucket of distances, the far ones in buckets of growing width (T5)."""

    biases = relates = stationary = True

    def __init__(self, heads: int, *, causal: bool, buckets: int = 32, farthest: int = 128):
        super().__init__()
        self.table = nn.Parameter(torch.empty(buckets, heads))
        nn.init.normal_(self.table, std=0.02)
        self.causal, self.farthest = causal, farthest

    def block(self, i, j):
        apart = i[:, None] - j[None, :]
        count = len(self.table)
        if self.causal:
            side, apart = 0, apart.clamp(min=0)
        else:
            count //= 2
            side, apart = (apart < 0) * count, apart.abs()
        near = count // 2
        growth = torch.log(apart.clamp(min=1).double() / near) / torch.log(
            torch.tensor(self.farthest / near, dtype=torch.double)
        )
        far = (near + (growth * (count - near)).long()).clamp(max=count - 1)
        bucket = side + torch.where(apart < near, apart, far)
        return self.table[bucket].permute(2, 0, 1)


KINDS = ("none", "rotary", "alibi", "relative", "learned")


def make_position(
    kind: str | Position | None, *, dim: int, heads: int, head_dim: int, causal: bool, max_length: int | None
) -> Position:
    """The position that a layer's configuration names."""
    if isinstance(kind, Position):
        return kind
    match kind:
        case None | "none":
            return Position()
        case "rotary":
            return Rotary(head_dim)
        case "alibi":
            return Alibi(heads)
        case "relative":
            return RelativeBias(heads, causal=causal)
        case "learned":
            require(
                max_length is not None, "position='learned' needs max_length, the longest sequence to come"
            )
            require(max_length >= 1, f"max_length is {max_length}, but a sequence is at least 1 long")
            return Learned(dim, max_length)
    raise unknown("position", str(kind), KINDS)
