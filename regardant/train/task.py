"""What the trainer asks of a task: batches, a loss, a metric."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor


class Task(Protocol):
    """Data and a metric. Nothing in a task is drawn without a generator that was handed in."""

    @property
    def name(self) -> str: ...

    @property
    def metric_name(self) -> str: ...

    @property
    def higher_is_better(self) -> bool: ...

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs and targets of one training step, batch first."""

    def validation(self) -> Iterable[tuple[Tensor, Tensor]]:
        """The same batches every time, of data that no training step sees."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What is minimised: a scalar."""

    def metric(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """(total, weight) of one batch. The metric is the mean of Σ total / Σ weight over batches,
        so that an accuracy gives two scalars and a mean over classes two vectors."""
