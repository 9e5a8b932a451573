"""Length extrapolation: bytes of real text, learned in short windows and read in windows many times as long.

A model that keeps what it is worth beyond the length of its training predicts the last bytes of a long window
at least as well as those of a short one; one that does not falls behind, or apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from regardant.core.errors import require
from regardant.task.bytes import Bytes
from regardant.task.score import IGNORED


@dataclass(frozen=True)
class Extrapolation(Bytes):
    """Predict the next byte, trained on windows of `length`; the metric is the mean loss in nats over the
    last `length` bytes of unseen windows that are `times` as long."""

    length: int = 64
    times: int = 8
    held_out: int = 64

    name: ClassVar[str] = "length extrapolation"

    def __post_init__(self) -> None:
        require(self.times >= 1, f"times is {self.times}, but the windows that are read are no shorter")

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        for tokens, targets in self.long().validation():
            unscored = torch.full_like(targets[:, : -self.length], IGNORED)
            yield tokens, torch.cat([unscored, targets[:, -self.length :]], dim=1)

    def long(self) -> Bytes:
        """The windows that are read, with all of their targets."""
        return Bytes(length=self.times * self.length, held_out=self.held_out, folder=self.folder)


def loss_by_length(
    losses: Float[Tensor, "b n"], length: int, times: int
) -> list[tuple[int, Float[Tensor, ""]]]:
    """How well the ends of windows of 1, 2, 4, … times the length are predicted, from the loss of every byte
    of the long ones: the mean over the last half of each, to which the first half is context."""
    lengths = [length * 2**k for k in range(times.bit_length())]
    return [(at, losses[:, at // 2 : at].mean()) for at in lengths]
