"""Coloured shapes where the answer takes two places that lie apart: one says which the other is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from regardant.core.errors import require, unknown
from regardant.task.painted import Painted
from regardant.task.shapes import COLOURS, KINDS, Objects, draw_objects

RING, BAR = list(KINDS).index("ring"), list(KINDS).index("bar")
WHITE = list(COLOURS).index("white")
Asked = Literal["kind", "texture"]


@dataclass(frozen=True, kw_only=True)
class FarReference(Painted):
    """A ring lies in a corner; what is the shape of the ring's colour?

    The image is a board of cells. `count` shapes of different colours, none of them a ring, lie in cells at
    least `apart` away from the ring's, along an axis; one has its colour. Asked is that one's kind or its
    texture. Who does not see the ring is right once in `count` times, and now and then by chance.
    """

    asked: Asked = "kind"
    count: int = 4
    kinds: int = 4
    textures: int = 4
    board: int = 4
    apart: int = 2

    name: ClassVar[str] = "far reference"

    @property
    def classes(self) -> int:
        return {"kind": self.kinds, "texture": self.textures}[self.asked]

    def objects(self, size: int, generator: torch.Generator) -> tuple[Objects, Int[Tensor, "b"]]:
        """The ring is object 0."""
        if self.asked not in get_args(Asked):
            raise unknown("asked", self.asked, get_args(Asked))
        require(
            self.kinds < len(KINDS), f"kinds is {self.kinds}, but beside the ring there are {len(KINDS) - 1}"
        )
        require(
            1 <= self.apart < self.board, f"apart is {self.apart}, but it is 1 to board={self.board} less 1"
        )
        room = self.board**2 - self.apart**2
        most = min(room, len(COLOURS))
        require(
            1 <= self.count <= most, f"count is {self.count}, but here are cells and colours for 1 to {most}"
        )
        width = 1 / self.board
        objects = draw_objects(
            size, count=1 + self.count, kinds=self.kinds, textures=self.textures,
            radius=(0.35 * width, 0.5 * width), generator=generator,
        )  # fmt: skip
        centre = self._places(objects, generator)
        colour = torch.rand(size, len(COLOURS), generator=generator).topk(self.count, dim=-1).indices
        chosen = torch.randint(self.count, (size, 1), generator=generator)
        colour = torch.cat([colour.gather(1, chosen), colour], dim=1)
        kind, texture = objects.kind.clone(), objects.texture.clone()
        kind[:, 0], texture[:, 0] = RING, 0
        objects = replace(objects, kind=kind, texture=texture, colour=colour, centre=centre)
        return objects, getattr(objects, self.asked).gather(1, 1 + chosen)[:, 0]

    def _places(self, objects: Objects, generator: torch.Generator) -> Tensor:
        """The ring in the first cell, the others in different ones far from it; then mirrored at random."""
        size = len(objects.kind)
        cells = torch.arange(self.board**2)
        row, column = cells // self.board, cells % self.board
        far = cells[(row >= self.apart) | (column >= self.apart)]
        taken = far[torch.rand(size, len(far), generator=generator).topk(self.count, dim=-1).indices]
        taken = torch.cat([torch.zeros(size, 1, dtype=torch.long), taken], dim=1)
        corner = torch.stack([row[taken], column[taken]], dim=-1) / self.board
        radius = objects.radius[..., None]
        within = torch.rand(*taken.shape, 2, generator=generator)
        centre = corner + radius + (1 / self.board - 2 * radius) * within
        mirrored = torch.randint(2, (size, 1, 2), generator=generator).bool()
        return torch.where(mirrored, 1 - centre, centre)


@dataclass(frozen=True, kw_only=True)
class CuedRow(Painted):
    """Every shape lies in a row of its own, and a white bar at the left edge marks one row: what is there?"""

    rows: int = 4
    kinds: int = 4
    side: int = 24

    name: ClassVar[str] = "cued row"

    @property
    def classes(self) -> int:
        return self.kinds

    def objects(self, size: int, generator: torch.Generator) -> tuple[Objects, Int[Tensor, "b"]]:
        """The bar is the last object."""
        require(self.rows >= 1, f"rows is {self.rows}, but a shape lies in at least 1")
        half = 0.5 / self.rows
        objects = draw_objects(
            size, count=self.rows + 1, kinds=self.kinds, colours=WHITE,
            radius=(min(0.8 * half, 0.25), min(half, 0.25)), generator=generator,
        )  # fmt: skip
        row = (torch.arange(self.rows + 1) + 0.5) / self.rows
        left = 0.2 + objects.radius
        column = left + (1 - objects.radius - left) * torch.rand(size, self.rows + 1, generator=generator)
        cued = torch.randint(self.rows, (size,), generator=generator)
        label = objects.kind.gather(1, cued[:, None])[:, 0]
        centre = torch.stack([row.expand_as(column), column], dim=-1)
        centre[:, -1, 0], centre[:, -1, 1] = row[cued], 0.08
        changed = {"kind": BAR, "colour": WHITE, "radius": 0.08, "angle": 0.0}
        for name, value in changed.items():
            changed[name] = getattr(objects, name).clone()
            changed[name][:, -1] = value
        return replace(objects, centre=centre, **changed), label
