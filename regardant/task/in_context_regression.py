"""Linear regression in context: tell y of the last x from pairs of the same line (He et al., 2025,
arXiv:2503.12734).

    β ~ N(0, 1/d),  x_l ~ N(0, 1),  y_l = β·x_l + ε_l,  ε ~ N(0, noise)

A sample is rows z_l = [x_l, y_l], l = 1 … length, and last the query [x, 0], whose y is the target, noise
included. Every sample has a β of its own, so that nothing about it can be learned but how to find it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from regardant.core.errors import require
from regardant.task.held_out import Drawn


@dataclass(frozen=True)
class InContextRegression(Drawn):
    """Linear regression from `length` examples in the context; the metric is the mean squared error."""

    features: int = 5
    length: int = 40
    noise: float = 0.1
    held_out: int = 4096

    portion: ClassVar[int] = 1024
    name: ClassVar[str] = "linear regression in context"
    metric_name: ClassVar[str] = "mean squared error"
    higher_is_better: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require(self.features >= 1, f"features is {self.features}, but a line has at least 1")
        require(self.length >= 1, f"length is {self.length}, but there is at least 1 example")
        require(self.noise >= 0, f"noise is {self.noise}, but a variance is not negative")

    def batch(
        self, size: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, "b length+1 features+1"], Float[Tensor, "b"]]:
        slope = torch.randn(size, self.features, 1, generator=generator) * self.features**-0.5
        x = torch.randn(size, self.length + 1, self.features, generator=generator)
        y = x @ slope + self.noise**0.5 * torch.randn(size, self.length + 1, 1, generator=generator)
        target = y[:, -1, 0].clone()
        y[:, -1] = 0
        return torch.cat([x, y], dim=-1), target

    def perfect(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return targets.clone()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().mean()

    def metric(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return (outputs - targets).square().sum(), torch.tensor(targets.numel(), device=targets.device)
