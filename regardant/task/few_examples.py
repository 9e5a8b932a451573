"""A task with a training set of few examples, seen again and again; validation is the task's own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from regardant.core.errors import require
from regardant.train.wrapped_task import Wrapped


@dataclass(frozen=True)
class FewExamples(Wrapped):
    """Training batches are drawn from `examples` samples of `task`, which `seed` settles."""

    examples: int = 256
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.task.name}, {self.examples} examples"

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        inputs, targets = self._set
        chosen = torch.randint(self.examples, (size,), generator=generator)
        return inputs[chosen], targets[chosen]

    @cached_property
    def _set(self) -> tuple[Tensor, Tensor]:
        require(
            self.examples >= 1, f"examples is {self.examples}, but a training set holds at least 1 sample"
        )
        return self.task.batch(self.examples, torch.Generator().manual_seed(self.seed))
