"""Efficient local attention (Xu and Wan, "ELA: Efficient Local Attention for Deep Convolutional Neural
Networks", 2024, arXiv 2403.01123).

    zₕ = mean over the width of x    [b, c, h]        z_w = mean over the height of x    [b, c, w]
    aₕ = σ(GN(conv₁ₓₖ(zₕ)))                           a_w = σ(GN(conv₁ₓₖ(z_w)))
    y  = x · aₕ · a_w

Each position is weighted by where it stands in its row's profile and in its column's, channel by channel,
without the reduction of channels and the batch normalisation of coordinate attention: nothing depends on the
other samples. A fresh gate lets about a quarter through (σ(0)²), so it belongs into a residual branch.

    variant   kernel   channels that meet in the convolution   groups of GN
    T         5        1                                       32
    B         7        1                                       16
    S         5        8                                       16
    L         7        8                                       16

The authors released no code; where the paper leaves it open, here: one convolution and one normalisation
serve both axes (`tied=False`: each its own); where the channels do not divide as the table has it, the groups
are the greatest common divisor of the two.
"""

from __future__ import annotations

from math import gcd
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

from regardant.core.errors import require, unknown
from regardant.core.gate import Gate
from regardant.core.supports import Supports

Variant = Literal["T", "B", "S", "L"]
VARIANTS = {"T": (5, 1, 32), "B": (7, 1, 16), "S": (5, 8, 16), "L": (7, 8, 16)}
"""Kernel, channels a group of the convolution, groups of the normalisation."""


class Profile(nn.Module):
    """σ(GN(conv(z))) along one axis."""

    def __init__(self, channels: int, *, kernel: int, meeting: int, groups: int):
        super().__init__()
        apart = gcd(channels, max(channels // meeting, 1))
        self.conv = nn.Conv1d(channels, channels, kernel, padding=kernel // 2, groups=apart, bias=False)
        self.norm = nn.GroupNorm(gcd(channels, groups), channels)

    def forward(self, z: Float[Tensor, "b c n"]) -> Float[Tensor, "b c n"]:
        norm = self.norm
        # The module's own forward refuses a group of one value, which a map of one position may have.
        return torch.group_norm(self.conv(z), norm.num_groups, norm.weight, norm.bias, norm.eps).sigmoid()

    def reference(self, z):
        kernel, taps = self.conv.kernel_size[0], self.conv.weight
        padded, length = pad(z, (kernel // 2, kernel // 2)), z.shape[2]
        meeting, out = taps.shape[1], []
        for channel in range(z.shape[1]):
            first = channel // meeting * meeting
            heard = padded[:, first : first + meeting]
            windows = torch.stack([heard[:, :, at : at + kernel] for at in range(length)], dim=2)
            out.append((windows * taps[channel][None, :, None]).sum(dim=(1, 3)))
        grouped = torch.stack(out, dim=1).unflatten(1, (self.norm.num_groups, -1))
        mean = grouped.mean(dim=(2, 3), keepdim=True)
        variance = (grouped - mean).square().mean(dim=(2, 3), keepdim=True)
        normed = ((grouped - mean) / (variance + self.norm.eps).sqrt()).flatten(1, 2)
        return 1 / (1 + torch.exp(-(normed * self.norm.weight[:, None] + self.norm.bias[:, None])))


class ELA(Gate):
    """Weighs positions by their rows' and their columns' profiles; `tied` axes share their weights."""

    supports = Supports(
        causal=False, cross=False, causal_cross=False, step=False, pattern=False, padding=False,
        grouped=False, time=1.0, memory=1.0, state=0.0,
    )  # fmt: skip

    def __init__(self, channels: int, *, variant: Variant = "B", tied: bool = True):
        super().__init__()
        require(channels >= 1, f"channels is {channels}, but a map has at least 1")
        if variant not in get_args(Variant):
            raise unknown("variant", variant, get_args(Variant))
        kernel, meeting, groups = VARIANTS[variant]
        self.channels = channels
        self.along_height = Profile(channels, kernel=kernel, meeting=meeting, groups=groups)
        self.along_width = None if tied else Profile(channels, kernel=kernel, meeting=meeting, groups=groups)

    def maps(self, x: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b c h 1"], Float[Tensor, "b c 1 w"]]:
        """The weights of rows and of columns."""
        along_width = self.along_height if self.along_width is None else self.along_width
        return self.along_height(x.mean(dim=3))[..., None], along_width(x.mean(dim=2))[:, :, None]

    def weights(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        rows, columns = self.maps(x)
        return rows * columns

    def reference(self, x):
        self.check_map(x)
        along_width = self.along_height if self.along_width is None else self.along_width
        rows = self.along_height.reference(x.sum(dim=3) / x.shape[3])
        columns = along_width.reference(x.sum(dim=2) / x.shape[2])
        return x * rows[:, :, :, None] * columns[:, :, None, :]
