"""Sequences whose next token shows in their tokens' frequencies (after Tian et al., "Scan and Snap", 2023).

The last token of a sequence is its query. Every next token n belongs to one query, and has a law P(l | n)
by which the other tokens are drawn, in any order: part of it on tokens of its own (distinct tokens, one
commoner than the next), the rest on tokens that all next tokens share (common tokens), which tell nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from regardant.core.errors import require
from regardant.task.held_out import Drawn
from regardant.task.score import certain, hits, label_loss


@dataclass(frozen=True)
class DistinctTokens(Drawn):
    """Name the next token of a sequence; the metric is the accuracy.

    Tokens are numbered: the distinct ones by their next token, the common ones, the queries, the next tokens.
    """

    queries: int = 2
    following: int = 4
    """Next tokens of each query."""
    shares: tuple[float, ...] = (0.4, 0.3, 0.2, 0.1)
    """What part of their weight each of a next token's distinct tokens has."""
    common: int = 8
    common_share: float = 0.5
    length: int = 128
    held_out: int = 512

    name: ClassVar[str] = "distinct and common tokens"
    metric_name: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True

    @property
    def classes(self) -> int:
        """How many next tokens there are."""
        return self.queries * self.following

    @property
    def contexts(self) -> int:
        """How many tokens may stand in a context, distinct ones first."""
        return self.classes * len(self.shares) + self.common

    @property
    def vocabulary(self) -> int:
        return self.contexts + self.queries + self.classes

    def query(self) -> Int[Tensor, " classes"]:
        """The query that each next token belongs to, as a token."""
        return self.contexts + torch.arange(self.classes) // self.following

    def law(self) -> Float[Tensor, "classes contexts"]:
        """P(l | n), in float64."""
        self._check()
        own = (1 - self.common_share) * torch.tensor(self.shares, dtype=torch.float64)
        law = torch.zeros(self.classes, self.contexts, dtype=torch.float64)
        law[:, self.classes * len(own) :] = self.common_share / self.common
        for each in range(self.classes):
            law[each, each * len(own) : (each + 1) * len(own)] = own
        return law

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        law = self.law()
        require(size >= 1, f"size is {size}, but at least 1 sample is drawn")
        chosen = torch.randint(self.classes, (size,), generator=generator)
        chance = torch.rand(size, self.length - 1, generator=generator, dtype=torch.float64)
        # What lies below no bound is the last token that the law allows.
        last = (law > 0).int().cumsum(dim=-1).argmax(dim=-1)
        context = torch.searchsorted(law.cumsum(dim=-1)[chosen], chance, right=True)
        context = torch.minimum(context, last[chosen, None])
        tokens = torch.cat([context, self.query()[chosen, None]], dim=1)
        return tokens, self.contexts + self.queries + chosen

    def perfect(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return certain(targets, self.vocabulary)

    loss = staticmethod(label_loss)
    metric = staticmethod(hits)

    def _check(self) -> None:
        for name in ("queries", "following", "common"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}, but it is at least 1")
        require(self.length >= 2, f"length is {self.length}, but a query has a context of at least 1 token")
        require(
            bool(self.shares) and min(self.shares) > 0 and abs(sum(self.shares) - 1) < 1e-9,
            f"shares is {self.shares}, but they are positive parts of 1",
        )
        require(
            0 <= self.common_share < 1,
            f"common_share is {self.common_share}, but it is a part of 1 that leaves distinct tokens some",
        )
