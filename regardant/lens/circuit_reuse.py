"""Circuits of two tasks, and what they share (Merullo et al., "Circuit Component Reuse Across Tasks in
Transformer Language Models", 2023, arXiv:2310.08744).

A head's direct effect is what path patching from it to the logits gives, at the last row, with the other
heads and the MLPs at their clean values: the head's own output alone is that of the corrupt prompt,

    effect(h) = metric(U norm(x_L - a_h + a'_h)) - metric(clean)         metric = logit(right) - logit(wrong)

which needs no pass for each head. (`Patching.path` is the general case, MLPs answering; the paper works
backwards from the logits with it, by eye.) Here a circuit is the heads of largest effect, and two circuits
overlap if they share more of them than chance would.

The repair makes heads that write against the wrong option in the one task look at the wrong options in the
other (`SetAttention`), and asks for the accuracy. The heads are found, other than in the paper, by a rule.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import comb

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.core.known_answer import KnownAnswer
from regardant.edit.apply import apply
from regardant.edit.set_attention import SetAttention
from regardant.lens.head_map import HeadMap
from regardant.lens.logit_lens import direct_attribution
from regardant.lens.patching import Patching, PromptPair, logit_difference
from regardant.lens.residual_stream import Anatomy, read_parts
from regardant.task.circuit_prompts import CircuitPrompts


def direct_effects(model: nn.Module, prompts: CircuitPrompts) -> HeadMap:
    """What each head does to logit(right) - logit(wrong), by its corrupt output put in place of its own; in
    parts of the clean metric's mean, so that -1 undoes the answer."""
    anatomy = Anatomy.of(model)
    clean, corrupt = read_parts(model, prompts.clean), read_parts(model, prompts.corrupt)
    rows = anatomy.unembedding.weight
    apart = (rows[prompts.right] - rows[prompts.wrong]).detach()

    def metric(stream: Float[Tensor, "b c"]) -> Tensor:
        with torch.no_grad():
            return (anatomy.norm(stream) * apart).sum(-1).double().mean()

    base = metric(clean.last[:, 0])
    require(float(base.abs()) > 1e-9, "the clean metric is 0: the model does not tell right from wrong")
    moved = corrupt.heads[..., 0, :] - clean.heads[..., 0, :]
    values = torch.stack([
        torch.stack([metric(clean.last[:, 0] + moved[layer, :, head]) for head in range(moved.shape[2])])
        for layer in range(len(moved))
    ])  # fmt: skip
    return HeadMap((values - base) / base.abs(), "direct effect")


def writes_against(model: nn.Module, prompts: CircuitPrompts) -> HeadMap:
    """What each head adds to the wrong answer's logit, beside what it adds to the mean of all tokens."""
    anatomy, parts = Anatomy.of(model), read_parts(model, prompts.clean)
    return direct_attribution(anatomy, parts, prompts.wrong).head_map()


@dataclass(frozen=True)
class Overlap:
    """What two circuits of as many heads share."""

    shared: int
    size: int
    heads: int
    """Of the whole model."""

    @property
    def share(self) -> float:
        return self.shared / self.size

    @property
    def jaccard(self) -> float:
        return self.shared / (2 * self.size - self.shared)

    def chance(self, quantile: float = 0.99) -> int:
        """What two random circuits share at most, with this probability (hypergeometric)."""
        ways, summed = comb(self.heads, self.size), 0
        for shared in range(self.size + 1):
            summed += comb(self.size, shared) * comb(self.heads - self.size, self.size - shared)
            if summed >= quantile * ways:
                return shared
        return self.size


@dataclass(frozen=True)
class CircuitReuse:
    """Compares the circuits of two tasks on a model."""

    size: int = 15
    """Heads of a circuit."""

    def __post_init__(self) -> None:
        require(self.size >= 1, f"size is {self.size}, but a circuit has at least 1 head")

    def circuit(self, effects: HeadMap) -> list[tuple[int, int]]:
        """The heads whose effect is largest, whichever its sign."""
        return HeadMap(effects.values.abs()).top(self.size)

    def overlap(self, first: HeadMap, second: HeadMap) -> Overlap:
        shared = set(self.circuit(first)) & set(self.circuit(second))
        return Overlap(len(shared), self.size, first.measured)

    def accuracy(
        self, model: nn.Module, prompts: CircuitPrompts, repairs: Sequence[Sequence[tuple[int, int]]] = ((),)
    ) -> list[float]:
        """The share of prompts whose right option is the likeliest, with each set of heads made to look at
        the wrong options in the last row; the text before is read once."""
        wrong = prompts.wrong_places.double()
        wrong = wrong / wrong.sum(1, keepdim=True).clamp(min=1)
        found = []
        with torch.no_grad():
            cache = model(prompts.clean[:, :-1], use_cache=True, logits_to_keep=1).past_key_values
            for heads in repairs:
                last = (prompts.clean[:, -1:], copy.deepcopy(cache))
                if heads:
                    with apply(model, SetAttention(chosen=heads, weights_to=wrong)):
                        logits = model(last[0], past_key_values=last[1]).logits[:, -1]
                else:
                    logits = model(last[0], past_key_values=last[1]).logits[:, -1]
                found.append(float((logits.gather(1, prompts.options).argmax(1) == 0).double().mean()))
        return found

    @classmethod
    def known_answers(cls, generator: torch.Generator) -> Iterator[KnownAnswer]:
        """A model in which one head says the answer; circuits drawn on paper."""
        from regardant.world.planted import planted_induction

        copying = (2, int(torch.randint(1, 4, (1,), generator=generator)))
        model = planted_induction(previous=(0, 1), copying=copying, generator=generator)
        clean = torch.tensor([[0, 9, 3, 4, 12, 5, 3], [0, 9, 7, 8, 13, 5, 7]])
        corrupt = clean.clone()
        corrupt[:, 3] = torch.tensor([6, 2])
        right, wrong = torch.tensor([4, 8]), torch.tensor([6, 2])
        # The options: what is right, and the token at place 1, where a repaired head would look.
        options = torch.tensor([[9, 4], [9, 8]])
        where = torch.zeros_like(clean, dtype=torch.bool)
        where[:, 1] = True
        prompts = CircuitPrompts(clean, corrupt, right, wrong, options, where)
        effects = direct_effects(model, prompts)
        pair = PromptPair(clean, corrupt)
        path = Patching(model, pair, logit_difference(right, wrong)).path(freeze_mlps=True).values
        # Clean and corrupt are as far apart as twice the clean metric.
        yield KnownAnswer("the effects are path patching's", effects.values, 2 * path, tolerance=1e-6)
        expected = torch.zeros(3, 4, dtype=torch.float64)
        expected[copying] = -2.0
        yield KnownAnswer("and of the copying head alone", effects.values, expected, tolerance=1e-3)
        lens = cls(size=1)
        yield KnownAnswer("its circuit is itself", lens.overlap(effects, effects).share, 1.0)
        before, after = lens.accuracy(model, prompts, [(), [copying]])
        yield KnownAnswer("it says what it looks at", before, 0.0)
        yield KnownAnswer("also where it is made to look", after, 1.0)
        # Three of ten, twice: none shared in 35 ways, one in 63, two in 21, three in 1, of 120.
        yield KnownAnswer("overlap by chance", float(Overlap(0, 3, 10).chance(0.9)), 2.0)
        yield KnownAnswer("overlap nearly always", float(Overlap(0, 3, 10).chance(0.995)), 3.0)
        yield KnownAnswer("shared of all", Overlap(2, 3, 10).jaccard, 0.5)
