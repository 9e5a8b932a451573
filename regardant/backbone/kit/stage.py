"""Blocks and stages: a stage is a string of letters, one a layer, and what each letter stands for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regardant.backbone.kit.feed_forward import FeedForward
from regardant.backbone.kit.field import Field, in_turn
from regardant.backbone.kit.residual import DropPath, InTurn, Residual, call
from regardant.core.errors import require, unknown
from regardant.core.product import Linear, listened_to, watched
from regardant.core.record import Record

Norm = Callable[[int], nn.Module]


class Block(nn.Module):
    """The common block: x + mixer(norm x), then x + feed_forward(norm x).

    `before` and `between` are parts that x goes through first, and between the two (a depthwise
    convolution with its residual, a token reorganisation that leaves fewer tokens).
    """

    def __init__(
        self, dim: int, mixer: nn.Module, feed_forward: nn.Module | None, *, norm: Norm = nn.LayerNorm,
        before: nn.Module | None = None, between: nn.Module | None = None, drop_path: float = 0.0,
        scale: float | None = None,
    ):  # fmt: skip
        super().__init__()
        self.before, self.between = before or nn.Identity(), between or nn.Identity()
        self.mix = Residual(mixer, dim, norm=norm(dim), drop_path=drop_path, scale=scale)
        self.feed = (
            nn.Identity()
            if feed_forward is None
            else Residual(feed_forward, dim, norm=norm(dim), drop_path=drop_path, scale=scale)
        )

    @property
    def parts(self) -> tuple[nn.Module, ...]:
        return self.before, self.mix, self.between, self.feed

    def forward(self, x: Tensor, *, record: Record | None = None, plainly: bool = False) -> Tensor:
        for part in self.parts:
            if not isinstance(part, nn.Identity):
                x = call(part, x, record=record, plainly=plainly)
        return x

    def first(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b 1 c"]:
        """What `forward` makes of the first token, where nobody asks for the others: of those, what their
        keys and values are made of is all that is computed."""
        return self.feed(self.mix.first(x))

    def knows_first(self, x: Float[Tensor, "b n c"]) -> bool:
        """Whether `first` can say it: each part but the mixer does the same for every token by itself (a gate
        that was put in does not), and nobody is there who would miss the rest."""
        mixer = type(self.mix.branch)
        return (
            "first" in vars(mixer)
            and all(isinstance(part, nn.Identity) for part in (self.before, self.between))
            and all(type(part) in (mixer, *BY_TOKEN) for part in self.modules())
            and not (listened_to(self) or watched(x.device.type))
        )

    def field(self, height: int, width: int) -> Field:
        return in_turn(self.parts, height, width)


BY_TOKEN = (
    Block, Residual, DropPath, FeedForward, nn.Identity, nn.LayerNorm, nn.Linear, Linear, nn.GELU,
)  # fmt: skip
"""Parts that do the same for every token by itself."""


class Stage(nn.Module):
    """What brings the map to the stage's size (`entry`), the layers, and what ends them (`ending`)."""

    def __init__(
        self, layers: Sequence[nn.Module], *, entry: nn.Module | None = None,
        ending: nn.Module | None = None,
    ):  # fmt: skip
        super().__init__()
        self.entry, self.ending = entry or nn.Identity(), ending or nn.Identity()
        self.layers = InTurn(*layers)

    def forward(self, x: Tensor, *, record: Record | None = None, plainly: bool = False) -> Tensor:
        for part in (self.entry, self.layers, self.ending):
            x = call(part, x, record=record, plainly=plainly)
        return x

    def field(self, height: int, width: int) -> Field:
        return in_turn((self.entry, *self.layers, self.ending), height, width)


def make_layers(
    letters: str, makers: Mapping[str, Callable[[float], nn.Module]], drop_path: Sequence[float]
) -> list[nn.Module]:
    """One layer a letter; its maker is told how often it is dropped.

    `makers["W"]` is asked for every W: `make_layers("WCWC", {"W": window, "C": channel}, rates)`.
    """
    require(
        len(drop_path) == len(letters), f"drop_path holds {len(drop_path)} rates for {len(letters)} layers"
    )
    for letter in letters:
        if letter not in makers:
            raise unknown("layer", letter, makers) from None
    return [makers[letter](rate) for letter, rate in zip(letters, drop_path)]


def drop_rates(drop_path: float, depths: Sequence[int]) -> list[list[float]]:
    """Rates that grow linearly with depth from 0 to `drop_path`, those of each stage together."""
    require(0 <= drop_path < 1, f"drop_path is {drop_path}, but it is a probability below 1")
    rates = torch.linspace(0, drop_path, sum(depths), device="cpu").tolist()
    cuts = [sum(depths[:at]) for at in range(len(depths) + 1)]
    return [rates[first:last] for first, last in pairwise(cuts)]
