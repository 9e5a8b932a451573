"""Retrieval heads: which heads copy what is needed out of a long text (Wu et al., "Retrieval Head
Mechanistically Explains Long-Context Factuality", 2024, arXiv:2404.15574).

A needle is hidden in a text and asked for; the model answers greedily. Where the token w comes out of a step,
head h has a hit if the key that it looked at most in that step lies in the needle k and holds w itself:

    score(h) = |{places that h hit}| / |k|

averaged over the runs whose answer was right. The first token of the answer comes out of the prompt's last
position, so that row counts. What is compared is the token that comes out of the step, not the one that went
in: the latter would find heads that look for duplicates. Under grouped attention scores are of query heads.

As in the official code k is the part of the needle that is asked for, and masked heads are silent from the
last position of the prompt on, where the answer is written; the text before is read with all heads, so that
one reading serves every mask. Other than there, k is found by the characters' places and not by the overlap
of tokens, a place that is hit twice counts once, masked is what a head gives and not its queries, and
answers are as long as k. Heads that complete any repetition (induction heads) score high as well: the
measure does not tell them apart.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.core.known_answer import KnownAnswer
from regardant.edit.apply import apply
from regardant.edit.mask_heads import MaskHeads
from regardant.lens.attention_statistics import attended
from regardant.lens.head_map import HeadMap
from regardant.lens.tape import Reading, Tape
from regardant.task.secret_codes import NeedleCase, draw_codes, needle_cases

THRESHOLD = 0.1
"""Of the score: the paper calls a head above it a retrieval head."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class RetrievalMap(HeadMap):
    """The retrieval score of every query head; and how often each head hit at all, over the runs kept."""

    activation: Float[Tensor, "l h"] = field(default_factory=lambda: torch.empty(0, 0))
    """The share of runs in which a head hit at least once: 1 is a head that is always active."""
    recalls: tuple[float, ...] = ()
    """Of every run: the share of the answer's tokens that came out."""
    kept: int = 0
    """Runs whose answer was right, and that the scores are of."""

    @property
    def retrieving(self) -> list[tuple[int, int]]:
        """The heads above the paper's threshold, highest first."""
        return self.above(THRESHOLD)


@dataclass(frozen=True)
class RetrievalHeads:
    """The measurement: cases, how many run side by side, and from which recall on a run counts."""

    cases: Sequence[NeedleCase]
    batch: int = 8
    least_recall: float = 0.5

    def __post_init__(self) -> None:
        require(len(self.cases) > 0, "cases is empty, but heads are scored on at least one")
        require(self.batch >= 1, f"batch is {self.batch}, but a batch holds at least 1 case")
        require(
            0 < self.least_recall <= 1, f"least_recall is {self.least_recall}, but it is above 0, up to 1"
        )

    def read(self, model: nn.Module) -> list[ReadPrompts]:
        """All prompts, read once: for several measurements on them."""
        return [read_prompts(model, part) for _, part in self._batches()]

    def __call__(
        self, model: nn.Module, *, read: Sequence[ReadPrompts] | None = None, progress: Progress | None = None
    ) -> RetrievalMap:
        """Score every head of a model that generates."""
        scores, recalls = [], []
        for number, (done, part) in enumerate(self._batches()):
            prompts = read_prompts(model, part) if read is None else read[number]
            with Tape(model, attended=Reading(reduce=attended, rows=[-1])) as tape:
                said = answers(model, prompts)
            # [layers, heads, batch, steps]: the key that each head looked at most.
            looked = torch.stack([torch.cat(each, dim=2) for each in tape["attended"].values()])
            looked = looked.permute(0, 2, 1, 3)
            for row, case in enumerate(part):
                scores.append(hits(looked[:, :, row] - prompts.padding[row], said[row], case))
                recalls.append(recall(said[row], case))
            if progress is not None:
                progress(done, len(self.cases))
        right = [score for score, found in zip(scores, recalls) if found >= self.least_recall]
        require(
            len(right) > 0,
            f"the model answered none of {len(self.cases)} cases (best recall {max(recalls):.2f}): shorten "
            "the lengths, or take needles that it can find",
        )
        scored = torch.stack(right)
        return RetrievalMap(
            scored.mean(0), "retrieval score", (scored > 0).double().mean(0), tuple(recalls), len(right)
        )

    def masked(
        self, model: nn.Module, masks: Mapping[str, Sequence[tuple[int, int]]], *,
        read: Sequence[ReadPrompts] | None = None, progress: Progress | None = None,
    ) -> dict[str, list[float]]:  # fmt: skip
        """Of every case the recall, while the heads of each mask are silent; an empty mask is the model as it
        is. The prompts are read once for all masks."""
        found: dict[str, list[float]] = {name: [] for name in masks}
        for number, (done, part) in enumerate(self._batches()):
            prompts = read_prompts(model, part) if read is None else read[number]
            for name, silent in masks.items():
                if silent:
                    with apply(model, MaskHeads(chosen=silent)):
                        said = answers(model, prompts)
                else:
                    said = answers(model, prompts)
                found[name] += [recall(own, case) for own, case in zip(said, part)]
            if progress is not None:
                progress(done, len(self.cases))
        return found

    def _batches(self) -> Iterator[tuple[int, list[NeedleCase]]]:
        for start in range(0, len(self.cases), self.batch):
            part = list(self.cases[start : start + self.batch])
            yield start + len(part), part

    @classmethod
    def known_answers(cls, generator: torch.Generator) -> Iterator[KnownAnswer]:
        """A model in which one head does the copying, by construction."""
        from regardant.world.planted import planted_induction

        place = torch.randint(3, (2,), generator=generator).tolist()
        copying = (2, 1 + place[0])
        model = planted_induction(previous=(place[1] % 2, 1), copying=copying, generator=generator)
        cases = []
        for length in (10, 12, 14):
            # `0 … A b c d … A`: after A the model says b c d, and only `copying` looks there.
            tokens = torch.randperm(22, generator=generator)[: length + 4] + 1
            at = int(torch.randint(1, length - 4, (1,), generator=generator))
            ids = torch.cat([torch.tensor([0]), tokens[:length], tokens[at : at + 1]])
            cases.append(NeedleCase(ids, at + 2, at + 5))
        lens = cls(cases, batch=2)
        expected = torch.zeros(3, 4, dtype=torch.float64)
        expected[copying] = 1.0
        found = lens(model)
        yield KnownAnswer("the copying head is found, and no other", found.values, expected)
        yield KnownAnswer("it is active in every run", found.activation, expected)
        yield KnownAnswer("every run was right", float(found.kept), 3.0)
        idle = [(layer, head) for layer in range(3) for head in range(4) if (layer, head) != copying]
        left = lens.masked(model, {"without it": [copying], "without the others": idle})
        yield KnownAnswer("without it nothing comes out", max(left["without it"]), 0.0)
        # The other half of the pair has done its work while the prompt was read.
        yield KnownAnswer("and no other head is needed any more", min(left["without the others"]), 1.0)


