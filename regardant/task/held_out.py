"""Validation data of the tasks that draw their data: the same every time, seen by no training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from regardant.core.errors import require

VALIDATION_SEED = 4_026_531_839
"""Far from the small seeds that trainings are given, and within the 32 bits that torch's generator reads."""


def validation_generator() -> torch.Generator:
    return torch.Generator().manual_seed(VALIDATION_SEED)


class Drawn(ABC):
    """A task that draws its data: validation is `held_out` samples of a generator of its own, drawn once."""

    held_out: int
    """Validation samples."""

    portion: ClassVar[int] = 64
    """Validation samples that a model is given at once."""

    @abstractmethod
    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs and targets of one training step, batch first."""

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        inputs, targets = self._kept
        yield from zip(inputs.split(self.portion), targets.split(self.portion))

    @cached_property
    def _kept(self) -> tuple[Tensor, Tensor]:
        require(self.held_out >= 1, f"held_out is {self.held_out}, but at least 1 sample is for validation")
        return self.batch(self.held_out, validation_generator())
