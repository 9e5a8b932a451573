"""Layers whose cost is known: what the measurements are tried on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regardant.core.state import State
from regardant.core.supports import Supports

MEGABYTE = 2**20


class Small(nn.Module):
    """One number times the input."""

    supports = Supports(step=False)

    def __init__(self, dim: int, heads: int, *, causal: bool):
        super().__init__()
        self.dim, self.causal = dim, causal
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class Together(Small):
    """Holds two tensors of 32 megabytes at once, whatever the length."""

    def forward(self, x):
        held = [torch.ones(8 * MEGABYTE) for _ in range(2)]
        return x * self.weight * held[0][0] * held[1][0]


class InTurn(Small):
    """Four tensors of 64 megabytes, one after the other."""

    def forward(self, x):
        for _ in range(4):
            x = x * torch.ones(16 * MEGABYTE)[0]
        return x * self.weight


class Square(Small):
    """A matrix of all pairs of positions."""

    def forward(self, x):
        return torch.ones(x.shape[1], x.shape[1]) @ x * self.weight


class Greedy(Small):
    """Wants more memory than any machine has, once the input is not short."""

    def forward(self, x):
        return x * self.weight + torch.ones(2**46 if x.shape[1] > 64 else 1)[0]


class NotCausal(Small):
    supports = Supports(causal=False, step=False)


@dataclass
class Count(State):
    tokens: Tensor


class Steps(Small):
    """Decodes from a state that grows by a row a token."""

    supports = Supports()

    def start(self, batch: int) -> Count:
        return Count(0, torch.zeros(batch, 0, self.dim))

    def step(self, x_t: Tensor, state: Count) -> tuple[Tensor, Count]:
        return x_t, Count(state.length + 1, torch.cat([state.tokens, x_t[:, None]], dim=1))
