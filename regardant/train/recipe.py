"""How small networks are trained on images: steps, batch, learning rate and augmentations, by the task.

DIGITS.fit(model, NoisyDigits(), seed=0, progress=print)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from regardant.train.augment import Augmented
from regardant.train.fit import Fitted, Progress, fit
from regardant.train.task import Task


@dataclass(frozen=True)
class Recipe:
    """What a training is made of, beside the model and the task; `replace` changes a part of it."""

    steps: int
    batch: int
    learning_rate: float
    mirror: bool = False
    shift: int = 0
    erase: float = 0.0
    mixup: float = 0.0

    def on(self, task: Task) -> Task:
        """The task as this recipe feeds it to the model."""
        if not (self.mirror or self.shift or self.erase or self.mixup):
            return task
        return Augmented(task, mirror=self.mirror, shift=self.shift, erase=self.erase, mixup=self.mixup)

    def fit(
        self, model: nn.Module, task: Task, *, seed: int, device: str | torch.device = "cpu",
        progress: Progress | None = None, checkpoint: Path | None = None,
    ) -> Fitted:  # fmt: skip
        """Train `model` in place; a `checkpoint` lets a training that was killed go on."""
        return fit(
            model, self.on(task), steps=self.steps, batch=self.batch, learning_rate=self.learning_rate,
            seed=seed, device=device, progress=progress, checkpoint=checkpoint,
        )  # fmt: skip


DIGITS = Recipe(steps=600, batch=64, learning_rate=2e-3, shift=1)
"""1,348 small images, seen some thirty times: a shift by a pixel keeps them from being learnt by heart."""
SHAPES = Recipe(steps=800, batch=64, learning_rate=2e-3)
"""Shapes never come twice, so nothing is augmented."""
FEW_SHAPES = Recipe(steps=600, batch=64, learning_rate=2e-3, shift=2, erase=0.25)
"""For a fixed set of few images. Mirrored they would be other shapes: an ell is no mirrored ell."""
