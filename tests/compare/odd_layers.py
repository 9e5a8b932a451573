"""Layers that do what they should not: what a comparison must survive."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.core.supports import Supports


class Odd(nn.Module):
    """One matrix times the input: every token by itself."""

    supports = Supports(step=False)

    def __init__(self, dim: int, heads: int, *, causal: bool):
        super().__init__()
        self.dim, self.causal = dim, causal
        self.weight = nn.Parameter(torch.eye(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class Short(Odd):
    """Takes at most 64 tokens, and says so."""

    def forward(self, x):
        require(x.shape[1] <= 64, f"x is {x.shape[1]} tokens long, but this layer takes at most 64")
        return super().forward(x)


class Breaks(Odd):
    """Fails as soon as a gradient is asked for."""

    def forward(self, x):
        if torch.is_grad_enabled():
            raise RuntimeError("no gradient today")
        return super().forward(x)


class Nan(Odd):
    """Forgets how to count when it is trained."""

    def forward(self, x):
        return super().forward(x) * (float("nan") if self.training and torch.is_grad_enabled() else 1.0)


class Clairvoyant(Odd):
    """Says that it is causal, and sees every token that is to come."""

    def forward(self, x):
        return super().forward(x) + x.roll(-1, 1)


class Large(Odd):
    """Wants more memory than any machine has, beyond 64 tokens."""

    def forward(self, x):
        return super().forward(x) + torch.ones(2**46 if x.shape[1] > 64 else 1)[0]


class Mortal(Odd):
    """Its process is killed when it has been trained for ten steps, in all processes together, and then never
    again. The file that LIFE names has a byte a step."""

    def forward(self, x):
        if self.training and torch.is_grad_enabled():
            life = Path(os.environ["LIFE"])
            with life.open("ab") as file:
                file.write(b".")
            if life.stat().st_size == 10:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)
