"""Attention as a product of feature maps, summed in linear time (Katharopoulos et al., 2020,
arXiv 2006.16236).

    y_i = Σ_j φ(q_i)·ψ(k_j) v_j / max(Σ_j φ(q_i)·ψ(k_j), floor)

A rule of this family writes φ and ψ; the sums over all keys, over the keys so far, and token by token are
the same for all of them. The denominator is one more column of the values, always 1. Padding has ψ = 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from regardant.core.decayed_linear import decayed_linear, decayed_linear_step
from regardant.core.rule import HeadShape, Rule, causal_and_padding
from regardant.core.state import State
from regardant.core.supports import Supports


@dataclass(frozen=True)
class Sight:
    """What a feature map may want to know of a call, besides the vectors themselves."""

    first: int = 0
    """The position of the first of these vectors."""
    whole: bool = False
    """Whether every query sees every key; not so where the sums run along the sequence."""
    real: Bool[Tensor, "#b n"] | None = None
    """Which keys are real (None: all)."""
    span: int | Int[Tensor, "b"] = 0
    """The length that positions are measured against: that of the longer side, unless the caller says."""


@dataclass
class FeatureSums(State):
    """Σ ψ(k) [v, 1]ᵀ over the keys so far."""

    matrix: Float[Tensor, "b h f e+1"]
    asked: int = 0
    """Queries so far: of cross-attention, whose keys were all there from the start, the only count."""


class FeatureRule(Rule):
    """The rules that are a feature map on each side; `floor` is the smallest denominator, `scale` that of the
    logits where the caller names none (None: d^(-1/2))."""

    supports = Supports(pattern=False, time=1.0, memory=1.0, state=0.0)
    floor: float = 1e-6
    scale: float | None = None

    def of_queries(self, q: Float[Tensor, "b h m d"], sight: Sight, scale: float) -> Float[Tensor, "b h m f"]:
        """φ"""
        raise TypeError(f"{type(self).__name__} must define of_queries")

    def of_keys(self, k: Float[Tensor, "b g n d"], sight: Sight, scale: float) -> Float[Tensor, "b g n f"]:
        """ψ; what it gives for padding is emptied afterwards, and what is given for padding is zero."""
        raise TypeError(f"{type(self).__name__} must define of_keys")

    def forward(self, q, k, v, *, pattern=None, scale=None, span: int | Int[Tensor, "b"] | None = None):
        causal, real = causal_and_padding(self, pattern)
        kind, (q, k, v) = v.dtype, map(_exact, (q, k, v))
        q, k = self._maps(q, k, causal, real, span, scale)
        v = F.pad(v, (0, 1), value=1.0)
        if causal:
            sums = decayed_linear(q, k, v)
        else:
            sums = (q.unflatten(1, (k.shape[1], -1)) @ (k.mT @ v)[:, :, None]).flatten(1, 2)
        return self._quotient(sums).to(kind)

    def reference(self, q, k, v, *, pattern=None, scale=None, span=None):
        causal, real = causal_and_padding(self, pattern)
        q, k = self._maps(q, k, causal, real, span, scale)
        k, v = (each.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for each in (k, v))
        weights = q @ k.mT
        weights = weights.tril() if causal else weights
        return weights @ v / weights.sum(-1, keepdim=True).clamp(min=self.floor)

    def start(self, shape: HeadShape, *, pattern=None, keys=None, values=None):
        causal, real = causal_and_padding(self, pattern)
        if keys is None:
            exact = torch.promote_types(shape.dtype, torch.float32)
            keys, values = (
                torch.zeros(shape.batch, shape.kv_heads, 0, width, device=shape.device, dtype=exact)
                for width in (shape.head_dim, shape.value_dim)
            )
        features = self._keys(_exact(keys), Sight(whole=not causal, real=real), self._scale(keys, None))
        matrix = features.mT @ F.pad(_exact(values), (0, 1), value=1.0)
        matrix = matrix.repeat_interleave(shape.heads // shape.kv_heads, dim=1)
        return FeatureSums(keys.shape[2], matrix, asked=keys.shape[2] if causal else 0)

    def step(self, q, k, v, state, *, pattern=None, scale=None):
        kind, scale, sight = q.dtype, self._scale(q, scale), Sight(first=state.asked)
        q = self.of_queries(_exact(q)[:, :, None], sight, scale)[:, :, 0]
        if k is None:
            sums, matrix, length = torch.einsum("bhf,bhfe->bhe", q, state.matrix), state.matrix, state.length
        else:
            k = self.of_keys(_exact(k)[:, :, None], sight, scale)[:, :, 0]
            sums, matrix = decayed_linear_step(q, k, F.pad(_exact(v), (0, 1), value=1.0), state.matrix)
            length = state.length + 1
        return self._quotient(sums).to(kind), FeatureSums(length, matrix, state.asked + 1)

    def _maps(self, q, k, causal: bool, real, span, scale: float | None) -> tuple[Tensor, Tensor]:
        scale = self._scale(q, scale)
        span = max(q.shape[2], k.shape[2]) if span is None else span
        sight = Sight(whole=not causal, real=real, span=span)
        return self.of_queries(q, sight, scale), self._keys(k, sight, scale)

    def _keys(self, k: Tensor, sight: Sight, scale: float) -> Tensor:
        if sight.real is None:
            return self.of_keys(k, sight, scale)
        shown = sight.real.expand(len(k), -1)[:, None, :, None]
        # Emptied before as well: the features of anything may overflow.
        return self.of_keys(k.masked_fill(~shown, 0), sight, scale) * shown

    def _scale(self, x: Tensor, scale: float | None) -> float:
        scale = self.scale if scale is None else scale
        return x.shape[-1] ** -0.5 if scale is None else scale

    def _quotient(self, sums: Float[Tensor, "*b e+1"]) -> Float[Tensor, "*b e"]:
        return sums[..., :-1] / sums[..., -1:].clamp(min=self.floor)


def _exact(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
