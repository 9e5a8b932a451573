"""Squeeze-and-excitation (Hu et al., "Squeeze-and-Excitation Networks", 2018, arXiv 1709.01507).

    z = mean over positions of x
    y = x · σ(W₂ relu(W₁ z))

W₁ makes the channels `reduction` times fewer, but leaves one at least; both layers have biases.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.core.gate import Gate
from regardant.core.supports import Supports


class SqueezeExcitation(Gate):
    """Weighs each channel by all channels' means, through a bottleneck."""

    supports = Supports(
        causal=False, cross=False, causal_cross=False, step=False, pattern=False, padding=False,
        grouped=False, time=1.0, memory=1.0, state=0.0,
    )  # fmt: skip

    def __init__(self, channels: int, *, reduction: int = 16):
        super().__init__()
        require(channels >= 1, f"channels is {channels}, but a map has at least 1")
        require(reduction >= 1, f"reduction is {reduction}, but the bottleneck is no wider than the map")
        narrow = max(channels // reduction, 1)
        self.channels = channels
        self.narrow, self.widen = nn.Linear(channels, narrow), nn.Linear(narrow, channels)

    def weights(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c 1 1"]:
        return self.widen(self.narrow(x.mean(dim=(2, 3))).relu()).sigmoid()[:, :, None, None]

    def reference(self, x):
        self.check_map(x)
        pooled = x.sum(dim=(2, 3)) / (x.shape[2] * x.shape[3])
        hidden = (pooled @ self.narrow.weight.T + self.narrow.bias).clamp(min=0)
        logits = hidden @ self.widen.weight.T + self.widen.bias
        return x / (1 + torch.exp(-logits))[:, :, None, None]
