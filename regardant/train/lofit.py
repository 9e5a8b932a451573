"""LoFiT: find the few heads that a task needs, and train one vector for each.

"LoFiT: Localized Fine-tuning on LLM Representations" (Yin et al., 2024, arXiv 2406.01563). With z the output
of a query head before the output projection, at every token, and the model frozen:

    select   z ← (1 + A) ∘ z at all heads, A drawn from N(0, σ²);  loss + λ Σ |A|₁;  a head's score is ‖A‖₂
    tune     A is thrown away; z ← z + v at the `heads` best, v drawn anew;  loss (+ λ Σ |v|₁)

What comes out is an edit, `HeadAffine(offsets=…)`, that folds into the output projections' biases: the tuned
model costs what the model costs. σ = 1e-3 is the standard deviation. What differs from the official code:
AdamW without decay of these vectors has β = (0.9, 0.95) for theirs of (0.9, 0.999), a warm-up and a cosine
where theirs falls linearly; batches are drawn with replacement; and DPO's reference is the model without any
vector, where theirs has those first drawn.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.core.known_answer import KnownAnswer
from regardant.edit.apply import apply
from regardant.edit.head_affine import HeadAffine
from regardant.host.host import host_of
from regardant.train.fit import Progress, fit, seeded
from regardant.train.responses import Adapted, Responses

Head = tuple[int, int]
"""(layer, query head)."""


class HeadVectors(nn.Module):
    """One vector a head, each a parameter of its own: what is one-dimensional does not decay."""

    def __init__(self, sizes: dict[Head, int], *, deviation: float, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.heads = list(sizes)
        self.vectors = nn.ParameterList(
            nn.Parameter(deviation * torch.randn(size, generator=generator)) for size in sizes.values()
        )

    def by_head(self) -> dict[Head, Tensor]:
        return dict(zip(self.heads, self.vectors))

    def length(self) -> Tensor:
        """Σ |·|₁ over all of them: of these vectors alone."""
        return sum(vector.abs().sum() for vector in self.vectors)


@dataclass(frozen=True, kw_only=True)
class LoFiT:
    """The settings of both steps. `heads` is how many are tuned (about 3 % of all)."""

    heads: int
    select_steps: int = 100
    tune_steps: int = 100
    batch: int = 16
    select_rate: float = 5e-3
    tune_rate: float = 5e-3
    select_penalty: float = 1e-3
    tune_penalty: float = 0.0
    deviation: float = 1e-3
    stack: str | None = None

    def __post_init__(self) -> None:
        require(self.heads >= 1, f"heads is {self.heads}, but at least 1 is tuned")
        for name in ("select_penalty", "tune_penalty", "deviation"):
            require(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}, but it is 0 or more")

    def select(
        self, model: nn.Module, task: Responses, *, seed: int = 0, progress: Progress | None = None,
        checkpoint: Path | None = None,
    ) -> dict[Head, float]:  # fmt: skip
        """Every query head's score, best first."""
        scales = HeadVectors(self._sizes(model), deviation=self.deviation, seed=seed)
        self._train(
            model, task, scales, HeadAffine(scales=scales.by_head(), stack=self.stack), self.select_steps,
            self.select_rate, self.select_penalty, seed, progress, checkpoint,
        )  # fmt: skip
        scores = {head: float(vector.detach().norm()) for head, vector in scales.by_head().items()}
        return dict(sorted(scores.items(), key=lambda each: -each[1]))

    def tune(
        self, model: nn.Module, task: Responses, chosen: Collection[Head], *, seed: int = 0,
        progress: Progress | None = None, checkpoint: Path | None = None,
    ) -> HeadAffine:  # fmt: skip
        """Offsets at the chosen heads, trained from the clean model."""
        sizes = self._sizes(model)
        strange = [head for head in chosen if head not in sizes]
        require(
            not strange and len(chosen) > 0,
            f"chosen holds {strange[0] if strange else 'nothing'}, but heads (layer, head) are wanted",
        )
        own = {head: sizes[head] for head in chosen}
        offsets = HeadVectors(own, deviation=self.deviation, seed=seed)
        self._train(
            model, task, offsets, HeadAffine(offsets=offsets.by_head(), stack=self.stack), self.tune_steps,
            self.tune_rate, self.tune_penalty, seed, progress, checkpoint,
        )  # fmt: skip
        return HeadAffine(
            offsets={head: vector.detach().clone() for head, vector in offsets.by_head().items()},
            stack=self.stack,
        )

    def fit(self, model: nn.Module, task: Responses, *, seed: int = 0) -> HeadAffine:
        """Both steps."""
        scores = self.select(model, task, seed=seed)
        require(
            self.heads <= len(scores), f"heads is {self.heads}, but the model has {len(scores)} query heads"
        )
        return self.tune(model, task, list(scores)[: self.heads], seed=seed)

    def _train(self, model, task, vectors, edit, steps, rate, penalty, seed, progress, checkpoint) -> None:
        adapted = Adapted(
            model, vectors, task, lambda: apply(model, edit),
            penalty=(lambda: penalty * vectors.length()) if penalty else None,
        )  # fmt: skip
        fit(
            adapted, task, steps=steps, batch=self.batch, learning_rate=rate, seed=seed, progress=progress,
            device=next(model.parameters()).device, checkpoint=checkpoint,
        )  # fmt: skip

    def _sizes(self, model: nn.Module) -> dict[Head, int]:
        """The query heads of the stack, and how wide each is."""
        sites = [site for site in host_of(model).sites if not site.cross and self.stack in (None, site.stack)]
        require(len(sites) > 0, f"stack is {self.stack!r}, but the model has no such attention")
        stacks = sorted({site.stack for site in sites})
        require(len(stacks) == 1, f"the model has several stacks ({', '.join(stacks)}): name stack=")
        return {(site.layer, head): site.head_dim for site in sites for head in range(site.q_heads)}

    @classmethod
    def known_answers(cls, generator: torch.Generator) -> Iterator[KnownAnswer]:
        """In a model of two heads, of which only one reaches the answer, that one is found and tuned."""
        with seeded(0):  # layers draw when they are made
            model = _OneUseful(generator)
        examples = [([int(token)], [1]) for token in torch.randint(4, (12,), generator=generator)]
        task = Responses(examples)
        settings = cls(
            heads=1, select_steps=30, tune_steps=60, batch=4, select_rate=0.05, tune_rate=0.2, stack="main"
        )
        scores = settings.select(model, task)
        yield KnownAnswer(
            "the head that reaches the answer is found", float(next(iter(scores)) == (0, 1)), 1.0
        )
        ids = torch.tensor([[2]])
        edit = settings.tune(model, task, [(0, 1)])
        with torch.no_grad():
            before = model(ids, torch.ones_like(ids)).logits
            with apply(model, edit):
                under = model(ids, torch.ones_like(ids)).logits
            with edit.fold(model):
                folded = model(ids, torch.ones_like(ids)).logits
            after = model(ids, torch.ones_like(ids)).logits
        yield KnownAnswer("folded, the model gives what it gives edited", folded, under, tolerance=1e-5)
        yield KnownAnswer("undone, the model is what it was", after, before, tolerance=0.0)
        yield KnownAnswer("the tuned model answers", float(under[0, -1].argmax()), 1.0)


class _OneUseful(nn.Module):
    """Four tokens, one layer of two heads; the output projection reads the second head alone."""

    def __init__(self, generator: torch.Generator):
        super().__init__()
        from regardant.core.mixer import MultiHead

        self.embedding = nn.Embedding(4, 8)
        self.mixer = MultiHead(8, 2, causal=True)
        with torch.no_grad():
            for weight in self.parameters():
                weight.copy_(torch.randn(weight.shape, generator=generator) * weight.shape[-1] ** -0.5)
            self.mixer.to_out.weight[:, :4] = 0

    def forward(self, input_ids: Tensor, attention_mask: Tensor):
        from types import SimpleNamespace

        return SimpleNamespace(logits=self.mixer(self.embedding(input_ids)) @ self.embedding.weight.T)


def count(vectors: dict[Head, Tensor]) -> int:
    """Numbers that were trained."""
    return sum(vector.numel() for vector in vectors.values())
