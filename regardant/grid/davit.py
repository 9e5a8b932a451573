"""Channel group attention (Ding et al., 2022, "DaViT", arXiv 2204.03645): channels are the tokens.

The channels of a map fall into groups of C_g; inside a group every channel is a token whose features are its
values at all N positions:

    A_g = softmax(Q_gᵀ K_g · s)   [C_g, C_g],     y_g = (A_g V_gᵀ)ᵀ   [N, C_g],     s = C_g^-½

so that a pair's score sums over the whole map, and cost is linear in N. The logits grow with N: with
`scale="tokens"`, s = N^-½, as later work has it, the same weights do at other sizes.

The released code names the roles otherwise: softmax((K_g C_g^-½)ᵀ V_g) is applied to Q_g. That is the same
layer with its three projections relabelled, as loading released weights does.

With many more positions than channels neither queries, keys nor values are made: with G = Xᵀ X

    Q_gᵀ K_g = W_q G W_kᵀ,      y W_oᵀ = X (Σ_g W_o A_g W_v)ᵀ

so that 2 N C² multiply-adds and some C³ do the work of 4 N C² and more. (Biases: X with a column of ones.)
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from regardant.core.errors import require, unknown
from regardant.core.grid_mixer import GridMixer
from regardant.core.product import Linear, replaceable
from regardant.core.supports import Supports

SCALES = ("dim", "tokens")
MORE = 2
"""So many times more positions than channels are many."""


class ChannelGroupAttention(GridMixer):
    """Attention among the channels of each of `heads` groups."""

    supports = Supports(
        causal=False, cross=False, causal_cross=False, step=False, pattern=False, padding=False,
        grouped=False, linear_in_values=False, time=1.0, memory=1.0, state=0.0,
    )  # fmt: skip

    def __init__(self, dim: int, heads: int, *, scale: Literal["dim", "tokens"] = "dim", bias: bool = True):
        super().__init__()
        require(heads >= 1 and dim % heads == 0, f"heads={heads} groups do not divide dim={dim} channels")
        if scale not in SCALES:
            raise unknown("scale", scale, SCALES)
        self.dim, self.heads, self.scale = dim, heads, scale
        self.to_qkv = Linear(dim, 3 * dim, bias=bias)
        self.to_out = Linear(dim, dim)

    def _scale(self, x: Tensor) -> float:
        counted = self.dim // self.heads if self.scale == "dim" else x.shape[1] * x.shape[2]
        return counted**-0.5

    def _project(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "qkv b g n d"]:
        return self.to_qkv(x.flatten(1, 2)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)

    def forward(self, x, *, record=None):
        self.check_map(x, self.to_qkv.weight)
        exact = x.dtype in (torch.float32, torch.float64)  # in half precision G would be rounded
        many = x.shape[1] * x.shape[2] >= MORE * self.dim
        if many and exact and replaceable(x, self.to_qkv, self.to_out):
            return self._by_sums(x.flatten(1, 2)).unflatten(1, x.shape[1:3])
        heard = channel_attention(*self._project(x), scale=self._scale(x))
        return self.to_out(heard.transpose(1, 2).flatten(2)).unflatten(1, x.shape[1:3])

    def _by_sums(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        weight, gram = self.to_qkv.weight, x.mT @ x
        if self.to_qkv.bias is not None:
            sums = x.sum(dim=1)
            last = torch.cat([sums, sums.new_full((len(x), 1), x.shape[1])], dim=1)
            gram = torch.cat([torch.cat([gram, sums[:, None]], dim=1), last[:, :, None]], dim=2)
            weight = torch.cat([weight, self.to_qkv.bias[:, None]], dim=1)
        asks, keys, values = weight.unflatten(0, (3, self.heads, -1))
        about = (gram @ keys.flatten(0, 1).mT).unflatten(2, (self.heads, -1)).transpose(1, 2)
        weights = (asks @ about * self._scale(x[:, None])).softmax(dim=-1)
        whole = self.to_out.weight @ (weights @ values).flatten(1, 2)
        whole, beside = whole.split([self.dim, whole.shape[2] - self.dim], dim=2)
        return torch.baddbmm(self.to_out.bias + beside.sum(dim=2)[:, None], x, whole.mT)

    def reference(self, x):
        self.check_map(x, self.to_qkv.weight)
        q, k, v = (part.mT for part in self._project(x))
        # Written as ordinary attention with channels for positions.
        heard = F.scaled_dot_product_attention(q, k, v, scale=self._scale(x)).mT
        return self.to_out(heard.transpose(1, 2).flatten(2)).unflatten(1, x.shape[1:3])


def channel_attention(
    q: Float[Tensor, "b g n d"], k: Float[Tensor, "b g n d"], v: Float[Tensor, "b g n d"], *, scale: float
) -> Float[Tensor, "b g n d"]:
    """Attention among the d channels of every group; what comes back is not transposed."""
    groups = q.shape[:2]
    q, k, v = (part.flatten(0, 1) for part in (q, k, v))
    logits = torch.baddbmm(q.new_empty(()), q.mT, k, beta=0, alpha=scale)
    return torch.bmm(v, logits.softmax(dim=-1).mT).unflatten(0, groups)
