"""One small task for each of the four uses of attention (Zhang et al., CAB, 2022, arXiv:2210.07661).

CAB asks an efficient attention whether it serves noncausal and causal self-attention, noncausal and causal
cross-attention; a layer that does well in one is often at a loss in another. Its seven tasks are large; these
four ask the same in minutes, each of a layer used in one way and no other:

    noncausal self    bytes of real text, some of them hidden: what are they?
    causal self       the next byte
    noncausal cross   half of a point cloud: where is the other half?
    causal cross      a sequence in memory: say it backwards, a symbol at a time

A task across two sequences gives both in one tensor, the memory first: `memory` says how long that is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import pi
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from regardant.core.errors import require
from regardant.task.bytes import Bytes
from regardant.task.held_out import Drawn, validation_generator
from regardant.task.score import IGNORED, certain, hits, label_loss


@dataclass(frozen=True)
class NextBytes(Bytes):
    """Causal self-attention: predict the next byte; the metric is the mean loss in nats on unseen modules."""

    length: int = 64

    name: ClassVar[str] = "next byte"

    def __post_init__(self) -> None:
        require(self.held_out >= 1, f"held_out is {self.held_out}, but validation takes at least 1 window")

    def perfect(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return certain(targets, self.vocabulary)


@dataclass(frozen=True)
class MaskedBytes(NextBytes):
    """Noncausal self-attention: tell the bytes that are hidden, a share `hidden` of them, by those around."""

    hidden: float = 0.15

    vocabulary: ClassVar[int] = 257
    """The bytes, and the mask."""
    mask: ClassVar[int] = 256
    name: ClassVar[str] = "hidden bytes"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            0 < self.hidden < 1, f"hidden is {self.hidden}, but it is a share of the bytes: between 0 and 1"
        )

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return self._hide(super().batch(size, generator)[0], generator)

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = validation_generator()
        for tokens, _ in super().validation():
            yield self._hide(tokens, generator)

    def _hide(self, tokens: Int[Tensor, "b n"], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        away = torch.rand(tokens.shape, generator=generator) < self.hidden
        away[:, 0] |= ~away.any(dim=1)  # every window asks something
        return tokens.masked_fill(away, self.mask), tokens.masked_fill(~away, IGNORED)


def draw_outlines(
    size: int, *, seen: int, asked: int, generator: torch.Generator
) -> tuple[Float[Tensor, "b seen 2"], Float[Tensor, "b asked 2"]]:
    """Points of a closed curve on one side of its centre, in random order, and those asked on the other side.

    The curve is its own image under a half turn, about a centre that is not known: the radius is
    1 + Σ_k a_k cos(kθ + φ_k) over k = 2, 4, 6. The points asked stand at even angles, the same for all.
    """
    require(seen >= 1 and asked >= 1, f"seen={seen} and asked={asked}, but there is at least 1 point of each")
    centre = 0.3 * torch.randn(size, 1, 2, generator=generator)
    height = 0.15 * torch.randn(size, 3, 1, generator=generator)
    phase = 2 * pi * torch.rand(size, 3, 1, generator=generator)
    known = pi * torch.rand(size, seen, generator=generator)
    wanted = pi * (1 + (torch.arange(asked) + 0.5) / asked).expand(size, -1)

    def points(angle: Tensor) -> Tensor:
        order = torch.tensor([2.0, 4.0, 6.0])[:, None]
        radius = 1 + (height * torch.cos(order * angle[:, None] + phase)).sum(dim=1)
        return centre + radius[..., None] * torch.stack([angle.cos(), angle.sin()], dim=-1)

    return points(known), points(wanted)


@dataclass(frozen=True)
class Completion(Drawn):
    """Noncausal cross-attention: half of a point cloud in memory, the other half asked for. The metric is
    the mean squared distance to the points, which every model gives in the order of their angles."""

    seen: int = 48
    asked: int = 16
    held_out: int = 256

    features: ClassVar[int] = 2
    portion: ClassVar[int] = 128
    name: ClassVar[str] = "the other half of an outline"
    metric_name: ClassVar[str] = "mean squared distance"
    higher_is_better: ClassVar[bool] = False

    @property
    def memory(self) -> int:
        return self.seen

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return draw_outlines(size, seen=self.seen, asked=self.asked, generator=generator)

    def perfect(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return targets.clone()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().sum(dim=-1).mean()

    def metric(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        distances = (outputs - targets).square().sum(dim=-1)
        return distances.sum(), torch.tensor(distances.numel(), device=distances.device)


@dataclass(frozen=True)
class Reversal(Drawn):
    """Causal cross-attention: a sequence in memory, to be said backwards symbol by symbol; the metric is the
    accuracy. The inputs are the memory, the begin sign and what was said so far."""

    symbols: int = 32
    memory: int = 32
    held_out: int = 256

    portion: ClassVar[int] = 128
    name: ClassVar[str] = "backwards from memory"
    metric_name: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(self.symbols >= 2, f"symbols is {self.symbols}, but it takes 2 to tell a sequence")
        require(self.memory >= 1, f"memory is {self.memory}, but a sequence has at least 1 symbol")

    @property
    def vocabulary(self) -> int:
        """The symbols, and the begin sign."""
        return self.symbols + 1

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        memory = torch.randint(self.symbols, (size, self.memory), generator=generator)
        said = memory.flip(1)
        begin = torch.full((size, 1), self.symbols)
        return torch.cat([memory, begin, said[:, :-1]], dim=1), said

    def perfect(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return certain(targets, self.vocabulary)

    loss = staticmethod(label_loss)
    metric = staticmethod(hits)
