"""Copying over distance: a string, a pause, and the string once more.

    s₁ … s_m  pause … pause  go  s₁ … s_{m-1}   →   at go and behind it: s₁ … s_m

The pause is as long as is drawn from `pauses`, and the sequence is filled up with pauses in front, so that
all have one length. A symbol lies pause + m tokens behind the place where it has to be said. None can be
guessed from the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from regardant.core.errors import require
from regardant.task.held_out import Drawn, validation_generator
from regardant.task.score import IGNORED, certain, hits, label_loss


def draw_copying(
    pauses: Int[Tensor, "b"], *, symbols: int, string: int, longest: int, generator: torch.Generator
) -> tuple[Int[Tensor, "b n"], Int[Tensor, "b n"]]:
    """Sequences, and their labels from the sign to begin on; `longest` is the longest pause that there is."""
    size, length = len(pauses), 2 * string + longest
    said = torch.randint(symbols, (size, string), generator=generator)
    tokens = torch.full((size, length), symbols)
    first = longest - pauses[:, None] + torch.arange(string)
    tokens.scatter_(1, first, said)
    tokens[:, length - string] = symbols + 1
    tokens[:, length - string + 1 :] = said[:, :-1]
    labels = torch.full((size, length), IGNORED)
    labels[:, length - string :] = said
    return tokens, labels


@dataclass(frozen=True)
class Copying(Drawn):
    """Say a string again after a pause; the metric is the accuracy over its symbols."""

    symbols: int = 16
    string: int = 8
    pauses: tuple[int, ...] = (0, 8, 16, 32)
    held_out: int = 256

    name: ClassVar[str] = "copying"
    metric_name: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(self.symbols >= 2, f"symbols is {self.symbols}, but it takes 2 to tell a string")
        require(self.string >= 1, f"string is {self.string}, but there is at least 1 symbol to copy")
        require(
            len(self.pauses) >= 1 and min(self.pauses) >= 0,
            f"pauses is {self.pauses}, but it holds at least one number of tokens",
        )

    @property
    def vocabulary(self) -> int:
        """The symbols, the pause and the sign to begin."""
        return self.symbols + 2

    @property
    def length(self) -> int:
        return 2 * self.string + max(self.pauses)

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        drawn = torch.randint(len(self.pauses), (size,), generator=generator)
        return self._draw(torch.tensor(self.pauses)[drawn], generator)

    def at_each_distance(self) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
        """For every pause, how far back a symbol lies when it has to be said, and validation samples."""
        generator = validation_generator()
        for pause in self.pauses:
            yield self.string + pause, self._draw(torch.full((self.held_out,), pause), generator)

    def _draw(self, pauses: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return draw_copying(
            pauses, symbols=self.symbols, string=self.string, longest=max(self.pauses), generator=generator
        )

    def perfect(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return certain(targets, self.vocabulary)

    loss = staticmethod(label_loss)
    metric = staticmethod(hits)
