"""Handwritten digits, 8×8 in 17 grey levels (scikit-learn's copy of the UCI set, 1,797 images).

Read four ways: as images under noise, as eight steps of eight pixels, as 64 steps of one, as 64 tokens in
raster order to be predicted.
A fixed quarter of the images is for validation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from regardant.core.errors import require
from regardant.task.score import certain, hits, label_loss, summed_label_loss

LEVELS = 17
VALIDATION_SHARE = 0.25
SPLIT_SEED = 1998
"""The set's year of publication; the split is part of the task."""


@dataclass(frozen=True)
class Digits:
    images: Int[Tensor, "b 8 8"]
    """Grey levels, 0 to 16."""
    labels: Int[Tensor, " b"]


@cache
def read_digits() -> tuple[Digits, Digits]:
    """The images for training, and those for validation."""
    require(
        find_spec("sklearn") is not None,
        "the digits come with scikit-learn, which is not installed: pip install regardant[task]",
    )
    from sklearn.datasets import load_digits

    data = load_digits()
    images, labels = torch.from_numpy(data.images).long(), torch.from_numpy(data.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    validation, train = order.tensor_split([round(VALIDATION_SHARE * len(order))])
    return Digits(images[train], labels[train]), Digits(images[validation], labels[validation])


def _draw(size: int, generator: torch.Generator) -> Digits:
    train = read_digits()[0]
    chosen = torch.randint(len(train.labels), (size,), generator=generator)
    return Digits(train.images[chosen], train.labels[chosen])


@dataclass(frozen=True)
class NoisyDigits:
    """Which digit is it: images [b, 1, 8·scale, 8·scale], brightness 0 to 1 plus Gaussian noise."""

    noise: float = 0.5
    scale: int = 2

    classes: ClassVar[int] = 10
    name: ClassVar[str] = "noisy digits"
    metric_name: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        drawn = _draw(size, generator)
        return self._show(drawn.images, generator), drawn.labels

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        held_out, generator = read_digits()[1], torch.Generator().manual_seed(SPLIT_SEED)
        for images, labels in zip(held_out.images.split(128), held_out.labels.split(128)):
            yield self._show(images, generator), labels

    def _show(self, images: Tensor, generator: torch.Generator) -> Float[Tensor, "b 1 h w"]:
        require(self.scale >= 1, f"scale is {self.scale}, but a pixel becomes at least 1")
        large = F.interpolate(images[:, None] / (LEVELS - 1), scale_factor=self.scale)
        return large + self.noise * torch.randn(large.shape, generator=generator)

    def perfect(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return certain(targets, self.classes)

    loss = staticmethod(label_loss)
    metric = staticmethod(hits)


@dataclass(frozen=True)
class DigitRows:
    """Which digit is it: a sequence of eight steps, each a row of eight pixels, [b, 8, 8]."""

    classes: ClassVar[int] = 10
    features: ClassVar[int] = 8
    name: ClassVar[str] = "digits by rows"
    metric_name: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        drawn = _draw(size, generator)
        return drawn.images / (LEVELS - 1), drawn.labels

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        held_out = read_digits()[1]
        yield held_out.images / (LEVELS - 1), held_out.labels

    def perfect(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return certain(targets, self.classes)

    loss = staticmethod(label_loss)
    metric = staticmethod(hits)


@dataclass(frozen=True)
class DigitSequence:
    """Which digit is it: a sequence of 64 steps, each a pixel in raster order, [b, 64, 1]."""

    classes: ClassVar[int] = 10
    features: ClassVar[int] = 1
    length: ClassVar[int] = 64
    name: ClassVar[str] = "digits pixel by pixel"
    metric_name: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        drawn = _draw(size, generator)
        return self._read(drawn.images), drawn.labels

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        held_out = read_digits()[1]
        yield self._read(held_out.images), held_out.labels

    def _read(self, images: Tensor) -> Float[Tensor, "b 64 1"]:
        return images.flatten(1)[..., None] / (LEVELS - 1)

    def perfect(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return certain(targets, self.classes)

    loss = staticmethod(label_loss)
    metric = staticmethod(hits)


@dataclass(frozen=True)
class DigitPixels:
    """Model the images themselves: grey levels [b, 8, 8], every pixel predicted from those before it in
    raster order. The targets are the inputs: the model does the shifting. The metric is bits a pixel."""

    levels: ClassVar[int] = LEVELS
    name: ClassVar[str] = "digits by pixels"
    metric_name: ClassVar[str] = "bits a pixel"
    higher_is_better: ClassVar[bool] = False

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        images = _draw(size, generator).images
        return images, images

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        images = read_digits()[1].images
        yield from zip(images.split(128), images.split(128))

    def metric(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        total, count = summed_label_loss(outputs, targets)
        return total / math.log(2), count

    def perfect(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return certain(targets, self.levels)

    loss = staticmethod(label_loss)
