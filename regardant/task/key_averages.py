"""Functions of a query and a set of keys that do not change with the order of the keys (Fu et al., 2023).

    powers        1/N Σ_i ⟨β, x_i⟩^p                    nothing but the keys
    bilinear      1/N Σ_i ⟨x_0, S x_i⟩^p ⟨β, x_i⟩       S a fixed random matrix
    correlated    1/N Σ_i ⟨x_0, x_i⟩^p ⟨β, x_i⟩         what is like the query counts

A task's own β and S are drawn once, by its `seed`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from regardant.core.errors import require
from regardant.task.held_out import Drawn

Family = Literal["powers", "bilinear", "correlated"]


@dataclass(frozen=True)
class KeyAverages(Drawn):
    """Tokens [b, 1 + keys, dim], the query first, and one number; the metric is the mean squared error."""

    family: Literal["powers", "bilinear", "correlated"] = "powers"
    power: int = 2
    dim: int = 4
    keys: int = 16
    norm: float | None = None
    """Every token's length; None draws them from a Gaussian."""
    seed: int = 0
    held_out: int = 1000

    name: ClassVar[str] = "averages over keys"
    metric_name: ClassVar[str] = "mean squared error"
    higher_is_better: ClassVar[bool] = False

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        self._check()
        require(size >= 1, f"size is {size}, but at least 1 sample is drawn")
        tokens = torch.randn(size, 1 + self.keys, self.dim, generator=generator)
        if self.norm is not None:
            tokens = self.norm * tokens / tokens.norm(dim=-1, keepdim=True)
        return tokens, self.target(tokens)

    def target(self, tokens: Tensor) -> Tensor:
        """The function itself."""
        draw = torch.Generator().manual_seed(self.seed)
        beta = torch.randn(self.dim, generator=draw).to(tokens)
        matrix = torch.randn(self.dim, self.dim, generator=draw).to(tokens) / self.dim**0.5
        query, keys = tokens[:, :1], tokens[:, 1:]
        along = keys @ (beta / beta.norm())
        if self.family == "powers":
            return (along**self.power).mean(dim=1)
        seen = keys @ matrix.T if self.family == "bilinear" else keys
        return ((query * seen).sum(dim=-1) ** self.power * along).mean(dim=1)

    def perfect(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return targets

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().mean()

    def metric(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        total = (outputs - targets).square().sum()
        return total, torch.tensor(targets.numel(), device=total.device)

    def _check(self) -> None:
        families = get_args(Family)
        require(self.family in families, f"family is {self.family!r}, but it is one of {', '.join(families)}")
        for name in ("power", "dim", "keys"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}, but it is at least 1")