def retrieval_heads(
    model: nn.Module, tokenizer: Any, *, lengths: Sequence[int] = (200, 400),
    depths: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9), needles: int = 4, seed: int = 0,
    progress: Progress | None = None,
) -> RetrievalMap:  # fmt: skip
    """Score the heads of a language model on needles that are made for it.

    regardant.lens.retrieval_heads(model, tokenizer).plot("heads.png")
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = draw_codes(needles, generator=generator)
    cases = needle_cases(tokenizer, drawn, lengths=lengths, depths=depths, generator=generator)
    # Prompts of like lengths side by side: the less padding.
    ordered = sorted(cases, key=lambda case: len(case.ids))
    return RetrievalHeads(ordered)(model, progress=progress)


@dataclass(frozen=True)
class ReadPrompts:
    """Prompts that a model has read, but for their last tokens: what every answer begins from."""

    ids: Int[Tensor, "b n"]
    mask: Int[Tensor, "b n"]
    cache: Any
    padding: list[int]
    steps: int
    """Tokens of the longest answer."""


def read_prompts(model: nn.Module, cases: Sequence[NeedleCase]) -> ReadPrompts:
    """Read prompts side by side, padded on the left."""
    device = next(model.parameters()).device
    length = max(len(case.ids) for case in cases)
    padding = [length - len(case.ids) for case in cases]
    ids = torch.zeros(len(cases), length, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, (case, pad) in enumerate(zip(cases, padding)):
        ids[row, pad:], mask[row, pad:] = case.ids, 1
    ids, mask = ids.to(device), mask.to(device)
    cache = _said(model, ids, mask, steps=1).past_key_values
    cache.crop(-1)
    return ReadPrompts(ids, mask, cache, padding, max(len(case.answer) for case in cases))


def answers(model: nn.Module, read: ReadPrompts) -> Int[Tensor, "b t"]:
    """What the model says greedily, as many tokens as the longest answer has. The cache is left as it is."""
    said = _said(model, read.ids, read.mask, steps=read.steps, past_key_values=copy.deepcopy(read.cache))
    return said.sequences[:, read.ids.shape[1] :].cpu()


def _said(model: nn.Module, ids: Tensor, mask: Tensor, *, steps: int, **inputs: Any) -> Any:
    with torch.no_grad():
        return model.generate(
            ids, attention_mask=mask, do_sample=False, num_beams=1, pad_token_id=0, use_cache=True,
            min_new_tokens=steps, max_new_tokens=steps, temperature=None, top_p=None, top_k=None,
            return_dict_in_generate=True, **inputs,
        )  # fmt: skip


def hits(looked: Int[Tensor, "l h t"], said: Int[Tensor, "t"], case: NeedleCase) -> Float[Tensor, "l h"]:
    """The score of one run: places of the answer that a head looked at most as that very token came out,
    each counted once, over the places that there are."""
    looked = looked.cpu()
    inside = (looked >= case.start) & (looked < case.stop)
    place = looked.clamp(0, len(case.ids) - 1)
    hit = inside & (case.ids[place] == said[: looked.shape[-1]])
    span = case.stop - case.start
    seen = torch.zeros(*looked.shape[:2], span)
    seen.scatter_add_(-1, (place - case.start).clamp(0, span - 1), hit.float())
    return (seen > 0).double().mean(-1)


def recall(said: Int[Tensor, "t"], case: NeedleCase) -> float:
    """The share of the answer's tokens that came out, in whatever order (ROUGE-1 recall)."""
    left = said[: len(case.answer)].tolist()
    found = 0
    for token in case.answer.tolist():
        if token in left:
            left.remove(token)
            found += 1
    return found / len(case.answer)
