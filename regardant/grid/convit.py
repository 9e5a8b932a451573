"""Gated positional self-attention (d'Ascoli et al., "ConViT: Improving Vision Transformers with Soft
Convolutional Inductive Biases", 2021, arXiv 2103.10697).

    A  = (1 - σ(λ)) softmax(q kᵀ / √d) + σ(λ) softmax(s)      a gate λ a head; two softmaxes, mixed after
    s  = w₁ δx + w₂ δy + w₃ (δx² + δy²)                       δ: where the key lies, seen from the query
    y  = W (A v)

A head begins as a tap of a convolution: with w = α (2 Δx, 2 Δy, -1) it is s = -α ‖δ - Δ‖² + constant, so
that the head looks at the one place Δ away; W_v begins as the identity and σ(λ) at 0.73. The √h × √h heads
have the places of a kernel of that side; heads beyond the largest square begin at random.

s is a sum over the axes, so its softmax over a map is a product of one over rows and one over columns: the
positional half takes n (height + width) steps and no map of n² is held. What differs from the official code:
this; the rows of A, which sum to one by themselves, are not divided by their sum; and s has no constant of
its own, which no softmax hears.
"""

from __future__ import annotations

from math import isqrt

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regardant.core.checks import check_heads
from regardant.core.errors import require
from regardant.core.grid_attention import attend_groups
from regardant.core.grid_mixer import GridMixer
from regardant.core.record import Record
from regardant.core.supports import Supports

X, Y, SQUARED = range(3)
WRITTEN = 64
"""Up to so many positions the map of weights is written out: less work than what there is to avoid it."""


class GatedPositionalAttention(GridMixer):
    """Attention by content and attention by place, mixed head by head.

    `locality` is α, how sharply the heads look at their places to begin with; None begins at random.
    """

    supports = Supports(
        causal=False, cross=False, causal_cross=False, step=False, pattern=False, padding=False,
        grouped=False, time=2.0, memory=1.0, state=0.0,
    )  # fmt: skip

    def __init__(self, dim: int, heads: int, *, locality: float | None = 1.0):
        super().__init__()
        check_heads(dim, heads, None, None)
        require(
            locality is None or locality > 0,
            f"locality is {locality}, but it is above 0, or None for a random beginning",
        )
        self.dim, self.heads, self.locality = dim, heads, locality
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim)
        self.position = nn.Parameter(torch.empty(heads, 3))
        """What s weighs each head's δx, δy and ‖δ‖² with."""
        self.gate = nn.Parameter(torch.empty(heads))
        self.begin()

    @torch.no_grad()
    def begin(self) -> None:
        """Gates, places and values as at the start of training: to be called after any other initialisation
        of the network around, which would take the identity away."""
        nn.init.ones_(self.gate)
        nn.init.trunc_normal_(self.position, std=0.02)
        if self.locality is None:
            return
        nn.init.eye_(self.to_qkv.weight[2 * self.dim :])
        side = isqrt(self.heads)
        taps = torch.arange(side**2, device=self.position.device)
        middle = (side - 1) / 2
        places = (taps // side - middle, taps % side - middle)
        for axis, place in zip((X, Y), places):
            self.position[: side**2, axis] = 2 * place.to(self.position)
        self.position[: side**2, SQUARED] = -1.0
        self.position.mul_(self.locality)

    @property
    def gates(self) -> Float[Tensor, " heads"]:
        """σ(λ): how much of each head's weight goes by place."""
        return self.gate.sigmoid()

    def by_place(self, apart: Float[Tensor, "3 n n"]) -> Float[Tensor, "heads n n"]:
        """softmax(s) of these δx, δy and ‖δ‖²."""
        return (
            (self.position.to(apart.dtype) @ apart.flatten(1)).unflatten(1, apart.shape[1:]).softmax(dim=-1)
        )

    def by_lines(self, height: int, width: int) -> tuple[Float[Tensor, "heads n n"], ...]:
        """The two factors of softmax(s): over the rows of a map and over its columns."""
        return tuple(self.by_place(_apart(*size, self.position)) for size in ((height, 1), (1, width)))

    def project(self, x: Float[Tensor, "b n c"]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [b, heads, n, d]."""
        q, k, v = self.to_qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v

    def forward(self, x, *, record=None):
        self.check_map(x, self.to_out.weight)
        size, (q, k, v) = x.shape[1:3], self.project(x.flatten(1, 2))
        gates = self.gates[:, None, None].to(v.dtype)
        if q.shape[2] <= WRITTEN:
            content = (q * q.shape[-1] ** -0.5 @ k.mT).softmax(dim=-1)
            placed = self.by_place(_apart_once(*size, self.position, record))
            heard = torch.lerp(content, placed.to(v.dtype), gates) @ v
        else:
            rows, columns = (factor.to(v.dtype) for factor in self.by_lines(*size))
            heard = torch.lerp(attend_groups(q, k, v), _mixed(rows, columns, v), gates)
        return self.to_out(heard.transpose(1, 2).flatten(2)).view(x.shape)

    def weights(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b heads n n"]:
        """A, written out."""
        q, k, _ = self.project(x.flatten(1, 2))
        content = (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)
        apart = _apart(*x.shape[1:3], self.position)
        placed = torch.einsum("hs,sij->hij", self.position.to(apart.dtype), apart).softmax(dim=-1)
        gates = self.gates[:, None, None]
        return (1 - gates) * content + gates * placed

    def reference(self, x):
        self.check_map(x, self.to_out.weight)
        *_, v = self.project(x.flatten(1, 2))
        heard = self.weights(x) @ v
        return self.to_out(heard.transpose(1, 2).flatten(2)).unflatten(1, x.shape[1:3])

    def distances(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, " heads"]:
        """How far from its query each head's weight lies, in positions, in the mean over queries."""
        apart = _apart(*x.shape[1:3], self.position)[SQUARED].sqrt()
        return (self.weights(x) * apart).sum(dim=-1).mean(dim=(0, 2))


def _mixed(
    rows: Float[Tensor, "heads y y"], columns: Float[Tensor, "heads x x"], v: Float[Tensor, "b heads yx d"]
) -> Float[Tensor, "b heads yx d"]:
    """Values under the product of the two factors, one after the other: each meets whole lines at once."""
    height, width = len(rows[0]), len(columns[0])
    across = rows @ v.unflatten(2, (height, width)).flatten(3)
    across = across.unflatten(3, (width, -1)).transpose(2, 3).flatten(3)
    return (columns @ across).unflatten(3, (height, -1)).transpose(2, 3).flatten(2, 3)


def _apart(height: int, width: int, like: Tensor) -> Float[Tensor, "3 n n"]:
    """δx, δy and ‖δ‖² of all pairs of positions in rows, in float32 at least."""
    exact = torch.promote_types(like.dtype, torch.float32)
    at = torch.arange(height * width, device=like.device)
    x, y = ((along - along[:, None]).to(exact) for along in (at % width, at // width))
    return torch.stack([x, y, x**2 + y**2])


def _apart_once(height: int, width: int, like: Tensor, record: Record | None) -> Float[Tensor, "3 n n"]:
    """The same, which the first layer of a pass hands to the others."""
    if record is None:
        return _apart(height, width, like)
    name = f"{height}×{width} positions apart, {like.dtype} on {like.device}"
    if name not in record.handed:
        record.handed[name] = _apart(height, width, like)
    return record.handed[name]
