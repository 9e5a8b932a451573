"""How weights begin."""

from __future__ import annotations

from math import prod

from torch import nn


def truncated_normal(network: nn.Module, *, std: float = 0.02) -> None:
    """Linear layers: a normal distribution cut off at ±2, and no bias. What else there is stays."""
    for part in network.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=std)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def fan_out_normal(network: nn.Module) -> None:
    """Convolutions: a normal distribution of variance 2 / (outputs that an input reaches), and no bias."""
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            reached = prod(part.kernel_size) * part.out_channels // part.groups
            nn.init.normal_(part.weight, std=(2 / reached) ** 0.5)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
