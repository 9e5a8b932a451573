"""Scan and snap: how attention learns which tokens matter (Tian et al., "Scan and Snap: Understanding
Training Dynamics and Token Composition in 1-layer Transformer", 2023, arXiv:2305.16380).

A token is distinct for a next token n when, among the next tokens of its query, it comes with n alone, and
common when it comes with several. In the paper's one-layer model (`structure/one_layer.py`), trained with
a decoder that learns much faster than attention,

    dY = η_Y f (e_n − α)ᵀ        dz_m = η_Z diag(b) / ‖b‖ · (I − f fᵀ) Y (e_n − α)        α = softmax(Yᵀ f)

attention first scans: it leaves common tokens and goes to distinct ones, fastest to those that come most
often with the query; then it snaps: growth slows down so much that a mixture of tokens stays, and the
faster the decoder, the earlier and the more even.

    seen = ScanAndSnap(law, query)(scores)      what a matrix of attention scores looks at, by role
    follow(model, task, …)                      the model's training, looked at on the way

What differs from the official code: theirs has the two matrices as products of thin ones, and may count the
query among what it looks at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from regardant.core.errors import require
from regardant.core.known_answer import KnownAnswer
from regardant.structure.one_layer import OneLayer
from regardant.task.distinct_tokens import DistinctTokens

ABSENT, COMMON, DISTINCT = 0, 1, 2


def token_roles(law: Float[Tensor, "classes v"], query: Int[Tensor, " classes"]) -> Int[Tensor, "classes v"]:
    """For each next token, which tokens are absent (0), common (1) and distinct (2)."""
    present = law > 0
    together = (query[:, None] == query[None, :]).to(law.dtype)
    companions = together @ present.to(law.dtype)  # next tokens of the same query that a token comes with
    return present * (COMMON + (companions == 1).long())


def law_of(
    tokens: Int[Tensor, "b n"], targets: Int[Tensor, " b"], vocabulary: int, *, rarest: float = 0.0
) -> tuple[Float[Tensor, "classes v"], Int[Tensor, " classes"], Int[Tensor, " classes"]]:
    """P(l | n) as a corpus has it, the query of each row, and its next token.

    A next token that follows several queries has a row with each. What is rarer than `rarest` counts as
    absent, so that chance does not make a token common.
    """
    require(
        tokens.ndim == 2 and tokens.shape[1] >= 2 and targets.shape == tokens.shape[:1],
        f"tokens is {tuple(tokens.shape)} and targets {tuple(targets.shape)}, "
        "but they are [batch, length] and [batch]",
    )
    pairs = torch.stack([tokens[:, -1], targets], dim=1)
    pairs, row = pairs.unique(dim=0, return_inverse=True)
    counts = torch.zeros(len(pairs), vocabulary, dtype=torch.float64)
    ones = torch.ones(tokens[:, :-1].numel(), dtype=torch.float64)
    counts.index_put_(
        (row.repeat_interleave(tokens.shape[1] - 1), tokens[:, :-1].flatten()), ones, accumulate=True
    )
    law = counts / counts.sum(dim=1, keepdim=True)
    law = law * (law >= rarest)
    return law / law.sum(dim=1, keepdim=True), pairs[:, 0], pairs[:, 1]


@dataclass(frozen=True)
class Seen:
    """What attention looks at, for long contexts of each next token."""

    shares: Float[Tensor, "classes v"]
    """The part of the attention on each token."""
    roles: Int[Tensor, "classes v"]
    law: Float[Tensor, "classes v"]
    scores: Float[Tensor, "classes v"]

    @property
    def common(self) -> float:
        """The part on common tokens, over all next tokens."""
        return float((self.shares * (self.roles == COMMON)).sum(dim=1).mean())

    @property
    def largest(self) -> float:
        return float(self.shares.amax())

    @property
    def entropy(self) -> float:
        """In nats, over all next tokens."""
        return float(torch.special.entr(self.shares).sum(dim=1).mean())

    @property
    def raised(self) -> Float[Tensor, "classes v"]:
        """Attention over frequency: above 1 where a token has more than its part of the context."""
        return self.shares / self.law.where(self.law > 0, 1)

    @property
    def gap(self) -> float:
        """How far the score of the best distinct token is above the mean of the common ones'."""
        low = torch.finfo(self.scores.dtype).min
        best = self.scores.masked_fill(self.roles != DISTINCT, low).amax(dim=1)
        common = (self.roles == COMMON).to(self.scores.dtype)
        return float((best - (self.scores * common).sum(dim=1) / common.sum(dim=1)).mean())


