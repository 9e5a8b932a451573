"""Coloured shapes told apart: image by image, pixel by pixel, by a fine and a coarse cue, two by two."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from regardant.core.errors import require, unknown
from regardant.task.painted import Painted
from regardant.task.score import overlaps
from regardant.task.shapes import Objects, draw_objects

Asked = Literal["kind", "colour", "texture", "kind and colour"]
Alike = Literal["kind", "colour", "texture"]


@dataclass(frozen=True, kw_only=True)
class ShapeClasses(Painted):
    """What is the one shape in the image? It lies anywhere, turned anyhow."""

    asked: Asked = "kind"
    kinds: int = 8
    colours: int = 8
    textures: int = 4
    radius: tuple[float, float] = (0.15, 0.3)

    name: ClassVar[str] = "classes of shapes"

    @property
    def classes(self) -> int:
        return {
            "kind": self.kinds,
            "colour": self.colours,
            "texture": self.textures,
            "kind and colour": self.kinds * self.colours,
        }[self.asked]

    def objects(self, size: int, generator: torch.Generator) -> tuple[Objects, Int[Tensor, "b"]]:
        if self.asked not in get_args(Asked):
            raise unknown("asked", self.asked, get_args(Asked))
        objects = draw_objects(
            size, count=1, kinds=self.kinds, colours=self.colours, textures=self.textures, radius=self.radius,
            generator=generator,
        )  # fmt: skip
        if self.asked == "kind and colour":
            return objects, (self.colours * objects.kind + objects.colour)[:, 0]
        return objects, getattr(objects, self.asked)[:, 0]


@dataclass(frozen=True, kw_only=True)
class ShapeMasks(Painted):
    """Whose is every pixel: of the ground (0) or of a shape, by its kind. Shapes lie one over the other.

    Outputs are logits [b, side, side, classes]; the metric is the mean intersection over union.
    """

    count: int = 5
    fewest: int = 2
    kinds: int = 8
    colours: int = 8
    textures: int = 1
    radius: tuple[float, float] = (0.1, 0.25)
    held_out: int = 256

    portion: ClassVar[int] = 64
    name: ClassVar[str] = "masks of shapes"
    metric_name: ClassVar[str] = "mean intersection over union"

    @property
    def classes(self) -> int:
        return 1 + self.kinds

    def objects(self, size: int, generator: torch.Generator) -> tuple[Objects, Int[Tensor, "b n"]]:
        objects = draw_objects(
            size, count=self.count, fewest=self.fewest, kinds=self.kinds, colours=self.colours,
            textures=self.textures, radius=self.radius, generator=generator,
        )  # fmt: skip
        return objects, objects.kind

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        scene = self.painted(self.objects(size, generator)[0], generator)
        return scene.images, scene.kinds

    metric = staticmethod(overlaps)


@dataclass(frozen=True, kw_only=True)
class TextureAndLayout(Painted):
    """A fine and a coarse cue, and the label is their combination: which texture two shapes have, 2 pixels
    of 32 fine, and which way the one lies from the other, across the image: beside, below, or on either
    diagonal."""

    textures: int = 4

    layouts: ClassVar[int] = 4
    name: ClassVar[str] = "texture and layout"

    @property
    def classes(self) -> int:
        return self.textures * self.layouts

    def objects(self, size: int, generator: torch.Generator) -> tuple[Objects, Int[Tensor, "b"]]:
        objects = draw_objects(
            size, count=2, kinds=2, textures=self.textures, radius=(0.13, 0.18), generator=generator
        )
        layout = torch.randint(self.layouts, (size,), generator=generator)
        # Half turns leave a layout what it is; an eighth of a turn makes the next of it.
        angle = layout * (math.pi / self.layouts)
        angle = angle + (torch.rand(size, generator=generator) - 0.5) * (0.6 * math.pi / self.layouts)
        apart = 0.24 + 0.06 * torch.rand(size, generator=generator)
        way = torch.stack([angle.sin(), angle.cos()], dim=-1) * apart[:, None]
        place = 0.5 + 0.04 * (torch.rand(size, 1, 2, generator=generator) - 0.5)
        texture = objects.texture[:, :1]
        objects = replace(
            objects, centre=place + torch.stack([way, -way], dim=1), texture=texture.expand(-1, 2)
        )
        return objects, self.layouts * texture[:, 0] + layout


@dataclass(frozen=True, kw_only=True)
class SameOrDifferent(Painted):
    """Are the two shapes of the image alike in what is asked? All else about them says nothing."""

    asked: Alike = "kind"
    kinds: int = 8
    colours: int = 8
    textures: int = 1
    board: int = 2

    name: ClassVar[str] = "same or different"

    @property
    def classes(self) -> int:
        return 2

    def objects(self, size: int, generator: torch.Generator) -> tuple[Objects, Int[Tensor, "b"]]:
        if self.asked not in get_args(Alike):
            raise unknown("asked", self.asked, get_args(Alike))
        options = {"kind": self.kinds, "colour": self.colours, "texture": self.textures}[self.asked]
        require(options >= 2, f"{self.asked}s is {options}, but it takes 2 to be different")
        objects = draw_objects(
            size, count=2, kinds=self.kinds, colours=self.colours, textures=self.textures,
            radius=(0.6 * 0.5 / self.board, 0.5 / self.board), board=self.board, generator=generator,
        )  # fmt: skip
        same = torch.randint(2, (size,), generator=generator)
        first = getattr(objects, self.asked)[:, 0]
        other = (first + torch.randint(1, options, (size,), generator=generator)) % options
        second = torch.where(same == 1, first, other)
        return replace(objects, **{self.asked: torch.stack([first, second], dim=1)}), same
