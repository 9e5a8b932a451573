"""Super-resolution ×2 of procedural images: edges, fine repeated patterns, lines and textured shapes.

The small image is the large one by antialiased bicubic interpolation, as the field has it; bicubic
interpolation back is the baseline. Scored by the peak signal-to-noise ratio over all channels, the mean of
images, in decibels of a brightness from 0 to 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from regardant.core.errors import require
from regardant.task.held_out import Drawn
from regardant.task.shapes import draw_objects, paint

SCALE = 2
LEAST = 1e-10
"""Squared errors below count as this one, so that a perfect image has 100 decibels."""


def draw_patterns(
    size: int, side: int, *, periods: tuple[float, float], lines: int, shapes: int, generator: torch.Generator
) -> Float[Tensor, "b 3 side side"]:
    """Two fields of stripes, each with its colours, period (in pixels) and direction, parted by a straight
    edge; across them lines and textured shapes."""
    rows = torch.arange(side)[:, None] - (side - 1) / 2
    columns = torch.arange(side)[None, :] - (side - 1) / 2

    def even(*shape: int) -> Tensor:
        return torch.rand(size, *shape, generator=generator)

    def along(angle: Float[Tensor, "b n"]) -> Float[Tensor, "b n h w"]:
        """How far each pixel lies from the middle, in directions."""
        return angle.cos()[..., None, None] * columns + angle.sin()[..., None, None] * rows

    period = (periods[0] + (periods[1] - periods[0]) * even(2))[..., None, None]
    phase = 2 * math.pi * (along(math.pi * even(2)) / period + even(2)[..., None, None])
    # As steep as goes from light to dark within a pixel.
    stripes = 0.5 + 0.5 * (phase.sin() * period / math.pi).clamp(-1, 1)
    light, dark = even(2, 2, 3, 1, 1).unbind(1)
    fields = torch.lerp(dark, light, stripes[:, :, None])
    offset = (even(1) - 0.5)[..., None, None] * side / 2
    edge = (0.5 + along(2 * math.pi * even(1)) + offset).clamp(0, 1)
    image = torch.lerp(fields[:, 0], fields[:, 1], edge)
    if lines:
        away = along(math.pi * even(lines)) + (even(lines) - 0.5)[..., None, None] * side
        width = (1 + 2 * even(lines))[..., None, None]
        cover = (0.5 + width / 2 - away.abs()).clamp(0, 1)
        for at, colour in enumerate(even(lines, 3, 1, 1).unbind(1)):
            image = torch.lerp(image, colour.expand_as(image), cover[:, at, None].expand_as(image))
    if shapes:
        objects = draw_objects(size, count=shapes, textures=4, radius=(0.08, 0.2), generator=generator)
        scene = paint(objects, side, noise=0.0, clutter=0.0, generator=generator)
        image = torch.where(scene.owner[:, None] > 0, scene.images, image)
    return image.clamp(0, 1)


def halved(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h//2 w//2"]:
    return F.interpolate(images, scale_factor=1 / SCALE, mode="bicubic", antialias=True)


def bicubic(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 2*h 2*w"]:
    """The baseline that every network is to beat."""
    return F.interpolate(images, scale_factor=SCALE, mode="bicubic").clamp(0, 1)


@dataclass(frozen=True)
class SuperResolution(Drawn):
    """Images [b, 3, side, side] to images of twice the side; brightness 0 to 1."""

    side: int = 32
    periods: tuple[float, float] = (4.0, 12.0)
    lines: int = 3
    shapes: int = 2
    held_out: int = 64

    portion: ClassVar[int] = 32
    channels: ClassVar[int] = 3
    scale: ClassVar[int] = SCALE
    name: ClassVar[str] = "super-resolution of patterns"
    metric_name: ClassVar[str] = "peak signal-to-noise ratio, decibels"
    higher_is_better: ClassVar[bool] = True

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        require(self.side >= 4, f"side is {self.side}, but patterns take at least 4 pixels")
        require(
            2 <= self.periods[0] <= self.periods[1],
            f"periods is {self.periods}, but it is a range from 2 pixels upward",
        )
        for name in ("lines", "shapes"):
            require(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}, but it cannot be negative")
        large = draw_patterns(
            size, SCALE * self.side, periods=self.periods, lines=self.lines, shapes=self.shapes,
            generator=generator,
        )  # fmt: skip
        return halved(large), large

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).abs().mean()

    def metric(self, outputs: Tensor, targets: Tensor) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
        error = (outputs - targets).square().mean(dim=(1, 2, 3)).clamp(min=LEAST)
        return (-10 * error.log10()).sum(), torch.tensor(len(targets), device=targets.device)

    def perfect(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return targets
