"""Segmentation that needs a far look: what a shape's class is, is decided by a patch somewhere else.

Every image holds one reference patch of a random colour and, over a noisy ground, several squares of
random colours. A square's pixels are of class 2 where its colour is the patch's, else of class 1; the
ground, the patch included, is class 0. Local colour alone cannot tell 1 from 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from regardant.core.errors import require
from regardant.task.held_out import Drawn
from regardant.task.score import certain, label_loss, overlaps

CLASSES = 3


def draw_reference_patch(
    size: int, *, side: int, colours: int, squares: int, edge: int, noise: float, generator: torch.Generator
) -> tuple[Float[Tensor, "b side side channels"], Int[Tensor, "b side side"]]:
    """Images, channels last: one channel a colour and one that marks the reference patch; and the classes.

    The image is a board of cells, each twice as wide as a square; patch and squares lie in different
    cells, at random places in them.
    """
    require(1 <= edge <= side // 2, f"edge is {edge}, but squares of side={side} are 1 to {side // 2} wide")
    board = side // (2 * edge)
    require(colours >= 2, f"colours is {colours}, but it takes 2 to tell one from another")
    require(
        1 <= squares < board**2,
        f"squares is {squares}, but side={side} with edge={edge} has room for {board**2 - 1} and the patch",
    )
    count = squares + 1
    cells = torch.rand(size, board**2, generator=generator).topk(count, dim=-1).indices
    corner = 2 * edge * torch.stack([cells // board, cells % board], dim=-1)
    corner = corner + torch.randint(edge + 1, (size, count, 2), generator=generator)
    colour = torch.randint(colours, (size, count), generator=generator)
    # One square at least has the patch's colour, so that class 2 is never missing.
    colour[:, 1] = colour[:, 0]
    away = torch.arange(side) - corner[..., None]
    inside = (away >= 0) & (away < edge)
    covered = inside[:, :, 0, :, None] & inside[:, :, 1, None, :]
    image = noise * torch.randn(size, side, side, colours + 1, generator=generator)
    shade = F.one_hot(colour, colours + 1).float()
    shade[:, 0, colours] = 1.0
    image = image + torch.einsum("bkhw,bkc->bhwc", covered.float(), shade)
    same = (colour == colour[:, :1]).long() + 1
    same[:, 0] = 0
    return image, torch.einsum("bkhw,bk->bhw", covered.long(), same)


@dataclass(frozen=True)
class ReferencePatch(Drawn):
    """Segment images by a far reference; the metric is the mean intersection over union of the classes."""

    side: int = 32
    colours: int = 4
    squares: int = 8
    edge: int = 4
    noise: float = 0.1
    held_out: int = 128

    portion: ClassVar[int] = 32
    name: ClassVar[str] = "reference patch"
    metric_name: ClassVar[str] = "mean intersection over union"
    higher_is_better: ClassVar[bool] = True
    classes: ClassVar[int] = CLASSES

    @property
    def channels(self) -> int:
        return self.colours + 1

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return draw_reference_patch(
            size, side=self.side, colours=self.colours, squares=self.squares, edge=self.edge,
            noise=self.noise, generator=generator,
        )  # fmt: skip

    def perfect(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return certain(targets, CLASSES)

    loss = staticmethod(label_loss)
    metric = staticmethod(overlaps)
