"""Stochastically subsampled self-attention (Hussain et al., "The Information Pathways Hypothesis:
Transformers are Dynamic Self-Ensembles", 2023, arXiv:2306.01705).

A dense Transformer holds many sparse ones. Train samples of them: at every step and in every layer the n
positions are drawn into windows of w = ⌈n/r⌉, and a token sees its own window only,

    y_i = Σ_j softmax_j(q_i·k_j / √d) v_j,   j ∈ W(i)        W = ⌊rank(z) / w⌋

    unbiased:        z_i uniform, so that any w - 1 others are as likely as any
    locally biased:  z_i = i + locality · w · ε_i,  ε_i ~ N(0, 1): mostly those near by

which costs n·w instead of n². One draw serves all heads and all samples of the batch. Evaluation is dense;
a few dense steps at the end of training prepare for that (`set_ratio(model, 1)`). Or sample at inference
too, and average the probabilities over some draws (`ensemble`).

A pass draws where it trains, or where its record brings a generator: from that generator, and without one
from torch's own, as dropout does. So evaluation draws nothing unless it is asked to.

What is our reading: the official repository holds no code, and the law of the noise, its scale in windows
and windows that do not overlap are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.core.mixer import MultiHead
from regardant.core.pattern import Document, Partition, both
from regardant.core.record import Record
from regardant.core.supports import Supports


@dataclass(frozen=True, eq=False)
class Pathways(Document):
    """Full attention inside windows of drawn positions: `values` [n] says in which window each one is.

    All windows have `window` members; the last may have fewer.
    """

    window: int

    def partition(self, n, device):
        order = self.values.to(device).argsort(stable=True)
        missing = -n % self.window
        if not missing:
            return Partition(self.window, order.view(-1, self.window))
        valid = torch.arange(n + missing, device=device) < n
        order = F.pad(order, (0, missing))
        return Partition(self.window, order.view(-1, self.window), valid.view(-1, self.window))


class SubsampledAttention(MultiHead):
    """Softmax attention that sees one in `ratio` of the keys in training, all of them in evaluation.

    `locality` is how far, in windows, a position strays from its place before the windows are cut: None
    draws them from anywhere. The record gets the observation "windows" [n] of a pass that drew.
    """

    supports = Supports(
        cross=False, causal_cross=False, time=2.0, memory=1.0, state=1.0,
        exempt={"training": "windows are drawn for a whole sequence, so another length is another draw"},
    )  # fmt: skip

    def __init__(
        self, dim: int, heads: int, *, ratio: int = 4, locality: float | None = 1.0, **shared
    ):  # fmt: skip
        super().__init__(dim, heads, **shared)
        _check_ratio(ratio)
        require(
            locality is None or locality >= 0,
            f"locality is {locality}, but it is a number of windows from 0 on, or None for no bias at all",
        )
        self.ratio, self.locality = ratio, locality

    def draw(self, n: int, generator: torch.Generator | None = None) -> Pathways:
        """Windows of ⌈n / ratio⌉ of n positions."""
        window = ceil(n / self.ratio)
        if self.locality is None:
            z = torch.rand(n, generator=generator)
        else:
            z = torch.arange(n) + self.locality * window * torch.randn(n, generator=generator)
        rank = torch.empty(n, dtype=torch.long).scatter_(0, z.argsort(), torch.arange(n))
        return Pathways(rank // window, window)

    def attend(self, q, k, v, *, x, pattern, padding=None, record=None):
        generator = None if record is None else record.generator
        if self.ratio > 1 and (self.training or generator is not None):
            drawn = self.draw(k.shape[2], generator)
            pattern = both(pattern, drawn)
            if record is not None:
                record.note("windows", drawn.values)
        return self.rule(q, k, v, pattern=pattern, scale=self.scale)


def set_ratio(model: nn.Module, ratio: int) -> None:
    """Let every subsampled attention in a model see one in `ratio` keys in training: 1 is dense."""
    _check_ratio(ratio)
    for layer in _subsampled(model):
        layer.ratio = ratio


@torch.no_grad()
def ensemble(
    model: nn.Module, inputs: Tensor, *, samples: int, generator: torch.Generator
) -> Float[Tensor, "*b classes"]:
    """The logarithm of the model's mean probabilities over `samples` passes, each with its own draws."""
    require(samples >= 1, f"samples is {samples}, but a mean is over at least 1")
    _subsampled(model)
    passes = [model(inputs, record=Record(generator=generator)).log_softmax(-1) for _ in range(samples)]
    return torch.stack(passes).logsumexp(0) - log(samples)


def _subsampled(model: nn.Module) -> list[SubsampledAttention]:
    found = [layer for layer in model.modules() if isinstance(layer, SubsampledAttention)]
    require(len(found) > 0, f"model is a {type(model).__name__} without a SubsampledAttention in it")
    return found


def _check_ratio(ratio: int) -> None:
    require(ratio >= 1, f"ratio is {ratio}, but a query sees one in 1 (all) or more keys")
