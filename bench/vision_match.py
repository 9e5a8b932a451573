"""A match: a system of ours, the code of a repository with the same weights, and what both are timed on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.contest import Contest
from bench.peers_official import missing
from bench.vision_official import TIMM, Two

IMAGE, IMAGES = (1, 3, 224, 224), (4, 3, 224, 224)
Shape = tuple[int, ...]
Shapes = Shape | tuple[Shape, ...]
"""Of the one input, or of each of several."""


def whole(ours: nn.Module, theirs: nn.Module, shape: Shapes) -> Two:
    return ours, theirs


def alike(x: Tensor) -> Tensor:
    return x


def tokens(x: Tensor) -> Tensor:
    """A map [b, h, w, c] as [b, n, c]."""
    return x.flatten(1, 2)


def channels_first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2).contiguous()


@dataclass(frozen=True)
class Match:
    """A system of ours and the code of a repository, and the inputs that they are timed on.

    `border`: so many positions from the edge the outputs may differ; None where all of them do, for the
    reason that stands at `make`. `trains` is False where theirs does something else in training mode.

    `layer`: it is no whole network. `part` is what runs of the networks that `make` makes, on inputs of such
    shapes, and `laid` is how theirs lays out what ours hands on as it is.
    """

    name: str
    system: str
    make: Callable[[], Two]
    repository: str
    shapes: Sequence[Shapes] = (IMAGE, IMAGES)
    border: int | None = 0
    trains: bool = True
    layer: bool = False
    part: Callable[[nn.Module, nn.Module, Shapes], Two] = whole
    laid: Callable[[Tensor], Tensor] = alike

    def lacks(self) -> str | None:
        """Why it cannot be measured here, or None."""
        return missing(self.repository) or missing(TIMM)

    def contest(self, made: Two, shape: Shapes) -> Contest:
        """Both on the same numbers, each in its own layout."""
        generator = torch.Generator().manual_seed(0)
        inputs = [torch.randn(each, generator=generator) for each in several(shape)]
        ours, theirs = self.part(*made, shape)
        return Contest.of_layers(ours, theirs, *inputs, their_inputs=tuple(map(self.laid, inputs)))


def several(shape: Shapes) -> tuple[Shape, ...]:
    return shape if isinstance(shape[0], tuple) else (shape,)


def spell(shape: Shapes) -> str:
    return " and ".join(" × ".join(map(str, each)) for each in several(shape))
