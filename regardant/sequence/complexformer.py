"""ComplexFormer's head-specific complex attention ("ComplexFormer: Disruptively Advancing Transformer
Inference Ability via Head-Specific Complex Vector Attention", 2025, arXiv:2505.10222, later withdrawn).

Channels j and j + d/2 of a query or key are a complex number |q_j| e^{iφ_j}. Rotary positions turn it by an
angle; here every head first says what its own phase counts for, by an affine map of the difference:

    s_mn = Σ_j |q_mj| |k_nj| cos(δ_j (φ^q_mj - φ^k_nj) + b_j + (m - n) g_j)        g_j = 10000^(-2j/d)

with δ and b [d/2] learned by each head. The cosine falls apart into a part of the query and one of the key,

    q'_m = |q_m| e^{i(δ φ^q_m + b + m g)},   k'_n = |k_n| e^{i(δ φ^k_n + n g)},   s_mn = Re q'_m · conj(k'_n)

so that this is softmax attention on turned queries and keys, which are also what decoding keeps. δ = 1, b = 0
are rotary positions: so the layer starts, and so `from_dense` grows it out of a rotary one.

We had the abstract and a public implementation that names the paper, whose authors are not known to be the
paper's: this is a reading. What differs from that code: it builds s for all pairs and channels; it does not
scale (`scale=1.0` here) where we divide by √d; it starts δ at random (`initial="normal"`); it adds 1e-9 to
|q|², which lets gradients grow without bound near 0. A phase jumps from π to -π, and so does s where δ is no
whole number.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.core.mixer import MultiHead
from regardant.core.position import Rotary
from regardant.core.supports import Supports


def polar(x: Float[Tensor, "*n d"]) -> tuple[Float[Tensor, "*n d/2"], Float[Tensor, "*n d/2"]]:
    """Magnitude and phase of the numbers whose real parts are the first half of the channels.

    A phase's gradient grows as 1/|q|, which |q| makes up for; where a number is (nearly) 0, both are
    constants.
    """
    real, imaginary = x.chunk(2, dim=-1)
    square = real.square() + imaginary.square()
    still = square < torch.finfo(x.dtype).tiny
    magnitude = square.masked_fill(still, 1).sqrt().masked_fill(still, 0)
    return magnitude, torch.atan2(imaginary.masked_fill(still, 0), real.masked_fill(still, 1))


def cartesian(magnitude: Float[Tensor, "*n d"], phase: Float[Tensor, "*n d"]) -> Float[Tensor, "*n 2*d"]:
    return torch.cat([magnitude * phase.cos(), magnitude * phase.sin()], dim=-1)


class Complexformer(MultiHead):
    """Softmax attention of complex queries and keys, with a phase gain and a phase bias a head and channel.

    `initial` says how the gains start: at 1, which is rotary positions, or from a normal distribution.
    """

    supports = Supports(cross=False, causal_cross=False, grouped=False, time=2.0, memory=1.0, state=1.0)

    def __init__(
        self, dim: int, heads: int, *, initial: Literal["rotary", "normal"] = "rotary", base: float = 1e4,
        **shared,
    ):  # fmt: skip
        super().__init__(dim, heads, **shared)
        require(
            self.head_dim % 2 == 0,
            f"head_dim is {self.head_dim}, but two channels make a complex number",
        )
        require(
            not self.position.relates,
            f"position is {type(self.position).__name__}, but this layer turns positions in by itself",
        )
        require(initial in ("rotary", "normal"), f"initial is {initial!r}, but it is 'rotary' or 'normal'")
        self.base, half = base, self.head_dim // 2
        self.gain = nn.Parameter(torch.ones(heads, half))
        self.phase_bias = nn.Parameter(torch.zeros(heads, half))
        if initial == "normal":
            nn.init.normal_(self.gain, std=half**-0.5)

    @classmethod
    def from_dense(cls, layer: MultiHead, **config) -> Self:
        require(
            type(layer.position) is Rotary,
            f"the layer's position is {type(layer.position).__name__}, but what this grows out of is Rotary",
        )
        return super().from_dense(layer, **({"position": "none", "base": layer.position.base} | config))

    def angles(self, length: int, offset: int, like: Tensor) -> Float[Tensor, "n d/2"]:
        """What positions turn by, in float32 at least: far out, half precision is off by whole turns."""
        half = self.head_dim // 2
        rate = self.base ** (-torch.arange(half, device=like.device, dtype=like.dtype) / half)
        return torch.arange(offset, offset + length, device=like.device, dtype=like.dtype)[:, None] * rate

    def project(self, x, context=None, *, offset=0):
        q, k, v = super().project(x, context, offset=offset)
        exact = torch.promote_types(q.dtype, torch.float32)
        gain, bias = (each.to(exact)[:, None] for each in (self.gain, self.phase_bias))
        (long, turn), (key_long, key_turn) = polar(q.to(exact)), polar(k.to(exact))
        angles = self.angles(x.shape[1], offset, turn)
        q = cartesian(long, gain * turn + bias + angles).to(q.dtype)
        return q, cartesian(key_long, gain * key_turn + angles).to(k.dtype), v

    def reference(self, x, context=None, padding=None):
        """The equation with its five axes."""
        self.check_inputs(x, context, padding)
        q, k, v = super().project(x, context)
        (long, turn), (key_long, key_turn) = polar(q), polar(k)
        apart = turn[:, :, :, None] - key_turn[:, :, None]
        angles = self.angles(x.shape[1], 0, turn)
        between = self.gain[:, None, None] * apart + self.phase_bias[:, None, None]
        between = between + (angles[:, None] - angles[None])
        score = (long[:, :, :, None] * key_long[:, :, None] * between.cos()).sum(-1)
        score = score * (self.head_dim**-0.5 if self.scale is None else self.scale)
        pattern = self.visible(k.shape[2], across=False, padding=padding)
        if pattern is not None:
            at = torch.arange(x.shape[1], device=x.device)
            mask = pattern.block(at, at, batch=len(x), heads=self.heads)
            empty = ~mask.any(-1, keepdim=True)
            score = score.masked_fill(~(mask | empty), -torch.inf)
            return self.merge(score.softmax(-1).masked_fill(empty, 0) @ v, x=x)
        return self.merge(score.softmax(-1) @ v, x=x)
