"""Scenes of coloured shapes, drawn by the batch, with everything about them known.

A scene is drawn in two steps. `draw_objects` says what is there: kinds, colours, textures, places and sizes,
in shares of the image's side, so that one scene can be painted at any resolution. A task changes what it
wants (`dataclasses.replace(objects, colour=…)`), and `paint` makes images of it, and says of every pixel
whose it is. Labels follow from the two: `Scene.masks`, `Scene.boxes`, `Scene.kinds`, `relations`; objects are
listed from the farthest to the nearest, so an object's index is its rank in depth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from regardant.core.errors import require

Outline = Callable[[Tensor, Tensor], Tensor]
"""(to the right, downward), in radii from the centre → about the distance to the outline, negative inside."""


def _box(u: Tensor, v: Tensor, wide: float, high: float) -> Tensor:
    return torch.maximum(u.abs() - wide, v.abs() - high)


# Every outline lies within 1 of the centre, however it is turned.
KINDS: Mapping[str, Outline] = MappingProxyType(
    {
        "disc": lambda u, v: torch.hypot(u, v) - 0.95,
        "square": lambda u, v: _box(u, v, 0.7, 0.7),
        "triangle": lambda u, v: torch.maximum(v, 0.866 * u.abs() - 0.5 * v) - 0.5,
        "cross": lambda u, v: torch.minimum(_box(u, v, 0.95, 0.3), _box(u, v, 0.3, 0.95)),
        "bar": lambda u, v: _box(u, v, 0.95, 0.3),
        "crescent": lambda u, v: torch.maximum(torch.hypot(u, v) - 1, 0.85 - torch.hypot(u - 0.5, v)),
        "ell": lambda u, v: torch.minimum(_box(u + 0.4, v, 0.25, 0.75), _box(u, v - 0.5, 0.65, 0.25)),
        "ring": lambda u, v: (torch.hypot(u, v) - 0.72).abs() - 0.25,
    }
)
COLOURS: Mapping[str, tuple[float, float, float]] = MappingProxyType(
    {
        "red": (0.9, 0.1, 0.1),
        "green": (0.1, 0.75, 0.15),
        "blue": (0.15, 0.25, 0.95),
        "yellow": (0.95, 0.9, 0.1),
        "magenta": (0.9, 0.1, 0.85),
        "cyan": (0.1, 0.85, 0.9),
        "orange": (0.95, 0.55, 0.1),
        "white": (1.0, 1.0, 1.0),
    }
)
TEXTURES = ("solid", "rows", "columns", "checks")
GRAIN = 1 / 16
"""A texture's light and dark lines are this share of the image's side wide: 2 pixels of 32."""
DARK = 0.35
"""How bright a texture's dark lines are, of the colour."""


@dataclass(frozen=True)
class Objects:
    """What is in a batch of scenes, the farthest object first; lengths are in shares of the side."""

    kind: Int[Tensor, "b n"]
    colour: Int[Tensor, "b n"]
    texture: Int[Tensor, "b n"]
    centre: Float[Tensor, "b n 2"]
    """Row and column."""
    radius: Float[Tensor, "b n"]
    angle: Float[Tensor, "b n"]
    there: Bool[Tensor, "b n"]
    """Where not, nothing is painted."""

    def __getitem__(self, at: slice | Tensor) -> Objects:
        """Some of the scenes."""
        return Objects(*(getattr(self, field.name)[at] for field in fields(self)))


