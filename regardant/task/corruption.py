"""Any task on images with its images spoiled: noise, blur, lost contrast, occlusion, in five severities."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from regardant.core.errors import require, unknown
from regardant.task.held_out import validation_generator
from regardant.train.wrapped_task import Wrapped

Kind = Literal["noise", "blur", "contrast", "occlusion"]
SEVERITIES = 5


def add_noise(images: Float[Tensor, "b c h w"], severity: int, generator: torch.Generator) -> Tensor:
    """Gaussian, of a deviation of 0.08 a degree."""
    return images + 0.08 * severity * torch.randn(images.shape, generator=generator)


def blur(images: Float[Tensor, "b c h w"], severity: int, generator: torch.Generator) -> Tensor:
    """By a Gaussian of a deviation of 0.4 pixels a degree; beyond the edge, the edge goes on."""
    width = 0.4 * severity
    reach = max(1, round(3 * width))
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / width).square())
    taps = (taps / taps.sum()).view(1, 1, 1, -1)
    flat = F.pad(images.flatten(0, 1)[:, None], (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(flat, taps), taps.transpose(2, 3)).view_as(images)


def lower_contrast(images: Float[Tensor, "b c h w"], severity: int, generator: torch.Generator) -> Tensor:
    """Toward the image's own mean, by 17 in a hundred a degree."""
    return torch.lerp(images, images.mean(dim=(1, 2, 3), keepdim=True), 0.17 * severity)


def occlude(images: Float[Tensor, "b c h w"], severity: int, generator: torch.Generator) -> Tensor:
    """A grey square somewhere, of sides 0.12 of the image's a degree."""
    size = images.shape[2:]
    hidden = torch.ones(len(images), 1, *size, dtype=torch.bool)
    for axis, length in enumerate(size):
        edge = max(1, round(0.12 * severity * length))
        start = torch.randint(length - edge + 1, (len(images), 1), generator=generator)
        away = torch.arange(length) - start
        inside = (away >= 0) & (away < edge)
        hidden &= inside[:, None, :, None] if axis == 0 else inside[:, None, None, :]
    return images.masked_fill(hidden, 0.5)


CORRUPTIONS: Mapping[str, Callable[[Tensor, int, torch.Generator], Tensor]] = MappingProxyType(
    {"noise": add_noise, "blur": blur, "contrast": lower_contrast, "occlusion": occlude}
)


@dataclass(frozen=True)
class Corrupted(Wrapped):
    """`task` with its images [b, c, h, w] corrupted, in training as in validation.

    To see how a model that was trained on clean images bears it, train on `task` and evaluate on this.
    """

    kind: Kind = "noise"
    severity: int = 3

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise unknown("corruption", self.kind, get_args(Kind))
        require(
            1 <= self.severity <= SEVERITIES,
            f"severity is {self.severity}, but corruptions go from 1 to {SEVERITIES}",
        )

    @property
    def name(self) -> str:
        return f"{self.task.name}, {self.kind} of severity {self.severity}"

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        images, targets = self.task.batch(size, generator)
        return CORRUPTIONS[self.kind](images, self.severity, generator), targets

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = validation_generator()
        for images, targets in self.task.validation():
            yield CORRUPTIONS[self.kind](images, self.severity, generator), targets
