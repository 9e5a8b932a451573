"""FFNified attention (Yun et al., "MetaMixer Is All You Need", 2024, arXiv 2406.02021): attention's frame of
query, key and value, with convolutions for its products and GELU for its softmax.

    MetaMixer:            y = (φ(Q(x) ⊛ K)) ⊛' V
    FFNified attention:   y = DW_V(GELU(DW_K(W_q x)))

K and V are depthwise kernels, learned and the same for every map: how well a neighbourhood fits the key
kernel is the coefficient with which the value kernel is laid down. Coefficients are not normalised (no
softmax, no 1/√d), nothing stands between the two convolutions but the activation, and nothing behind the
second.

`MetaMixer` takes any parts; attention and feed-forward layers are made of it as well. `FFNifiedAttention` is
what is left of the paper's layer for inference: its query projection is followed by a batch norm, and each
7×7 convolution is the sum of a 7×7 and a 3×3 one with batch norms of their own, while it is trained, which
the backbone's `fuse()` folds into these three layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from regardant.core.errors import require
from regardant.core.grid_geometry import GridPattern
from regardant.core.grid_mixer import GridMixer
from regardant.core.grid_position import on_channels_first
from regardant.core.pattern import Reach
from regardant.core.supports import Supports


@dataclass(frozen=True)
class Around(GridPattern):
    """At most `radius` away along either axis; what lies off the map does not count, nor shift anything."""

    radius: int = 1

    def allows(self, i, j, *, batch=None, head=None):
        (row, column), (other_row, other_column) = self.coordinates(i), self.coordinates(j)
        return ((row - other_row).abs() <= self.radius) & ((column - other_column).abs() <= self.radius)

    def reaches(self):
        return (Reach(self.radius, self.radius),) * 2

    def around(self, i):
        span = torch.arange(-self.radius, self.radius + 1, device=i.device)
        return [query[:, None] + span for query in self.coordinates(i)]


class MetaMixer(nn.Module):
    """value(activation(key(query(x)))): the frame, whatever the parts are."""

    def __init__(
        self, query: nn.Module, key: nn.Module, value: nn.Module, *, activation: nn.Module | None = None
    ):
        super().__init__()
        self.query, self.key, self.value = query, key, value
        self.activation = nn.GELU() if activation is None else activation

    def forward(self, x: Tensor) -> Tensor:
        return self.value(self.activation(self.key(self.query(x))))


class FFNifiedAttention(GridMixer):
    """A projection, a depthwise convolution for keys, GELU, and one for values; `kernel` is of both."""

    supports = Supports(
        causal=False, cross=False, causal_cross=False, step=False, pattern=False, padding=False,
        grouped=False, linear_in_values=False, time=1.0, memory=1.0, state=0.0,
    )  # fmt: skip

    def __init__(self, dim: int, *, kernel: int = 7, bias: bool = True):
        super().__init__()
        require(dim >= 1, f"dim is {dim}, but a layer is at least 1 wide")
        require(
            kernel >= 1 and kernel % 2 == 1,
            f"kernel is {kernel}, but it is centred on its position: make it odd and at least 1",
        )
        self.dim, self.kernel = dim, kernel
        self.to_q = nn.Linear(dim, dim, bias=bias)
        self.keys, self.values = (
            nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim, bias=bias) for _ in range(2)
        )

    def forward(self, x, *, record=None):
        self.check_map(x, self.to_q.weight)
        coefficients = F.gelu(on_channels_first(self.keys, self.to_q(x)))
        return on_channels_first(self.values, coefficients)

    def reference(self, x):
        self.check_map(x, self.to_q.weight)
        q = x @ self.to_q.weight.T + (0 if self.to_q.bias is None else self.to_q.bias)
        logits = _convolved(q, self.keys)
        coefficients = 0.5 * logits * (1 + torch.erf(logits / 2**0.5))
        return _convolved(coefficients, self.values)

    def receptive_field(self, *size):
        return Around(2 * (self.kernel // 2)).on(*size)


def _convolved(x: Float[Tensor, "b h w c"], kernels: nn.Conv2d) -> Float[Tensor, "b h w c"]:
    """Tap by tap: each is the whole map moved, times one number a channel."""
    (height, width), side = x.shape[1:3], kernels.kernel_size[0]
    half = side // 2
    padded = F.pad(x, (0, 0, half, half, half, half))
    total = torch.zeros_like(x) if kernels.bias is None else kernels.bias.expand_as(x)
    for i in range(side):
        for j in range(side):
            total = total + padded[:, i : i + height, j : j + width] * kernels.weight[:, 0, i, j]
    return total
