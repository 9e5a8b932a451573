"""Weights of entries by learned Gaussians of their standardised values (Ioannides et al., "Gaussian Adaptive
Attention is All You Need", 2024, arXiv:2401.11143).

    y_g = (x - μ - δ_g) / σ            μ, σ² + ε: mean and unbiased variance along an axis
    m = Π_g N(y_g; 0, c_g²)            or Σ_g with combine="sum", the textbook mixture
    weights = m / Σ m                  along the axis

All of it in logarithms, where a product of many densities does not vanish. There a product is one
parabola in z = (x - μ)/σ whatever the number of Gaussians, -A z² + 2 B z/σ with A = Σ 1/2c_g² and
B = Σ δ_g/2c_g²; what does not depend on the entry leaves with the normaliser.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

EPSILON = 1e-8
NARROWEST = 1e-12
"""Added to c², so that a width near 0 is a spike and no division by 0."""

Combine = Literal["product", "sum"]


def gaussian_weights(
    x: Float[Tensor, "*shape"], offsets: Float[Tensor, "g"], widths: Float[Tensor, "g"], *, axis: int,
    combine: Combine = "product", real: Bool[Tensor, "*#shape"] | None = None,
) -> Float[Tensor, "*shape"]:  # fmt: skip
    """The weights along `axis`, in float32 at least; where `real` is False they are 0 and nothing counts."""
    exact = torch.promote_types(x.dtype, torch.float32)
    x, offsets, precision = x.to(exact), offsets.to(exact), 0.5 / (widths.to(exact).square() + NARROWEST)
    away, deviation = _standing(x, axis, real)
    away = away / deviation
    if combine == "product":
        score = (2 * (precision * offsets).sum() / deviation - precision.sum() * away) * away
    else:
        each = (away[..., None] - offsets / deviation[..., None]).square() * -precision
        score = (each + 0.5 * precision.log()).logsumexp(-1)
    if real is None:
        return score.softmax(axis)
    empty = ~real.any(axis, keepdim=True)
    return score.masked_fill(~(real | empty), -torch.inf).softmax(axis).masked_fill(~real, 0)


def _standing(x: Tensor, axis: int, real: Tensor | None) -> tuple[Tensor, Tensor]:
    """x less its mean, and its deviation; a single entry has a deviation of √ε."""
    kept = x if real is None else x.masked_fill(~real, 0)
    count = x.shape[axis] if real is None else real.sum(axis, keepdim=True).clamp(min=1)
    away = kept - kept.sum(axis, keepdim=True) / count
    if real is not None:
        away = away.masked_fill(~real, 0)
    others = max(count - 1, 1) if real is None else (count - 1).clamp(min=1)
    return away, (away.square().sum(axis, keepdim=True) / others + EPSILON).sqrt()


def importance_factor(weights: Float[Tensor, "*samples c"]) -> Float[Tensor, "c"]:
    """How much each entry of the last axis was weighted over all samples, from 0 for the least to 1."""
    mean = weights.flatten(0, -2).mean(0)
    spread = mean.max() - mean.min()
    return (mean - mean.min()) / spread.where(spread > 0, 1)
