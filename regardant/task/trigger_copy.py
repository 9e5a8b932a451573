"""Trigger copy: mostly local prediction, which asks nothing of attention, and now and then a look back.

A sequence is a random walk over the symbols: the next is, with probability `certainty`, the successor
of the last, and otherwise any. On a share of the positions stands a trigger
instead; what follows it is the symbol that stood `distance` positions before the trigger. Heads have
nothing to do on most tokens: the situation in which attention grows outliers (Bondarenko et al., 2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from regardant.core.errors import require
from regardant.task.held_out import Drawn
from regardant.task.score import certain, label_loss, summed_label_loss


def draw_trigger_copy(
    size: int, *, symbols: int, length: int, share: float, distance: int, certainty: float,
    generator: torch.Generator,
) -> Int[Tensor, "b n"]:  # fmt: skip
    """Sequences over `symbols` symbols and the trigger, whose number is `symbols`."""
    require(symbols >= 1, f"symbols is {symbols}, but a walk is over at least 1")
    require(0 < share < 1, f"share is {share}, but it is a share of the positions: between 0 and 1")
    require(1 <= distance < length, f"distance is {distance}, but it lies within length={length}")
    tokens = torch.empty(size, length, dtype=torch.long)
    last = torch.randint(symbols, (size,), generator=generator)
    after_trigger = torch.zeros(size, dtype=torch.bool)
    anything = torch.randint(symbols, (size, length), generator=generator)
    chance = torch.rand(2, size, length, generator=generator)
    for t in range(length):
        walked = torch.where(chance[0, :, t] < certainty, (last + 1) % symbols, anything[:, t])
        copied = tokens[:, t - 1 - distance] if t > distance else walked
        symbol = torch.where(after_trigger & (copied < symbols), copied, walked)
        triggered = (chance[1, :, t] < share) & ~after_trigger & (t > distance)
        tokens[:, t] = torch.where(triggered, symbols, symbol)
        last = torch.where(triggered, last, symbol)
        after_trigger = triggered
    return tokens


@dataclass(frozen=True)
class TriggerCopy(Drawn):
    """Predict the next token of a trigger-copy sequence; the metric is the mean loss in nats."""

    symbols: int = 32
    length: int = 64
    share: float = 0.2
    distance: int = 8
    certainty: float = 0.8
    held_out: int = 256

    name: ClassVar[str] = "trigger copy"
    metric_name: ClassVar[str] = "validation loss, nats a token"
    higher_is_better: ClassVar[bool] = False

    @property
    def vocabulary(self) -> int:
        return self.symbols + 1

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        tokens = draw_trigger_copy(
            size, symbols=self.symbols, length=self.length + 1, share=self.share, distance=self.distance,
            certainty=self.certainty, generator=generator,
        )  # fmt: skip
        return tokens[:, :-1], tokens[:, 1:]

    def perfect(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return certain(targets, self.vocabulary)

    loss = staticmethod(label_loss)
    metric = staticmethod(summed_label_loss)
