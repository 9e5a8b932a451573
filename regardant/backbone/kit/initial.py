"""How weights begin."""

from __future__ import annotations

from torch import nn


def truncated_normal(network: nn.Module, *, std: float = 0.02) -> None:
    """Linear layers: a normal distribution cut off at ±2, and no bias. What else there is stays."""
    for part in network.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=std)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
