"""Forecasting a sum of sines: at every step, the next values of a noisy signal.

Each series adds `waves` sines of random period, phase and weight to Gaussian noise. From all of the
past, the model predicts the `horizon` values ahead of every position.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from regardant.core.errors import require
from regardant.task.held_out import Drawn


def draw_sines(
    size: int, *, length: int, waves: int, noise: float, generator: torch.Generator
) -> Float[Tensor, "b n"]:
    """Series of variance about 1, plus the noise. Periods are log-uniform between 8 and 48 steps."""
    require(waves >= 1, f"waves is {waves}, but a signal is the sum of at least 1")
    period = 8 * 6 ** torch.rand(size, waves, 1, generator=generator)
    phase = 2 * math.pi * torch.rand(size, waves, 1, generator=generator)
    weight = torch.randn(size, waves, 1, generator=generator) * math.sqrt(2 / waves)
    signal = (weight * torch.sin(2 * math.pi * torch.arange(length) / period + phase)).sum(dim=1)
    return signal + noise * torch.randn(size, length, generator=generator)


@dataclass(frozen=True)
class Forecast(Drawn):
    """Predict the next `horizon` values at every position; the metric is the mean squared error."""

    length: int = 64
    horizon: int = 8
    waves: int = 2
    noise: float = 0.1
    held_out: int = 512

    features: ClassVar[int] = 1
    portion: ClassVar[int] = 128
    name: ClassVar[str] = "sums of sines"
    metric_name: ClassVar[str] = "mean squared error"
    higher_is_better: ClassVar[bool] = False

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        require(
            min(self.length, self.horizon) >= 1,
            f"length={self.length} and horizon={self.horizon} are at least 1 step",
        )
        series = draw_sines(
            size, length=self.length + self.horizon, waves=self.waves, noise=self.noise, generator=generator
        )
        return series[:, : self.length, None], series[:, 1:].unfold(1, self.horizon, 1)

    def perfect(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return targets

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().mean()

    def metric(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        total = (outputs - targets).square().sum()
        return total, torch.tensor(targets.numel(), device=total.device)
