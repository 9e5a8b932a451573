"""Efficient channel attention (Wang et al., 2020, arXiv 1910.03151).

    z = mean over positions of x                                [b, c]
    w = σ(conv₁ₓₖ(z))      one kernel slid along the channels, zeros beyond the ends, no bias
    y = x · w

A channel is weighted by itself and its k - 1 nearest channels: k parameters in all, where
squeeze-and-excitation has two dense layers around a bottleneck. The kernel grows with the channels,

    t = int(|log₂(c) + 1| / 2),   k = t if t is odd else t + 1

as the released code computes it (truncate, then make odd upward). The released ResNets are given their
kernels by hand (3 in every stage) and do not use the rule; pass `kernel=3` for those.
"""

from __future__ import annotations

from math import log2

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv1d, pad

from regardant.core.errors import require
from regardant.core.gate import Gate
from regardant.core.supports import Supports


def adaptive_kernel(channels: int, *, gamma: float = 2.0, offset: float = 1.0) -> int:
    """How many channels weigh one channel: odd, and growing with the logarithm of their number."""
    require(channels >= 1, f"channels is {channels}, but a map has at least 1")
    count = int(abs((log2(channels) + offset) / gamma))
    return count if count % 2 else count + 1


def channel_weights(pooled: Float[Tensor, "b c"], kernel: Float[Tensor, "k"]) -> Float[Tensor, "b c"]:
    """The gate as a function: σ of `kernel` slid along the channels."""
    weight = kernel.view(1, 1, -1)
    return conv1d(pooled[:, None], weight, padding=weight.shape[-1] // 2)[:, 0].sigmoid()


class ECA(Gate):
    """Weighs each channel by a short convolution over the pooled channels; `kernel=None` chooses it."""

    supports = Supports(
        causal=False, cross=False, causal_cross=False, step=False, pattern=False, padding=False,
        grouped=False, time=1.0, memory=1.0, state=0.0,
    )  # fmt: skip

    def __init__(self, channels: int, *, kernel: int | None = None):
        super().__init__()
        chosen = adaptive_kernel(channels) if kernel is None else kernel
        require(
            chosen >= 1 and chosen % 2 == 1,
            f"kernel is {kernel}, but it is centred on its channel: make it odd and at least 1",
        )
        self.channels, self.kernel = channels, chosen
        self.conv = nn.Conv1d(1, 1, chosen, padding=chosen // 2, bias=False)

    def weights(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c 1 1"]:
        return channel_weights(x.mean(dim=(2, 3)), self.conv.weight.flatten())[:, :, None, None]

    def reference(self, x):
        self.check_map(x)
        half = self.kernel // 2
        padded = pad(x.mean(dim=(2, 3)), (half, half))
        taps = self.conv.weight.flatten()
        total = sum(taps[tap] * padded[:, tap : tap + self.channels] for tap in range(self.kernel))
        return x / (1 + torch.exp(-total))[:, :, None, None]
