"""Attention with a clipped softmax (Bondarenko et al., "Quantizable Transformers: Removing Outliers by
Helping Attention Heads Do Nothing", 2023, arXiv:2306.12929).

A head that wants to do nothing can only push its logits apart, and the activations that it takes to do
so break INT8. A softmax that is stretched and clipped reaches zero, and one, at finite logits:

    p = clip((ζ - γ) softmax(q kᵀ/√d) + γ, 0, 1)        ζ ≥ 1,  γ = -α/T ≤ 0

Rows need not sum to one, and what is clipped gets no gradient, so such heads stop pushing. T is the
length trained at: a weight is cut to zero when it is below about α times an even share of T keys, at
every other length too. α of 2 to 4 and ζ = 1 are the authors' choice; α = 0, ζ = 1 is the softmax. With
more keys than T/α an undecided row is all zeros and learns nothing: choose T (or α) for the length.

What differs from the official code: there is no dropout on the weights, so its order does not matter;
the upper stretch, ζ here as in the paper, is called eta there.
"""

from __future__ import annotations

from math import inf

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from regardant.core.errors import require
from regardant.core.mixer import MultiHead
from regardant.core.rule import SoftmaxRule
from regardant.core.supports import Supports


class ClippedRule(SoftmaxRule):
    """clip((ζ - γ) softmax(q kᵀ · scale + bias) + γ, 0, 1) v under any pattern."""

    supports = Supports(time=2.0, memory=1.0, state=1.0)

    def __init__(self, *, gamma: float, zeta: float = 1.0, bias: torch.nn.Module | None = None):
        super().__init__(bias=bias, normaliser=self.normalise)
        require(gamma <= 0, f"gamma is {gamma}, but it pulls weights below zero: it is not positive")
        require(zeta >= 1, f"zeta is {zeta}, but it lets weights reach one: it is at least 1")
        self.gamma, self.zeta = gamma, zeta

    def normalise(
        self, logits: Float[Tensor, "*rows n"], mask: Bool[Tensor, "*rows n"]
    ) -> Float[Tensor, "*rows n"]:
        """The weights; a key that is not visible has no softmax, gets γ ≤ 0 and is cut to zero."""
        return torch.clamp((self.zeta - self.gamma) * logits.softmax(-1) + self.gamma, 0, 1)

    def reference(self, q, k, v, *, pattern=None, scale=None):
        share = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(share, dim=1), v.repeat_interleave(share, dim=1)
        logits = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
        i, j = torch.arange(q.shape[2], device=q.device), torch.arange(k.shape[2], device=q.device)
        if self.bias is not None:
            logits = logits + self.bias.block(i, j)
        if pattern is not None:
            logits = logits.masked_fill(~pattern.block(i, j, batch=len(q), heads=q.shape[1]), -inf)
        largest = logits.detach().amax(-1, keepdim=True)
        scores = (logits - largest.masked_fill(largest == -inf, 0)).exp()
        softmax = scores / scores.sum(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny)
        weights = ((self.zeta - self.gamma) * softmax + self.gamma).clamp(0, 1)
        return weights @ v


class ClippedSoftmax(MultiHead):
    """Multi-head attention under a clipped softmax; `training_length` is T, `alpha` α and `zeta` ζ."""

    supports = Supports(time=2.0, memory=1.0, state=1.0)

    def __init__(
        self, dim: int, heads: int, *, alpha: float = 2.0, zeta: float = 1.0, training_length: int = 512,
        **shared,
    ):  # fmt: skip
        super().__init__(dim, heads, **shared)
        require(alpha >= 0, f"alpha is {alpha}, but gamma = -alpha / training_length is not positive")
        require(training_length >= 1, f"training_length is {training_length}, but it is at least 1")
        self.rule = ClippedRule(gamma=-alpha / training_length, zeta=zeta, bias=self.rule.bias)
