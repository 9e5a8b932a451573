"""Injective linear attention (Han et al., "Bridging the Divide: Reconsidering Softmax and Linear Attention",
2024, arXiv 2412.06590): weights that sum to one by a subtraction, not by a division.

    a_ij = s φ(q_i)·φ(k_j)/n - (1/n) Σ_m s φ(q_i)·φ(k_m)/n + 1/n        s = 1/√d
    y_i  = W₀ (Σ_j a_ij v_j + Σ_t r_t v_{i+t})                           t over the 3×3 positions around i
    r    = W₂ GELU(W₁ mean_m x_m)                                        one 3×3 kernel a sample and channel

Divided linear attention gives a query and its double the same weights; these tell them apart, may be
negative, and cost O(n d²) a head, since Σ_j a_ij v_j = v̄ + s Σ_j φ(q_i)·(φ(k_j) - k̄) (v_j - v̄) / n: the query
times the covariance of keys and values. The paper leaves out the factor s/n; its code has it, and without it
weights grow with the map. W₁ and W₂ have one block a head; there is no other position.

With `window` all of it, the mean for the kernels too, happens inside windows. Unlike the released code, those
that stick out of the map count the positions on it only, windows are never shifted (released models
have windows as large as their maps, where a shift is none), and maps need not be square.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from regardant.core.checks import check_heads, under_autocast
from regardant.core.errors import require, unknown
from regardant.core.grid_geometry import per_axis
from regardant.core.grid_groups import Groups, groups_of
from regardant.core.grid_mixer import GridMixer
from regardant.core.grid_pattern import Window2d
from regardant.core.supports import Supports

FEATURES = {
    "identity": lambda x: x,
    "relu": F.relu,
    "leaky": F.leaky_relu,
    "exp": lambda x: (0.2 * x).exp(),
}


class InLineAttention(GridMixer):
    """Injective linear attention, of the whole map or inside windows, and convolutions made for the map."""

    supports = Supports(
        causal=False, cross=False, causal_cross=False, step=False, pattern=False, padding=False,
        grouped=False, linear_in_values=False, time=1.0, memory=1.0, state=0.0,
    )  # fmt: skip

    def __init__(
        self, dim: int, heads: int, *, window: int | tuple[int, int] | None = None,
        features: Literal["identity", "relu", "leaky", "exp"] = "identity", local: bool = True,
        bias: bool = True,
    ):  # fmt: skip
        super().__init__()
        check_heads(dim, heads, None, None)
        if features not in FEATURES:
            raise unknown("features", features, FEATURES)
        self.dim, self.heads, self.scale, self.features = dim, heads, (dim // heads) ** -0.5, features
        self.window = None if window is None else per_axis(window, 2, "window")
        require(
            self.window is None or min(self.window) >= 1, f"window is {window}, but it is at least 1 wide"
        )
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.to_out = nn.Linear(dim, dim)
        self.local = LocalKernels(dim, heads) if local else None

    def receptive_field(self, *size):
        return None if self.window is None else Window2d(self.window).on(*size)

    def forward(self, x, *, record=None):
        self.check_map(x, self.to_qkv.weight)
        groups = groups_of(self.receptive_field(*x.shape[1:3]), x.shape[1:3])
        cells = groups.cut(x)
        real = None if groups.padded == groups.size else _real(groups, cells)
        count = groups.positions if real is None else real.sum(dim=1, keepdim=True)
        mean = cells.sum(dim=1, keepdim=True) / count
        attend = self._folded if self._folds(cells) else self._by_head
        heard, v = attend(cells, mean, real, count)
        if self.local is not None:
            kernels = self.local(mean[:, 0])
            heard = heard + convolved(v.unflatten(1, groups.cell), kernels).flatten(1, 2)
        return groups.join(self.to_out(heard))

    def _folds(self, cells: Tensor) -> bool:
        """Whether one product of weights a sample is cheaper than queries and keys, and as exact."""
        return (
            self.features == "identity"
            and cells.shape[1] >= self.dim
            and cells.dtype in (torch.float32, torch.float64)
            and not under_autocast(cells.device.type)
        )

    def _by_head(self, x: Tensor, mean: Tensor, real: Tensor | None, count) -> tuple[Tensor, Tensor]:
        """What is heard, and the values."""
        q, k, v = self.to_qkv(x).chunk(3, dim=-1)
        q, k = FEATURES[self.features](q), FEATURES[self.features](k)
        if real is not None:
            # What fills the map up is a projection of zeros, which counts neither as a key nor as a value.
            k, v = k * real, v * real
        return centred_attention(q, k, v, heads=self.heads, count=count, scale=self.scale), v

    def _folded(self, x: Tensor, mean: Tensor, real: Tensor | None, count) -> tuple[Tensor, Tensor]:
        """The same where queries and keys are linear in x: y = x P + b_q M + v̄, with M = s W_kᵀ cov(x, v) and
        P = W_q M, head by head; no position's query or key is ever made."""
        of_qk, of_v = self.to_qkv.weight.split((2 * self.dim, self.dim))
        bias = self.to_qkv.bias
        v = F.linear(x, of_v, None if bias is None else bias[2 * self.dim :])
        v = v if real is None else v * real
        mean_v = v.sum(dim=1, keepdim=True) / count
        together = (x.mT @ v) / count - mean.mT @ mean_v
        of_q, of_k = of_qk.unflatten(0, (2, self.heads, -1))
        # [h, d, c] times [b, h, c, d]
        matrix = of_k @ together.unflatten(-1, (self.heads, -1)).transpose(1, 2) * self.scale
        product = (of_q.mT @ matrix).transpose(1, 2).flatten(2)
        if bias is not None:
            of_bias = bias[: self.dim].unflatten(0, (self.heads, 1, -1)) @ matrix
            mean_v = mean_v + of_bias.transpose(1, 2).flatten(2)
        return torch.baddbmm(mean_v, x, product), v

    def reference(self, x):
        self.check_map(x, self.to_qkv.weight)
        height, width = x.shape[1:3]
        down, across = (height, width) if self.window is None else self.window
        rows = [
            torch.cat([self._written(part) for part in row.split(across, dim=2)], dim=2)
            for row in x.split(down, dim=1)
        ]
        return torch.cat(rows, dim=1)

    def _written(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        """One window, every weight and every tap written out."""
        height, width = x.shape[1:3]
        q, k, v = self.to_qkv(x.flatten(1, 2)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = FEATURES[self.features](q), FEATURES[self.features](k)
        count = height * width
        products = q @ k.mT * (self.scale / count)
        weights = products - products.mean(dim=-1, keepdim=True) + 1 / count
        heard = (weights @ v).transpose(1, 2).flatten(2).unflatten(1, (height, width))
        if self.local is not None:
            kernels = self.local(x.mean(dim=(1, 2)))
            around = F.pad(v.transpose(1, 2).flatten(2).unflatten(1, (height, width)), (0, 0, 1, 1, 1, 1))
            for row in range(3):
                for column in range(3):
                    tap = kernels[:, None, None, :, row, column]
                    heard = heard + tap * around[:, row : row + height, column : column + width]
        return self.to_out(heard)


class HeadwiseLinear(nn.Conv1d):
    """A linear layer with one block a head: what a grouped convolution is to one position, as one product."""

    def __init__(self, before: int, after: int, heads: int):
        super().__init__(before, after, 1, groups=heads)

    def forward(self, x: Float[Tensor, "b c"]) -> Float[Tensor, "b d"]:
        blocks = self.weight[..., 0].unflatten(0, (self.groups, -1))
        heard = torch.einsum("bhi,hoi->bho", x.unflatten(-1, (self.groups, -1)), blocks)
        return heard.flatten(1) + self.bias


class LocalKernels(nn.Module):
    """From the mean of a map, a 3×3 kernel for each of its channels; a block of weights a head."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.first, self.second = HeadwiseLinear(dim, dim, heads), HeadwiseLinear(dim, 9 * dim, heads)

    def forward(self, mean: Float[Tensor, "b c"]) -> Float[Tensor, "b c 3 3"]:
        return self.second(F.gelu(self.first(mean))).unflatten(1, (-1, 3, 3))


def _real(groups: Groups, like: Tensor) -> Float[Tensor, "b*g n 1"]:
    """One for the positions on the map, zero for what fills it up."""
    ones = torch.ones(1, *groups.size, 1, dtype=like.dtype, device=like.device)
    cells = groups.cut(ones)
    return cells.repeat(len(like) // len(cells), 1, 1)


def centred_attention(
    q: Float[Tensor, "b n c"], k: Float[Tensor, "b n c"], v: Float[Tensor, "b n c"], *, heads: int,
    count: int | Float[Tensor, "b 1 1"], scale: float,
) -> Float[Tensor, "b n c"]:  # fmt: skip
    """v̄ + scale · q cov(k, v), head by head; `count` positions are real, the others' k and v are zero."""
    # A mean of all positions would count those that fill the map up; it is a sum that float16 can hold.
    share = k.shape[1] / count
    mean_k, mean_v = k.mean(dim=1, keepdim=True) * share, v.mean(dim=1, keepdim=True) * share
    q, k, v, mean_k, mean_v = (
        part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v, mean_k, mean_v)
    )
    count = count if isinstance(count, int) else count[..., None]
    if k.dtype in (torch.float16, torch.bfloat16):
        # Few digits: centred before the sum, and each factor takes the root of what divides it.
        together = ((k - mean_k) / count**0.5).mT @ (v / count**0.5)
    else:
        together = k.mT @ v / count - mean_k.mT @ mean_v
    return (q @ (together * scale) + mean_v).transpose(1, 2).flatten(2)


def convolved(v: Float[Tensor, "b h w c"], kernels: Float[Tensor, "b c 3 3"]) -> Float[Tensor, "b h w c"]:
    """Each channel of each sample with its own kernel; zeros around the map. One convolution for all: the
    samples become channels."""
    batch, height, width, dim = v.shape
    side_by_side = v.permute(1, 2, 0, 3).reshape(1, height, width, batch * dim).permute(0, 3, 1, 2)
    heard = F.conv2d(side_by_side, kernels.reshape(batch * dim, 1, 3, 3), padding=1, groups=batch * dim)
    return heard.permute(0, 2, 3, 1).reshape(height, width, batch, dim).permute(2, 0, 1, 3)
