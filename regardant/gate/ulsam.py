"""Ultra-lightweight subspace attention (Saini et al., "ULSAM: Ultra-Lightweight Subspace Attention Module for
Compact Convolutional Neural Networks", 2020, arXiv 2006.15102).

The channels are cut into groups (subspaces), and each has a map of its own over all positions:

    a  = relu(BN(s · x + t))                    channel by channel
    a  = maximum over the 3×3 around
    A  = softmax over positions of relu(BN(u · a + v))            one map a group
    y  = A · x + x

So x is multiplied by 1 + A, and A sums to 1 over the map: on a large map the gate is close to the identity,
and so it is meant (nothing is rescaled).

Every group is independent of the others, so all of them run at once, as grouped convolutions; the official
code has a module a group. It also sets torch's default tensor to CUDA's when it is imported, and takes a
height, a width and a number of outputs that it does not use; these are left out. As there, the batch
normalisations' momentum is 0.9.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from regardant.core.errors import require
from regardant.core.gate import Gate
from regardant.core.supports import Supports

MOMENTUM = 0.9


class ULSAM(Gate):
    """Weighs positions by one softmax map a group of channels, on top of what is there."""

    supports = Supports(
        causal=False, cross=False, causal_cross=False, step=False, pattern=False, padding=False,
        grouped=False, time=1.0, memory=1.0, state=0.0,
    )  # fmt: skip

    def __init__(self, channels: int, *, groups: int = 4):
        super().__init__()
        require(
            groups >= 1 and channels >= 1 and channels % groups == 0,
            f"groups={groups} does not divide channels={channels}",
        )
        self.channels, self.groups = channels, groups
        self.scale = nn.Conv2d(channels, channels, 1, groups=channels)
        self.scale_norm = nn.BatchNorm2d(channels, momentum=MOMENTUM)
        self.score = nn.Conv2d(channels, groups, 1, groups=groups)
        self.score_norm = nn.BatchNorm2d(groups, momentum=MOMENTUM)

    def maps(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b g h w"]:
        """What each group attends to; every map sums to 1."""
        require(
            not self.training or x.shape[0] * x.shape[2] * x.shape[3] > 1,
            f"x has shape {tuple(x.shape)}, but batch normalisation in training takes more than one position",
        )
        scaled = self.scale_norm(self.scale(x)).relu()
        # With channels last, the maximum is of many channels at a time: several times as fast on a CPU.
        scaled = scaled.contiguous(memory_format=torch.channels_last)
        found = F.max_pool2d(scaled, 3, stride=1, padding=1)
        logits = self.score_norm(self.score(found)).relu()
        return logits.flatten(2).softmax(dim=-1).unflatten(2, logits.shape[2:])

    def weights(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return 1 + self.maps(x).repeat_interleave(self.channels // self.groups, dim=1)

    def forward(self, x, *, source=None):
        self.check_map(x)
        maps = self.maps(self.source_of(x, source))
        size = self.channels // self.groups
        return (x.unflatten(1, (self.groups, size)) * (1 + maps[:, :, None])).flatten(1, 2)

    def reference(self, x):
        self.check_map(x)
        parts = []
        scaled = _normed(
            x * self.scale.weight.view(1, -1, 1, 1) + self.scale.bias.view(1, -1, 1, 1), self.scale_norm
        )
        height, width = x.shape[2:]
        for group, part in enumerate(x.chunk(self.groups, dim=1)):
            a = scaled.chunk(self.groups, dim=1)[group].clamp(min=0)
            padded = F.pad(a, (1, 1, 1, 1), value=float("-inf"))
            around = [padded[:, :, i : i + height, j : j + width] for i in range(3) for j in range(3)]
            best = torch.stack(around).amax(dim=0)
            logit = (best * self.score.weight[group]).sum(dim=1, keepdim=True) + self.score.bias[group]
            logit = _normed(logit, self.score_norm, group).clamp(min=0)
            share = logit.exp() / logit.exp().sum(dim=(2, 3), keepdim=True)
            parts.append(share * part + part)
        return torch.cat(parts, dim=1)


def _normed(x: Tensor, norm: nn.BatchNorm2d, only: int | None = None) -> Tensor:
    """Batch normalisation written out; of a norm's channels, all or the `only` one that x is."""
    at = slice(None) if only is None else slice(only, only + 1)
    if norm.training:
        mean, variance = x.mean(dim=(0, 2, 3)), x.var(dim=(0, 2, 3), unbiased=False)
    else:
        mean, variance = norm.running_mean[at], norm.running_var[at]
    scale = norm.weight[at] / (variance + norm.eps).sqrt()
    return (x - mean[:, None, None]) * scale[:, None, None] + norm.bias[at][:, None, None]
