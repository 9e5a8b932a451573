"""The recall gap (Arora et al., "Zoology: Measuring and Improving Recall in Efficient Language Models", 2023,
arXiv:2312.04927): how much of the gap between two language models is recall from the context.

A token is a hit when it ends a bigram that stood in the same context before, so that it could have been
looked up there; common bigrams are no evidence, for they are known from training, so hits are kept to bigrams
that occur at most `rare` times in the training text. With the losses of two models on the same tokens,

    share = Σ_hits (loss - better loss) / Σ_all (loss - better loss)

is the part of the gap that hits account for, to be held against the part of the tokens that they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from regardant.core.errors import require
from regardant.core.known_answer import KnownAnswer


def bigram_counts(tokens: Int[Tensor, "*b n"], vocabulary: int) -> Int[Tensor, "v v"]:
    """How often each token followed each in these texts."""
    require(
        bool(((tokens >= 0) & (tokens < vocabulary)).all()),
        f"tokens go from {int(tokens.min())} to {int(tokens.max())}, but vocabulary={vocabulary}",
    )
    pairs = tokens[..., :-1] * vocabulary + tokens[..., 1:]
    return torch.bincount(pairs.flatten(), minlength=vocabulary**2).view(vocabulary, vocabulary)


def hits(
    tokens: Int[Tensor, "b n"], targets: Int[Tensor, "b n"], counts: Int[Tensor, "v v"] | None = None,
    *, rare: int = 0,
) -> Bool[Tensor, "b n"]:  # fmt: skip
    """Whether the target of each position was seen before in this context behind the same token; with
    `counts` of the training text, only of bigrams that occur there at most `rare` times."""
    require(tokens.shape == targets.shape, f"targets is {list(targets.shape)}, not {list(tokens.shape)}")
    require(rare >= 0, f"rare is {rare}, but occurrences are counted from 0")
    pair = tokens * (1 + int(max(tokens.max(), targets.max()))) + targets
    by_pair, order = pair.sort(dim=1, stable=True)
    again = torch.zeros_like(by_pair, dtype=torch.bool)
    again[:, 1:] = by_pair[:, 1:] == by_pair[:, :-1]
    found = torch.zeros_like(again).scatter(1, order, again)
    return found if counts is None else found & (counts[tokens, targets] <= rare)


@dataclass(frozen=True)
class Gap:
    """Between two models, in nats a token of all: what hits contribute, and what the others do."""

    hits: float
    others: float
    tokens: float
    """The share of the tokens that are hits."""

    @property
    def whole(self) -> float:
        return self.hits + self.others

    @property
    def share(self) -> float:
        """The part of the gap that hits account for."""
        return self.hits / self.whole


class RecallGap:
    """Collects the losses of a model and of a better one on the same texts, batch by batch."""

    def __init__(self, counts: Int[Tensor, "v v"] | None = None, *, rare: int = 0):
        self.counts, self.rare = counts, rare
        self._sums = torch.zeros(2, dtype=torch.float64)
        self._tokens = torch.zeros(2, dtype=torch.float64)

    def add(
        self, tokens: Int[Tensor, "b n"], targets: Int[Tensor, "b n"],
        logits: Float[Tensor, "b n v"], better: Float[Tensor, "b n v"],
    ) -> None:  # fmt: skip
        """One batch: what both models said of the targets."""
        found = hits(tokens, targets, self.counts, rare=self.rare).flatten()
        behind = _losses(logits, targets) - _losses(better, targets)
        for slot, where in enumerate((found, ~found)):
            self._sums[slot] += behind[where].double().sum().cpu()
            self._tokens[slot] += where.sum().cpu()

    def result(self) -> Gap:
        total = self._tokens.sum()
        require(float(total) > 0, "nothing was added, but a gap is measured on at least one batch")
        inside, outside = (self._sums / total).tolist()
        return Gap(inside, outside, float(self._tokens[0] / total))

    @classmethod
    def known_answers(cls, generator: torch.Generator) -> Iterator[KnownAnswer]:
        """Texts and models of which hits and gap are known by construction."""
        tokens, targets = torch.tensor([[1, 2, 3, 1, 2, 1, 2]]), torch.tensor([[2, 3, 1, 2, 1, 2, 3]])
        expected = torch.tensor([[0, 0, 0, 1, 0, 1, 1]])
        yield KnownAnswer("hits of a text worked by hand", hits(tokens, targets).double(), expected.double())
        counts = bigram_counts(torch.tensor([1, 2, 1, 2, 3]), 4)
        right = torch.zeros(4, 4)
        right[1, 2], right[2, 1], right[2, 3] = 2, 1, 1
        yield KnownAnswer("bigrams of a text worked by hand", counts.double(), right)
        rare = torch.tensor([[0.0, 0, 0, 0, 0, 0, 1]])
        found = hits(tokens, targets, counts, rare=1)
        yield KnownAnswer("hits of bigrams that are rare in training", found.double(), rare)

        draw = torch.randint(6, (8, 40), generator=generator)
        tokens, targets = draw[:, :-1], draw[:, 1:]
        plainly = torch.zeros(tokens.shape, dtype=torch.bool)
        for text, row in enumerate(draw.tolist()):
            pairs = list(pairwise(row))
            plainly[text] = torch.tensor([pair in pairs[:at] for at, pair in enumerate(pairs)])
        yield KnownAnswer("hits looked up pair by pair", hits(tokens, targets).double(), plainly.double())

        # A model that knows nothing, and one that is sure of hits and as ignorant elsewhere.
        nothing = torch.zeros(*tokens.shape, 6, dtype=torch.float64)
        sure = torch.where(plainly[..., None], 60.0 * F.one_hot(targets, 6), nothing)
        gap = cls()
        for at in (slice(0, 3), slice(3, None)):
            gap.add(tokens[at], targets[at], nothing[at], sure[at])
        found, hit = gap.result(), float(plainly.double().mean())
        yield KnownAnswer("all of the gap is on hits", found.share, 1.0)
        yield KnownAnswer("the share of tokens that are hits", found.tokens, hit)
        whole = hit * torch.log(torch.tensor(6.0, dtype=torch.float64))
        yield KnownAnswer("the gap is ln 6 on every hit", found.whole, whole)


def _losses(logits: Float[Tensor, "b n v"], targets: Int[Tensor, "b n"]) -> Float[Tensor, "bn"]:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
