"""What the tasks on coloured shapes have in common: how images are painted, and how labels are scored."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from regardant.core.errors import require
from regardant.task.held_out import Drawn
from regardant.task.score import certain, hits, label_loss
from regardant.task.shapes import Objects, Scene, paint


@dataclass(frozen=True, kw_only=True)
class Painted(Drawn):
    """Images [b, 3, side, side] of coloured shapes, and what is asked about them; a task says its `objects`
    and their labels.

    `at` gives the same task at another resolution, with the same scenes for validation.
    """

    side: int = 32
    noise: float = 0.05
    clutter: float = 0.2
    held_out: int = 512

    portion: ClassVar[int] = 128
    channels: ClassVar[int] = 3
    metric_name: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True

    @property
    @abstractmethod
    def classes(self) -> int:
        """Of the labels."""

    @abstractmethod
    def objects(self, size: int, generator: torch.Generator) -> tuple[Objects, Int[Tensor, "b"]]:
        """Scenes, and the label of each."""

    def batch(self, size: int, generator: torch.Generator) -> tuple[Float[Tensor, "b 3 h w"], Tensor]:
        objects, labels = self.objects(size, generator)
        return self.painted(objects, generator).images, labels

    def painted(self, objects: Objects, generator: torch.Generator) -> Scene:
        require(self.side >= 8, f"side is {self.side}, but shapes take at least 8 pixels to be told apart")
        return paint(objects, self.side, noise=self.noise, clutter=self.clutter, generator=generator)

    def at(self, side: int) -> Self:
        """The same task on images of another size: what is there keeps its share of the image."""
        return replace(self, side=side)

    def perfect(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return certain(targets, self.classes)

    loss = staticmethod(label_loss)
    metric = staticmethod(hits)