@dataclass(frozen=True)
class Scene:
    """Images of objects, brightness 0 to 1 before noise, and whose every pixel is."""

    objects: Objects
    images: Float[Tensor, "b 3 h w"]
    owner: Int[Tensor, "b h w"]
    """0 for the ground, i + 1 for object i."""

    @property
    def masks(self) -> Bool[Tensor, "b n h w"]:
        """What is to be seen of each object."""
        each = 1 + torch.arange(self.objects.kind.shape[1], device=self.owner.device)
        return self.owner[:, None] == each[:, None, None]

    @property
    def kinds(self) -> Int[Tensor, "b h w"]:
        """0 for the ground, 1 + kind for the pixels of an object."""
        return self._of_owner(1 + self.objects.kind)

    @property
    def boxes(self) -> Int[Tensor, "b n 4"]:
        """Top, left, bottom, right in pixels, of what is to be seen (bottom and right are the first beyond);
        zeros where nothing is."""
        masks = self.masks
        edges = []
        for along in (masks.any(dim=3), masks.any(dim=2)):
            length = along.shape[-1]
            first = along.int().argmax(dim=-1)
            last = length - along.flip(-1).int().argmax(dim=-1)
            edges.append((first, last))
        (top, bottom), (left, right) = edges
        return torch.stack([top, left, bottom, right], dim=-1) * masks.any(dim=(2, 3))[..., None]

    def _of_owner(self, values: Int[Tensor, "b n"]) -> Int[Tensor, "b h w"]:
        """Each pixel's value by its owner; the ground's is 0."""
        table = F.pad(values, (1, 0))
        return table.gather(1, self.owner.flatten(1)).view_as(self.owner)


def relations(objects: Objects) -> dict[str, Bool[Tensor, "b n n"]]:
    """What holds of object i to object j, by the relation's name; false where one of them is not there."""
    row, column = objects.centre.unbind(-1)
    rank = torch.arange(row.shape[1], device=row.device).expand_as(row)
    both = objects.there[:, :, None] & objects.there[:, None, :]
    pairs = {
        "left of": (column, torch.lt),
        "above": (row, torch.lt),
        "larger than": (objects.radius, torch.gt),
        "in front of": (rank, torch.gt),
        "of the kind of": (objects.kind, torch.eq),
        "of the colour of": (objects.colour, torch.eq),
        "of the texture of": (objects.texture, torch.eq),
    }
    return {
        name: both & holds(value[:, :, None], value[:, None, :]) for name, (value, holds) in pairs.items()
    }


def draw_objects(
    size: int, *, count: int, generator: torch.Generator, fewest: int | None = None, kinds: int = len(KINDS),
    colours: int = len(COLOURS), textures: int = 1, radius: tuple[float, float] = (0.1, 0.16),
    board: int | None = None, turn: float = math.pi,
) -> Objects:  # fmt: skip
    """`size` scenes of `count` objects (or of `fewest` to `count`), everything about them drawn evenly.

    Of kinds, colours and textures the first so many are used. With a `board` the objects lie in different
    cells of so many by so many, and never touch; without, anywhere, one over the other. `turn` is the most
    that an object is turned either way.
    """
    require(size >= 1, f"size is {size}, but at least 1 scene is drawn")
    require(count >= 1, f"count is {count}, but a scene has at least 1 object")
    least = count if fewest is None else fewest
    require(0 <= least <= count, f"fewest is {fewest}, but it lies between 0 and count={count}")
    for name, given, most in (
        ("kinds", kinds, len(KINDS)),
        ("colours", colours, len(COLOURS)),
        ("textures", textures, len(TEXTURES)),
    ):
        require(1 <= given <= most, f"{name} is {given}, but there are 1 to {most}")
    small, large = radius
    require(0 < small <= large <= 0.5, f"radius is {radius}, but it is a range within 0 to 0.5")

    def even(most: int) -> Int[Tensor, "b n"]:
        return torch.randint(most, (size, count), generator=generator)

    def between(low: float, high: float) -> Float[Tensor, "b n"]:
        return low + (high - low) * torch.rand(size, count, generator=generator)

    radii = between(small, large)
    some = torch.randint(least, count + 1, (size, 1), generator=generator)
    return Objects(
        kind=even(kinds),
        colour=even(colours),
        texture=even(textures),
        centre=draw_centres(radii, board=board, generator=generator),
        radius=radii,
        angle=between(-turn, turn),
        there=torch.arange(count).expand(size, count) < some,
    )


