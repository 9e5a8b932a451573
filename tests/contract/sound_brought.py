"""Small systems that bring their own examples and keep their contract; the broken ones change one thing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.core.known_answer import KnownAnswer
from regardant.core.network import Example, Network


class Pooler(Network):
    """One learned query pools tokens; gives the pooled vector and the weights."""

    def __init__(self, dim: int, *, temperature: float = 1.0):
        super().__init__()
        self.dim, self.temperature = dim, temperature
        self.query = nn.Parameter(torch.randn(dim))
        self.value = nn.Linear(dim, dim)

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Example]:
        for batch, length, temperature in ((2, 1, 1.0), (3, 7, 0.5), (1, 4, 2.0)):
            x = torch.randn(batch, length, 6, generator=generator, dtype=torch.float64)
            padding = torch.rand(batch, length, generator=generator) < 0.7
            padding[:, 0] = True
            yield Example({"dim": 6, "temperature": temperature}, (x,), {"padding": padding})

    def check(self, x: Tensor, padding: Tensor) -> None:
        require(
            x.ndim == 3 and x.shape[2] == self.dim,
            f"x is {tuple(x.shape)}, but it is [batch, length, {self.dim}]",
        )
        require(
            padding.shape == x.shape[:2],
            f"padding is {tuple(padding.shape)}, but x has {tuple(x.shape[:2])} tokens",
        )

    def weigh(self, x: Tensor, padding: Tensor) -> Tensor:
        logits = x @ self.query / self.temperature
        return logits.masked_fill(~padding, float("-inf")).softmax(-1)

    def forward(self, x: Tensor, *, padding: Tensor) -> tuple[Tensor, Tensor]:
        self.check(x, padding)
        weights = self.weigh(x, padding)
        return self.value((weights[..., None] * x).sum(1)), weights

    def reference(self, x: Tensor, *, padding: Tensor) -> tuple[Tensor, Tensor]:
        raised = (x @ self.query / self.temperature).exp() * padding
        weights = raised / raised.sum(1, keepdim=True)
        return torch.einsum("bn,bnd->bd", weights, self.value(x)), weights


@dataclass(frozen=True)
class Larger:
    """Which half of a row of numbers has the larger sum."""

    length: int = 8
    side: Literal["left", "right"] = "left"
    flipped: bool = False

    name: ClassVar[str] = "the larger half"
    metric_name: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        require(self.length >= 2, f"length is {self.length}, but two halves are at least 2 long")
        require(self.side in ("left", "right"), f"side is {self.side!r}, but it is left or right")
        x = torch.randn(size, self.length, generator=generator)
        left, right = x.split([self.length // 2, self.length - self.length // 2], dim=1)
        larger = left.sum(1) > right.sum(1)
        return x, (larger if (self.side == "left") != self.flipped else ~larger).long()

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield self.batch(64, torch.Generator().manual_seed(4_000_000_001))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, targets)

    def metric(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return (outputs.argmax(-1) == targets).sum(), torch.tensor(len(targets))

    def perfect(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return 20 * nn.functional.one_hot(targets, 2).float()


class Entropy:
    """A lens: the entropy of rows of weights."""

    @staticmethod
    def of(weights: Tensor) -> Tensor:
        return torch.special.entr(weights).sum(-1)

    @classmethod
    def known_answers(cls, generator: torch.Generator) -> Iterator[KnownAnswer]:
        uniform = torch.full((3, 8), 1 / 8, dtype=torch.float64)
        yield KnownAnswer("uniform over 8", cls.of(uniform), torch.full((3,), 8.0).log(), 1e-6)
        one = nn.functional.one_hot(torch.randint(8, (3,), generator=generator), 8).double()
        yield KnownAnswer("all on one", cls.of(one), torch.zeros(3))
