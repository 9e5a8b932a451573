"""Images made more of: mirrored, shifted, partly erased, mixed; all of it drawn from the generator given."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from regardant.core.errors import require
from regardant.train.wrapped_task import Wrapped


def mirror(
    images: Float[Tensor, "b c h w"], targets: Tensor, generator: torch.Generator
) -> tuple[Float[Tensor, "b c h w"], Tensor]:
    """Half of the images, left to right, and their targets where they are maps [b, h, w] or images."""
    chosen = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    if targets.ndim > 1:
        targets = torch.where(chosen.view(-1, *[1] * (targets.ndim - 1)), targets.flip(-1), targets)
    return torch.where(chosen, images.flip(-1), images), targets


def shift(
    images: Float[Tensor, "b c h w"], most: int, generator: torch.Generator
) -> Float[Tensor, "b c h w"]:
    """Each image by up to `most` pixels along either axis; zeros come in."""
    height, width = images.shape[2:]
    padded = F.pad(images, (most,) * 4)
    starts = torch.randint(2 * most + 1, (2, len(images), 1), generator=generator)
    rows, columns = starts[0] + torch.arange(height), starts[1] + torch.arange(width)
    each = torch.arange(len(images))[:, None, None]
    return padded.permute(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def erase(
    images: Float[Tensor, "b c h w"], share: float, generator: torch.Generator
) -> Float[Tensor, "b c h w"]:
    """Of each image, a square of this share of its sides, somewhere; it becomes the image's mean."""
    inside = None
    for axis, length in enumerate(images.shape[2:]):
        edge = max(1, round(share * length))
        away = torch.arange(length) - torch.randint(length - edge + 1, (len(images), 1), generator=generator)
        along = (away >= 0) & (away < edge)
        inside = along[:, None, :, None] if axis == 0 else inside & along[:, None, None, :]
    return torch.where(inside, images.mean(dim=(2, 3), keepdim=True), images)


def mix(
    images: Float[Tensor, "b c h w"], labels: Int[Tensor, "b"], classes: int, strength: float,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b classes"]]:  # fmt: skip
    """Every image with another, in a proportion drawn from Beta(strength, strength), one for the batch; and
    the labels in the same proportion (mixup: Zhang et al., 2018, arXiv 1710.09412)."""
    share = _beta(strength, generator)
    other = torch.randperm(len(images), generator=generator)
    mixed = F.one_hot(labels, classes).to(images)
    return torch.lerp(images[other], images, share), torch.lerp(mixed[other], mixed, share)


def _beta(strength: float, generator: torch.Generator) -> float:
    """Jöhnk's rejection; strengths up to 1 are accepted half of the time or more."""
    while True:
        first, second = torch.rand(2, generator=generator, dtype=torch.float64).pow(1 / strength).tolist()
        if 0 < first + second <= 1:
            return first / (first + second)


@dataclass(frozen=True)
class Augmented(Wrapped):
    """`task` with its training images [b, c, h, w] augmented; validation is untouched.

    `shift` is in pixels, `erase` the share of the sides, `mixup` the strength of the mixing: 0 turns each
    off. Where the targets are images or maps themselves, only `mirror` is of use: it turns both.
    """

    mirror: bool = False
    shift: int = 0
    erase: float = 0.0
    mixup: float = 0.0

    def __post_init__(self) -> None:
        require(self.shift >= 0, f"shift is {self.shift}, but it is a number of pixels: at least 0")
        require(0 <= self.erase < 1, f"erase is {self.erase}, but it is a share of the sides: below 1")
        require(0 <= self.mixup <= 1, f"mixup is {self.mixup}, but its strength is at most 1, and 0 is none")
        require(
            not self.mixup or hasattr(self.task, "classes"),
            f"mixup is {self.mixup}, but {self.task.name} has no classes to mix",
        )

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        images, targets = self.task.batch(size, generator)
        require(
            targets.ndim == 1 or not (self.shift or self.erase or self.mixup),
            f"the targets of {self.task.name} are {list(targets.shape[1:])} each: such are only mirrored",
        )
        if self.mirror:
            images, targets = mirror(images, targets, generator)
        if self.shift:
            images = shift(images, self.shift, generator)
        if self.erase:
            images = erase(images, self.erase, generator)
        if self.mixup:
            images, targets = mix(images, targets, self.task.classes, self.mixup, generator)
        return images, targets

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.mixup and targets.is_floating_point():
            return F.cross_entropy(outputs, targets)
        return self.task.loss(outputs, targets)
