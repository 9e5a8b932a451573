"""Made-up phrases whose label follows from words that are known: sentiment with negation, synonyms in pairs.

Sentiment: one or three words of a polarity stand among neutral ones, some of them behind a NOT that turns
them round; the label is the sign of the sum. Pairs: two phrases with a separator; the label is whether the
second holds the synonym of a word of the first. `evidence` says which places the label follows from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from regardant.core.errors import require
from regardant.task.held_out import Drawn
from regardant.task.score import certain, hits, label_loss

PAD, CLS, SEP, NOT = 0, 1, 2, 3
SPECIAL = (PAD, CLS, SEP)
POSITIVE, NEGATIVE, NEUTRAL = range(4, 12), range(12, 20), range(20, 60)
WORDS, SYNONYMS, OTHERS = range(4, 8), range(8, 12), range(12, 52)


def _draw(words: range, shape: tuple[int, ...], generator: torch.Generator) -> Int[Tensor, "..."]:
    return torch.randint(words.start, words.stop, shape, generator=generator)


@dataclass(frozen=True)
class _Phrases(Drawn):
    shortest: int = 10
    longest: int = 24
    held_out: int = 512

    classes: ClassVar[int] = 2
    metric_name: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(
            10 <= self.shortest <= self.longest,
            f"shortest is {self.shortest} and longest {self.longest}, but phrases have 10 words or more",
        )

    def perfect(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return certain(targets, self.classes)

    loss = staticmethod(label_loss)
    metric = staticmethod(hits)

    def _lengths(self, size: int, generator: torch.Generator) -> Int[Tensor, "b"]:
        return torch.randint(self.shortest, self.longest + 1, (size,), generator=generator)


@dataclass(frozen=True)
class Sentiment(_Phrases):
    """Is the phrase positive? Tokens [b, longest + 1], CLS first, padded behind."""

    negated: float = 0.4
    name: ClassVar[str] = "sentiment with negation"
    vocabulary: ClassVar[int] = NEUTRAL.stop

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        lengths, places = self._lengths(size, generator), torch.arange(self.longest)
        tokens = _draw(NEUTRAL, (size, self.longest), generator)
        # Words stand at odd places, so that a NOT before one is never another's.
        order = torch.rand(size, self.longest, generator=generator)
        order = order.masked_fill((places % 2 == 0) | (places >= lengths[:, None]), 2.0)
        chosen = order.argsort(dim=1)[:, :3]
        count = torch.where(torch.rand(size, 1, generator=generator) < 0.5, 1, 3)
        used = torch.arange(3) < count
        good = torch.rand(size, 3, generator=generator) < 0.5
        turned = torch.rand(size, 3, generator=generator) < self.negated
        words = torch.where(
            good, _draw(POSITIVE, (size, 3), generator), _draw(NEGATIVE, (size, 3), generator)
        )
        tokens.scatter_(1, chosen, torch.where(used, words, tokens.gather(1, chosen)))
        before = chosen - 1
        tokens.scatter_(1, before, torch.where(used & turned, NOT, tokens.gather(1, before)))
        polarity = torch.where(good ^ turned, 1, -1) * used
        tokens = tokens.masked_fill(places >= lengths[:, None], PAD)
        first = torch.full((size, 1), CLS)
        return torch.cat([first, tokens], dim=1), (polarity.sum(1) > 0).long()

    def evidence(self, tokens: Int[Tensor, "b n"]) -> Bool[Tensor, "b n"]:
        """Words with a polarity, and what turns them round."""
        return (tokens >= NOT) & (tokens < NEUTRAL.start)


@dataclass(frozen=True)
class Synonyms(_Phrases):
    """Does the second phrase hold a synonym of a word of the first? CLS A SEP B, padded behind."""

    name: ClassVar[str] = "synonyms in pairs"
    vocabulary: ClassVar[int] = OTHERS.stop

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        lengths = self._lengths(size, generator)
        half = (lengths // 2)[:, None]
        places = torch.arange(self.longest)
        tokens = _draw(OTHERS, (size, self.longest), generator)
        words = torch.stack([torch.randperm(len(WORDS), generator=generator)[:3] for _ in range(size)])
        first, other = words[:, :1], words[:, 1:2]
        label = torch.rand(size, 1, generator=generator) < 0.5
        at = (torch.rand(size, 1, generator=generator) * (half - 1)).long()
        tokens.scatter_(1, at, first + WORDS.start)
        behind = half + 1 + (torch.rand(size, 1, generator=generator) * (lengths[:, None] - half - 2)).long()
        tokens.scatter_(1, behind, torch.where(label, first, other) + SYNONYMS.start)
        tokens.scatter_(1, half, SEP)
        tokens = tokens.masked_fill(places >= lengths[:, None], PAD)
        return torch.cat([torch.full((size, 1), CLS), tokens], dim=1), label.long()[:, 0]

    def evidence(self, tokens: Int[Tensor, "b n"]) -> Bool[Tensor, "b n"]:
        """The word and the (other) synonym."""
        return (tokens >= WORDS.start) & (tokens < SYNONYMS.stop)
