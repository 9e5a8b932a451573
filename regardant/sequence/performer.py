"""Performer (Choromanski et al., "Rethinking Attention with Performers", 2020, arXiv:2009.14794).

The softmax kernel as an expectation over random directions w, so that attention is a product of positive
random features (FAVOR+), linear in the length. With x̂ = √s x, s the scale of the logits:

    exp(s q·k) = E_w [exp(w·q̂ - |q̂|²/2) exp(w·k̂ - |k̂|²/2)]
    φ(x) = exp(w_r·x̂ - |x̂|²/2 - c) + ε, r = 1 … m

The m directions (d ln d by default) come in blocks that are orthogonal, each with the norm of a Gaussian
vector; all heads share them. They are drawn once and kept in a buffer; `redraw` draws others. c keeps the
exponent small: for a query its largest w_r·q̂, for keys the largest of the whole sequence.

What differs: where the sum runs along the sequence, the keys' c is 0, because the largest of all would let
the future into the past (through ε, which does not cancel); and padding counts for nothing.
"""

from __future__ import annotations

from math import log

import torch
from jaxtyping import Float
from torch import Tensor

from regardant.core.errors import require
from regardant.core.feature_map import FeatureRule, Sight
from regardant.core.mixer import MultiHead, check_heads
from regardant.core.supports import Supports

EPSILON = 1e-4


def orthogonal_directions(
    count: int, width: int, generator: torch.Generator | None = None
) -> Float[Tensor, "count width"]:
    """Gaussian vectors of which every `width` in a row are orthogonal to each other."""
    blocks = -(-count // width)
    square = torch.randn(blocks, width, width, generator=generator, dtype=torch.float64)
    directions = torch.linalg.qr(square).Q.mT.flatten(0, 1)[:count]
    norms = torch.randn(count, width, generator=generator, dtype=torch.float64).norm(dim=1, keepdim=True)
    return directions * norms


class RandomFeatureRule(FeatureRule):
    """Attention through `features` positive random features of the softmax kernel."""

    floor = 1e-12

    def __init__(self, head_dim: int, *, features: int | None = None, scale: float | None = None):
        super().__init__()
        require(scale is None or scale > 0, f"scale is {scale}, but exp(scale q·k) needs a positive one")
        self.scale = scale
        features = max(1, int(head_dim * log(head_dim))) if features is None else features
        require(features >= 1, f"features is {features}, but the kernel is a mean over at least 1 direction")
        drawn = orthogonal_directions(features, head_dim).to(torch.get_default_dtype())
        self.register_buffer("directions", drawn)

    def redraw(self, generator: torch.Generator) -> None:
        """Other directions (the paper draws anew now and then while it trains)."""
        self.directions.copy_(orthogonal_directions(*self.directions.shape, generator))

    def of_queries(self, q, sight: Sight, scale):
        along, energy = self._exponent(q, scale)
        return self._positive(along, energy + along.detach().amax(dim=-1, keepdim=True))

    def of_keys(self, k, sight: Sight, scale):
        along, energy = self._exponent(k, scale)
        if sight.whole:
            shown = along.detach()
            if sight.real is not None:
                shown = shown.masked_fill(~sight.real.expand(len(k), -1)[:, None, :, None], -torch.inf)
                shown = shown.masked_fill(~sight.real.any(dim=-1).view(-1, 1, 1, 1), 0)
            energy = energy + shown.amax(dim=(-1, -2), keepdim=True)
        return self._positive(along, energy)

    def _exponent(self, x: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """w·x̂ for every direction, and |x̂|²/2."""
        along = x @ (self.directions.to(x.dtype) * scale**0.5).mT
        return along, x.square().sum(dim=-1, keepdim=True) * (scale / 2)

    @staticmethod
    def _positive(along: Tensor, less: Tensor) -> Tensor:
        """exp(along - less) + ε; m^(-1/2) would fall out of the quotient."""
        features = (along - less).exp()
        return features + EPSILON if features.requires_grad else features.add_(EPSILON)


class Performer(MultiHead):
    """Linear attention that approximates softmax, by `features` random directions a head."""

    supports = Supports(pattern=False, time=1.0, memory=1.0, state=0.0)

    def __init__(
        self, dim: int, heads: int, *, features: int | None = None, head_dim: int | None = None,
        scale: float | None = None, **shared,
    ):  # fmt: skip
        check_heads(dim, heads, shared.get("kv_heads"), head_dim)
        rule = RandomFeatureRule(head_dim or dim // heads, features=features, scale=scale)
        super().__init__(dim, heads, head_dim=head_dim, scale=scale, rule=rule, **shared)