def draw_centres(
    radii: Float[Tensor, "b n"], *, board: int | None, generator: torch.Generator
) -> Float[Tensor, "b n 2"]:
    """Centres at which objects of these radii lie inside the image, and on a board inside their cells."""
    size, count = radii.shape
    if board is None:
        corner, width = torch.zeros(size, count, 2), 1.0
    else:
        require(board >= 1, f"board is {board}, but a board has at least 1 cell")
        require(
            count <= board**2, f"count is {count}, but a board of {board} by {board} holds {board**2} objects"
        )
        largest, width = radii.max().item(), 1 / board
        require(
            largest <= width / 2,
            f"radius is up to {largest:.3g}, but the cells of board={board} hold radii up to {width / 2:.3g}",
        )
        cells = torch.rand(size, board**2, generator=generator).topk(count, dim=-1).indices
        corner = torch.stack([cells // board, cells % board], dim=-1) * width
    room = (width - 2 * radii)[..., None]
    return corner + radii[..., None] + room * torch.rand(size, count, 2, generator=generator)


def paint(
    objects: Objects, side: int | tuple[int, int], *, generator: torch.Generator, noise: float = 0.05,
    clutter: float = 0.2,
) -> Scene:  # fmt: skip
    """Images of the objects, with soft edges, over a ground of blurred colours that vary by `clutter`.

    What is drawn here (ground, noise) is drawn after the objects: the same generator paints the same scene
    at every resolution.
    """
    height, width = (side, side) if isinstance(side, int) else side
    require(min(height, width) >= 1, f"side is {side}, but an image is at least 1 pixel wide")
    require(noise >= 0, f"noise is {noise}, but it is a deviation: at least 0")
    require(clutter >= 0, f"clutter is {clutter}, but it cannot be negative")
    batch, count = objects.kind.shape
    covers = coverage(objects, (height, width))
    shade = torch.tensor(list(COLOURS.values()))[objects.colour]
    ground = 0.3 + clutter * (torch.rand(batch, 3, 4, 4, generator=generator) - 0.5)
    images = F.interpolate(ground, (height, width), mode="bilinear")
    textured = _textures((height, width)) if objects.texture.any() else None
    owner = torch.zeros(batch, height, width, dtype=torch.long)
    for at in range(count):
        cover = covers[:, at, None]
        paint_of = shade[:, at, :, None, None]
        if textured is not None:
            paint_of = paint_of * textured[objects.texture[:, at], None]
        images = torch.lerp(images, paint_of.expand_as(images), cover.expand_as(images))
        owner.masked_fill_(covers[:, at] > 0.5, at + 1)
    if noise:
        images = images + noise * torch.randn(images.shape, generator=generator)
    return Scene(objects, images, owner)


def coverage(objects: Objects, size: tuple[int, int]) -> Float[Tensor, "b n h w"]:
    """How much of a pixel each object would cover, were it alone: 0 to 1, in between along its outline."""
    height, width = size
    rows = ((torch.arange(height) + 0.5) / height)[:, None]
    columns = ((torch.arange(width) + 0.5) / width)[None, :]
    row, column = objects.centre.flatten(0, 1).unbind(-1)
    radius, angle = (part.flatten()[:, None, None] for part in (objects.radius, objects.angle))
    down, right = (rows - row[:, None, None]) / radius, (columns - column[:, None, None]) / radius
    cosine, sine = angle.cos(), angle.sin()
    u, v = cosine * right + sine * down, cosine * down - sine * right
    outside = torch.empty(len(radius), height, width)
    kinds = objects.kind.flatten()
    for number, outline in enumerate(KINDS.values()):
        members = (kinds == number).nonzero()[:, 0]
        if len(members):
            outside[members] = outline(u[members], v[members])
    soft = radius * math.sqrt(height * width)  # radii → pixels
    cover = (0.5 - soft * outside).clamp(0, 1) * objects.there.flatten()[:, None, None]
    return cover.unflatten(0, objects.kind.shape)


def _textures(size: tuple[int, int]) -> Float[Tensor, "4 h w"]:
    """How bright each texture is at each pixel; textures lie still while objects move and turn."""
    height, width = size
    row = ((torch.arange(height) + 0.5) / height / GRAIN).long()[:, None].expand(size) % 2
    column = ((torch.arange(width) + 0.5) / width / GRAIN).long()[None, :].expand(size) % 2
    dark = torch.stack([torch.zeros_like(row), row, column, (row + column) % 2])
    return 1 - (1 - DARK) * dark
