"""A needle in a haystack: one of a few marked values in a long line of noise is asked for at its end.

    noise … k₁ v₁ … noise … k₂ v₂ … noise … k₂   →   at the last token: v₂

Keys, values and noise are different symbols, so that nothing but the keys says where to look; which key is
asked, where the pairs lie and what the values are is drawn. The needle may lie anywhere: `distances` says how
far back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from regardant.core.errors import require
from regardant.task.held_out import Drawn
from regardant.task.score import IGNORED, certain, hits, label_loss


@dataclass(frozen=True)
class Needle(Drawn):
    """Retrieve a marked value from anywhere in `length` tokens; the metric is the accuracy."""

    length: int = 64
    needles: int = 4
    values: int = 16
    noise: int = 32
    held_out: int = 1024

    name: ClassVar[str] = "needle retrieval"
    metric_name: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(self.needles >= 1, f"needles is {self.needles}, but there is at least 1 to find")
        require(self.values >= 2, f"values is {self.values}, but it takes 2 to tell a needle")
        require(self.noise >= 1, f"noise is {self.noise}, but the hay is of at least 1 symbol")
        require(
            self.length >= 2 * self.needles + 1,
            f"length is {self.length}, but {self.needles} needles and the question take "
            f"{2 * self.needles + 1} tokens",
        )

    @property
    def vocabulary(self) -> int:
        """The noise, then the keys, then the values."""
        return self.noise + self.needles + self.values

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        slots = (self.length - 1) // 2
        at = 2 * torch.rand(size, slots, generator=generator).topk(self.needles, dim=-1).indices
        values = torch.randint(self.values, (size, self.needles), generator=generator)
        values += self.noise + self.needles
        tokens = torch.randint(self.noise, (size, self.length), generator=generator)
        tokens.scatter_(1, at, self.noise + torch.arange(self.needles).expand(size, -1))
        tokens.scatter_(1, at + 1, values)
        asked = torch.randint(self.needles, (size, 1), generator=generator)
        tokens[:, -1:] = self.noise + asked
        labels = torch.full((size, self.length), IGNORED)
        labels[:, -1:] = values.gather(1, asked)
        return tokens, labels

    def perfect(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return certain(targets, self.vocabulary)

    loss = staticmethod(label_loss)
    metric = staticmethod(hits)


def distances(tokens: Int[Tensor, "b n"]) -> Int[Tensor, "b"]:
    """How far behind the question the needle stands."""
    last = tokens.shape[1] - 1
    return last - (tokens[:, :-1] == tokens[:, -1:]).int().argmax(dim=-1)
