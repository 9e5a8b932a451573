"""Multi-query associative recall (Arora et al., Zoology, 2023, arXiv 2312.04927).

A sequence begins with `pairs` keys and values, k₁ v₁ k₂ v₂ …; later every key comes once more, and
the label there is its value. All other labels are ignored. Keys are distinct and drawn from
1 … V/2−1, values are distinct and drawn from V/2 … V−1. The rest of the sequence is cut into slots
of two tokens; the keys come back in distinct slots g = 1, 2, …, drawn with p(g) ∝ a·g^(a−1), so
that with a = 0.01 short gaps are far commoner than long ones. All other tokens are drawn from the
whole vocabulary (so that a key may also appear as a filler: no model is right always).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from regardant.core.errors import require
from regardant.task.held_out import Drawn
from regardant.task.score import IGNORED, certain, hits, label_loss


def draw_recall(
    size: int, *, vocabulary: int, length: int, pairs: int, generator: torch.Generator,
    power: float = 0.01, wait: int = 0,
) -> tuple[Int[Tensor, "b n"], Int[Tensor, "b n"]]:  # fmt: skip
    """Sequences, and their labels at the positions of the repeated keys.

    `wait` keeps that many slots behind the pairs free of repeated keys (0 is the paper's task): no
    key then stands within 2·wait tokens of its pair.
    """
    slots = (length - 2 * pairs) // 2 - wait
    require(pairs >= 1, f"pairs is {pairs}, but there is at least one key and value")
    require(length % 2 == 0, f"length is {length}, but it is even: the sequence is made of pairs of tokens")
    require(power > 0, f"power is {power}, but the power law of the gaps needs a positive one")
    require(
        wait >= 0 and slots >= pairs,
        f"pairs={pairs} with wait={wait} leave {max(slots, 0)} slots to ask {pairs} keys in: "
        f"make length={length} at least {4 * pairs + 2 * wait}",
    )
    require(
        vocabulary > length and vocabulary // 2 - 1 >= pairs,
        f"vocabulary is {vocabulary}, but it must be larger than length={length}",
    )
    half = vocabulary // 2
    keys = 1 + _distinct(size, half - 1, pairs, generator)
    values = half + _distinct(size, vocabulary - half, pairs, generator)
    law = torch.arange(1, slots + 1, dtype=torch.float64).pow(power - 1).expand(size, slots)
    at = 2 * (pairs + wait + torch.multinomial(law, pairs, replacement=False, generator=generator))
    tokens = torch.randint(vocabulary, (size, length), generator=generator)
    tokens[:, 0 : 2 * pairs : 2] = keys
    tokens[:, 1 : 2 * pairs : 2] = values
    tokens.scatter_(1, at, keys)
    labels = torch.full((size, length), IGNORED).scatter_(1, at, values)
    return tokens, labels


def _distinct(size: int, room: int, count: int, generator: torch.Generator) -> Int[Tensor, "b count"]:
    """In every row, `count` different numbers below `room`, in random order."""
    return torch.rand(size, room, generator=generator).topk(count, dim=-1).indices


@dataclass(frozen=True)
class Recall(Drawn):
    """Multi-query associative recall as a task; the metric is the accuracy at the repeated keys."""

    vocabulary: int = 8192
    length: int = 64
    pairs: int = 4
    power: float = 0.01
    wait: int = 0
    held_out: int = 512

    name: ClassVar[str] = "multi-query associative recall"
    metric_name: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return draw_recall(
            size, vocabulary=self.vocabulary, length=self.length, pairs=self.pairs, power=self.power,
            wait=self.wait, generator=generator,
        )  # fmt: skip

    def perfect(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return certain(targets, self.vocabulary)

    loss = staticmethod(label_loss)
    metric = staticmethod(hits)


SPLITS = {64: 4, 128: 8, 256: 16, 512: 64}
"""The paper's lengths, and how many pairs each holds; the longest is the hardest."""


def split(length: int) -> Recall:
    """The paper's task at one of its lengths: 8,192 symbols, 3,000 sequences for validation."""
    require(length in SPLITS, f"length is {length}, but the paper's are {', '.join(map(str, SPLITS))}")
    return Recall(vocabulary=8192, length=length, pairs=SPLITS[length], held_out=3000)


def distances(tokens: Int[Tensor, "b n"], pairs: int) -> Int[Tensor, "b n"]:
    """How far behind a repeated key its pair stands; of no meaning where no key is repeated."""
    keys = tokens[:, None, 0 : 2 * pairs : 2]
    at = 2 * (tokens[:, :, None] == keys).int().argmax(dim=-1)
    return torch.arange(tokens.shape[1], device=tokens.device) - at
