"""How far explanations of the same predictions agree: the table of an agreement study.

"A Song of (Dis)agreement: Evaluating the Evaluation of Explainable Artificial Intelligence in Natural
Language Processing" (arXiv 2205.04559). Every explainer scores the same words for the same class; Kendall's
τ_b of each pair is averaged over instances. The paper finds that attention agrees weakly with all
attributions, and on a transformer nothing with anything: agreement with an attribution is a poor test of an
explanation.

    study = AgreementStudy({"attention": rollout(), "deeplift": deep_lift(), …}, special=(0, 1, 2))
    study(model, tokens).table        # {("attention", "deeplift"): 0.21, …}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.core.known_answer import KnownAnswer
from regardant.lens.agreement import Measure, agreement, kendall
from regardant.lens.explainers import (
    Explainer,
    deep_lift,
    deep_shap,
    gradient_shap,
    integrated_gradients,
    rolled_out,
    weighted_ridge,
)


@dataclass(frozen=True)
class Agreement:
    """Scores [b, n] of every explainer, and their agreement, instance by instance."""

    scores: Mapping[str, Float[Tensor, "b n"]]
    each: Mapping[tuple[str, str], Float[Tensor, "b"]]

    @property
    def table(self) -> dict[tuple[str, str], float]:
        """The mean over instances (one whose scores are all equal has no rank, and is left out)."""
        return {pair: float(found.nanmean()) for pair, found in self.each.items()}

    def between(self, first: Sequence[str], second: Sequence[str]) -> float:
        """The mean over pairs of one explainer of the first and one of the second, never with itself."""
        found = [
            value
            for (a, b), value in self.table.items()
            if (a in first and b in second) or (b in first and a in second)
        ]
        require(len(found) > 0, f"no pair is between {', '.join(first)} and {', '.join(second)}")
        return sum(found) / len(found)


class AgreementStudy:
    """Explainers under names; `special` are tokens that are no words. `absolute` compares strengths."""

    def __init__(
        self, explainers: Mapping[str, Explainer], *, special: Sequence[int] = (0,), absolute: bool = False,
        measure: Measure = kendall,
    ):  # fmt: skip
        require(len(explainers) >= 2, f"explainers has {len(explainers)}, but at least two can agree")
        self.explainers, self.special = dict(explainers), tuple(special)
        self.absolute, self.measure = absolute, measure

    def __call__(
        self, model: nn.Module, tokens: Int[Tensor, "b n"], target: Int[Tensor, "b"] | None = None
    ) -> Agreement:
        """Explain each sample's class, the predicted one where none is given, and compare."""
        if target is None:
            with torch.no_grad():
                target = model(tokens).argmax(-1)
        words = self.words(tokens)
        scores = {name: explain(model, tokens, target) for name, explain in self.explainers.items()}
        if self.absolute:
            scores = {name: found.abs() for name, found in scores.items()}
        return Agreement(scores, agreement(scores, words, measure=self.measure))

    def words(self, tokens: Int[Tensor, "b n"]) -> Tensor:
        """What is neither special nor padding."""
        return ~torch.isin(tokens, torch.tensor(self.special, device=tokens.device))

    @classmethod
    def known_answers(cls, generator: torch.Generator) -> Iterator[KnownAnswer]:
        model = _Linear(generator)
        tokens = 1 + torch.stack([torch.randperm(8, generator=generator)[:7] for _ in range(3)])
        target = torch.tensor([0, 1, 1])
        background = model.embed(torch.zeros(2, 7, dtype=torch.long)).detach()
        # Of a linear model all of them are weight times difference.
        expected = (model.embed(tokens) * model.weight[target][:, None]).sum(-1)
        explainers = {
            "integrated gradients": integrated_gradients(steps=8),
            "deeplift": deep_lift(),
            "deep shap": deep_shap(background),
        }
        found = cls(explainers, special=())(model, tokens, target)
        for name, scores in found.scores.items():
            yield KnownAnswer(f"{name} of a linear model", scores, expected.detach(), 1e-6)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(1 << 30, (), generator=generator)))
            noiseless = gradient_shap(background, samples=4, noise=0.0)(model, tokens, target)
        yield KnownAnswer("gradient SHAP of a linear model", noiseless, expected.detach(), 1e-6)
        yield KnownAnswer("agreement of equal rankings", min(found.table.values()), 1.0)
        kept = torch.rand(200, 6, generator=generator) < 0.5
        truth = torch.randn(6, generator=generator, dtype=torch.float64)
        fitted = weighted_ridge(kept, kept.double() @ truth + 3, width=0.5, penalty=1e-9)
        yield KnownAnswer("LIME of what is linear in the tokens", fitted, truth, 1e-6)
        layer = torch.rand(1, 5, 5, generator=generator, dtype=torch.float64).softmax(-1)
        half = (layer + torch.eye(5, dtype=torch.float64)) / 2
        yield KnownAnswer("rollout of two layers", rolled_out([layer, layer]), half @ half)


class _Linear(nn.Module):
    """Logits that are linear in the embeddings, and kept from a softmax: what explainers get right."""

    def __init__(self, generator: torch.Generator):
        super().__init__()
        table = torch.randn(9, 4, generator=generator, dtype=torch.float64)
        table[0] = 0
        self.table = nn.Parameter(table)
        self.weight = nn.Parameter(torch.randn(2, 4, generator=generator, dtype=torch.float64))

    def embed(self, tokens: Tensor) -> Tensor:
        return self.table[tokens]

    def forward(self, tokens: Tensor) -> Tensor:
        return self.read(self.embed(tokens), tokens != 0)

    def read(self, embedded: Tensor, real: Tensor) -> Tensor:
        return torch.einsum("bnc,kc->bk", embedded, self.weight)