class ScanAndSnap:
    """Reads attention scores by the roles that tokens have in a corpus."""

    def __init__(self, law: Float[Tensor, "classes v"], query: Int[Tensor, " classes"]):
        require(
            law.ndim == 2 and query.shape == law.shape[:1],
            f"law is {tuple(law.shape)} and query {tuple(query.shape)}, but they are [classes, vocabulary] "
            "and [classes]",
        )
        require(
            bool((law >= 0).all()) and bool(((law.sum(dim=1) - 1).abs() < 1e-6).all()),
            "law has a row that is no distribution over the vocabulary",
        )
        self.law, self.query = law.double(), query
        self.roles = token_roles(self.law, query)

    def __call__(self, scores: Float[Tensor, "v_query v"]) -> Seen:
        """`scores` by query and by the token that is looked at, as they are before the softmax."""
        require(
            scores.ndim == 2 and scores.shape[1] == self.law.shape[1] and len(scores) > int(self.query.max()),
            f"scores is {tuple(scores.shape)}, but it is [queries, {self.law.shape[1]}] "
            f"with queries up to {int(self.query.max())}",
        )
        rows = scores.detach().double()[self.query]
        return Seen((rows + self.law.log()).softmax(dim=1), self.roles, self.law, rows)

    @classmethod
    def known_answers(cls, generator: torch.Generator) -> Iterator[KnownAnswer]:
        task = DistinctTokens()
        lens, model = of_task(task), OneLayer(task.vocabulary).double()
        start = lens(model.scores)
        yield KnownAnswer("attention begins as frequency", start.shares, lens.law)
        yield KnownAnswer("half of it on common tokens", start.common, task.common_share)
        yield KnownAnswer("raised by nothing", start.raised[lens.roles > 0], torch.ones(8 * 12))
        distinct = (lens.roles == DISTINCT).sum(dim=1)
        yield KnownAnswer("distinct tokens of each next token", distinct, torch.full((8,), 4))
        tokens, targets = task.batch(400, generator)
        counted, query, _ = law_of(tokens, targets, task.vocabulary)
        yield KnownAnswer("roles from a corpus", token_roles(counted, query), lens.roles)
        for name, found, expected in _gradients(model, lens, generator):
            yield KnownAnswer(f"the paper's step of {name} is autograd's", found, expected)
        yield from _dynamics(task)


def of_task(task: DistinctTokens) -> ScanAndSnap:
    """The lens for the task's true law."""
    room = task.vocabulary - task.contexts
    return ScanAndSnap(F.pad(task.law(), (0, room)), task.query())


@dataclass(frozen=True)
class Look:
    """What attention looked at after so many steps."""

    step: int
    seen: Seen


