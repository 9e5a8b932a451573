"""A task made of another: what it does not change is the other's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from regardant.train.task import Task


@dataclass(frozen=True)
class Wrapped:
    """Has the data, the loss and the metric of `task`; a subclass changes some of them."""

    task: Task

    @property
    def name(self) -> str:
        return self.task.name

    @property
    def metric_name(self) -> str:
        return self.task.metric_name

    @property
    def higher_is_better(self) -> bool:
        return self.task.higher_is_better

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return self.task.batch(size, generator)

    def validation(self) -> Iterable[tuple[Tensor, Tensor]]:
        return self.task.validation()

    def perfect(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return self.task.perfect(inputs, targets)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.task.loss(outputs, targets)

    def metric(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return self.task.metric(outputs, targets)
