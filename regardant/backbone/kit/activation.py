"""GELU by its tanh approximation, faster where only a result is asked for."""

from __future__ import annotations

from math import pi, sqrt

import torch
from jaxtyping import Float
from torch import Tensor, nn

CUBE = 0.044715


class TanhGELU(nn.GELU):
    """x (1 + tanh u) / 2 = x σ(2u), u = √(2/π) (x + 0.044715 x³).

    torch's own takes twice as long on a CPU, where its tanh is slow; it is used where gradients are wanted,
    for which it keeps x alone.
    """

    def __init__(self) -> None:
        super().__init__(approximate="tanh")

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        learns = torch.is_grad_enabled() and x.requires_grad
        if learns or x.device.type != "cpu" or x.dtype != torch.float32:
            return super().forward(x)
        twice = 2 * sqrt(2 / pi)
        return x.square().mul_(CUBE * twice).add_(twice).mul_(x).sigmoid_().mul_(x)