def follow(
    model: OneLayer, task: DistinctTokens, *, steps: int, decoder_rate: float, attention_rate: float,
    looks: Sequence[int], batch: int = 128, generator: torch.Generator | None = None,
) -> list[Look]:  # fmt: skip
    """Train by plain gradient descent, the decoder and the attention each at its own rate.

    Without a generator a step sees every next token once, with a context of endless length: the descent
    that the paper's theorems are about.
    """
    require(
        decoder_rate > 0 and attention_rate > 0, f"rates {decoder_rate} and {attention_rate} are positive"
    )
    require(
        bool(looks) and min(looks) >= 0 and max(looks) <= steps,
        f"looks is {list(looks)}, but they lie within the {steps} steps",
    )
    lens, wanted, found = of_task(task), set(looks), []
    law = lens.law.to(model.scores.dtype)
    nexts = task.contexts + task.queries + torch.arange(task.classes)
    for step in range(steps + 1):
        if step in wanted:
            found.append(Look(step, lens(model.scores)))
        if step == steps:
            break
        if generator is None:
            logits, targets = model.from_counts(law, lens.query), nexts
        else:
            tokens, targets = task.batch(batch, generator)
            logits = model(tokens)
        loss = F.cross_entropy(logits, targets)
        decoder, scores = torch.autograd.grad(loss, [model.decoder, model.scores])
        with torch.no_grad():
            model.decoder -= decoder_rate * decoder
            model.scores -= attention_rate * scores
    return found


def paper_steps(
    model: OneLayer,
    law: Float[Tensor, "classes v"],
    query: Int[Tensor, " classes"],
    nexts: Int[Tensor, " classes"],
) -> tuple[Float[Tensor, "v v"], Float[Tensor, "v v"]]:
    """The steps of Y and Z that the paper's equations give, at rates of 1, every next token once."""
    decoder, scores = model.decoder.detach(), model.scores.detach()
    step_decoder, step_scores = torch.zeros_like(decoder), torch.zeros_like(scores)
    for row, m, n in zip(law, query.tolist(), nexts.tolist()):
        b = row * scores[m].exp()
        b = b / b.sum()
        f = b / b.norm()
        wrong = -torch.softmax(decoder.T @ f, dim=0)
        wrong[n] += 1
        step_decoder += torch.outer(f, wrong) / len(law)
        toward = decoder @ wrong
        step_scores[m] += b / b.norm() * (toward - f * (f @ toward)) / len(law)
    return step_decoder, step_scores


def _gradients(
    model: OneLayer, lens: ScanAndSnap, generator: torch.Generator
) -> Iterator[tuple[str, Tensor, Tensor]]:
    with torch.no_grad():
        for weight in (model.decoder, model.scores):
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=weight.dtype))
    nexts = torch.arange(len(lens.law)) + len(lens.law[0]) - len(lens.law)
    with torch.enable_grad():
        loss = F.cross_entropy(model.from_counts(lens.law, lens.query), nexts)
        decoder, scores = torch.autograd.grad(loss, [model.decoder, model.scores])
    steps = paper_steps(model, lens.law, lens.query, nexts)
    yield from zip(("Y", "Z"), steps, (-decoder, -scores))


def _dynamics(task: DistinctTokens) -> Iterator[KnownAnswer]:
    """What the theorems say of the descent on endless contexts; exceptions are counted, there are none."""
    model = OneLayer(task.vocabulary).double()
    looks = follow(
        model, task, steps=400, decoder_rate=10.0, attention_rate=1.0, looks=(0, 1, 2, 10, 40, 400)
    )
    roles = looks[0].seen.roles
    before, after = looks[1].seen, looks[2].seen
    yield KnownAnswer("the first step moves the decoder alone", before.scores, looks[0].seen.scores)
    moved = after.scores - before.scores
    yield KnownAnswer("common tokens that do not fall", (moved[roles == COMMON] >= 0).sum(), 0)
    yield KnownAnswer("distinct tokens that do not rise", (moved[roles == DISTINCT] <= 0).sum(), 0)
    rise = moved[roles == DISTINCT].unflatten(0, (task.classes, -1))
    yield KnownAnswer("rarer distinct tokens that rise more", (rise.diff(dim=1) >= 0).sum(), 0)
    pace = [(b.seen.gap - a.seen.gap) / (b.step - a.step) for a, b in pairwise(looks[2:])]
    yield KnownAnswer("the gap stops growing", float(pace[-1] < 0.2 * max(pace)), 1.0)
    yield KnownAnswer("and no token takes all", float(looks[-1].seen.largest < 0.95), 1.0)
