"""Concept depth: how far into a model a concept can be read (Jin et al., "Exploring Concept Depth: How Large
Language Models Acquire Knowledge at Different Layers?", 2024, arXiv:2404.07066).

A linear probe reads the last token's state behind every layer i = 1 … d. With its accuracies a_i and
β_i = a_i / a_{i-1},

    jump point         J = min {i/d : β_i ≥ 1.1}
    converging point   C = max {i/d : |β_i - 1| ≥ 0.03}
    reached            R = min {i/d : a_i ≥ 0.95 max a}

Ratios are unstable near chance, so that R, which is ours, is the one to compare. β_1 compares with the
embedding of the last token, which is the same for all texts and reads at chance. Constants of J and C are
as the dossier of the paper remembers them; the official script takes one penalty and one split, where the
penalty here is chosen on held-out samples and the fillers of training and test are disjoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.core.known_answer import KnownAnswer
from regardant.lens.probe import known_probes, layer_states, probe_layers
from regardant.task.concepts import ConceptTexts

JUMP, STILL, REACHED = 1.1, 0.03, 0.95


@dataclass(frozen=True)
class Depth:
    """Where a concept comes up: accuracies behind the embedding (first) and behind each layer, and the
    points, as parts of the depth. `jump` is NaN where accuracy never jumps."""

    scores: Float[Tensor, "s"]

    def __post_init__(self) -> None:
        require(
            self.scores.ndim == 1 and len(self.scores) >= 2,
            f"scores is {list(self.scores.shape)}, but it is the embedding's and those of at least one layer",
        )

    @property
    def layers(self) -> int:
        return len(self.scores) - 1

    @property
    def peak(self) -> float:
        return float(self.scores[1:].max())

    @property
    def jump(self) -> float:
        far = (self._ratios >= JUMP).nonzero().flatten()
        return float(far[0] + 1) / self.layers if len(far) else float("nan")

    @property
    def converging(self) -> float:
        moving = ((self._ratios - 1).abs() >= STILL).nonzero().flatten()
        return float(moving[-1] + 1) / self.layers if len(moving) else 0.0

    @property
    def reached(self) -> float:
        return float((self.scores[1:] >= REACHED * self.peak).nonzero()[0] + 1) / self.layers

    def mean(self, *, first: float = 1.0) -> float:
        """The mean accuracy over this first part of the layers."""
        return float(self.scores[1 : 1 + max(1, round(first * self.layers))].mean())

    @property
    def _ratios(self) -> Tensor:
        return self.scores[1:] / self.scores[:-1].clamp(min=1e-9)


@dataclass(frozen=True)
class ConceptDepth:
    """Reads a concept off a model: states once, then a probe a layer for every split."""

    share: float = 2 / 3
    """Of the fillers, for training."""
    penalties: Sequence[float] = (1.0, 30.0, 1000.0)

    def states(self, model: nn.Module, tokenizer: Any, texts: ConceptTexts) -> Float[Tensor, "s b c"]:
        """The last token's state of every text, behind the embedding and every layer."""
        ids = [torch.tensor(tokenizer(text).input_ids) for text in texts.texts]
        require(
            len({int(text[-1]) for text in ids}) == 1,
            "the texts end in different tokens, so that a probe would read the wording: end them alike",
        )
        return layer_states(model, ids)

    def __call__(
        self, states: Float[Tensor, "s b c"], texts: ConceptTexts, *, generator: torch.Generator
    ) -> Depth:
        train = texts.split(share=self.share, generator=generator)
        return Depth(probe_layers(states, texts.labels, train, generator=generator, penalties=self.penalties))

    @classmethod
    def known_answers(cls, generator: torch.Generator) -> Iterator[KnownAnswer]:
        """Scores worked by hand, a model whose feature is planted at a layer, and rounded weights."""
        depth = Depth(torch.tensor([0.5, 0.5, 0.7, 0.9, 0.96, 0.96]))
        yield KnownAnswer("jump", depth.jump, 2 / 5)
        yield KnownAnswer("converging", depth.converging, 4 / 5)
        yield KnownAnswer("reached", depth.reached, 4 / 5)
        yield KnownAnswer("mean of the first part", depth.mean(first=0.4), 0.6, tolerance=1e-6)
        yield from known_probes(generator)
        with torch.random.fork_rng(devices=[]):  # what it starts with is written over
            layer = nn.Linear(6, 4).double()
        with torch.no_grad():
            layer.weight.copy_(torch.randn(4, 6, generator=generator, dtype=torch.float64))
        before = layer.weight.detach().clone()
        with quantized_weights(layer, bits=4):
            step = before.abs().amax(1, keepdim=True) / 7
            rounded = layer.weight.detach().clone()
        yield KnownAnswer("4-bit weights", rounded, (before / step).round() * step)
        yield KnownAnswer("and back", layer.weight, before)


@contextmanager
def quantized_weights(model: nn.Module, *, bits: int) -> Iterator[None]:
    """Linear layers' weights rounded to so many bits, row by row around zero, and put back on exit."""
    require(2 <= bits <= 16, f"bits is {bits}, but weights are rounded to 2 to 16")
    top = 2 ** (bits - 1) - 1
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    require(len(layers) > 0, f"{type(model).__name__} has no linear layer to round the weights of")
    kept = {layer.weight: layer.weight.detach().clone() for layer in layers}
    try:
        with torch.no_grad():
            for weight in kept:
                step = weight.abs().amax(dim=1, keepdim=True) / top
                weight.copy_((weight / step.clamp(min=1e-30)).round() * step)
        yield
    finally:
        with torch.no_grad():
            for weight, before in kept.items():
                weight.copy_(before)
