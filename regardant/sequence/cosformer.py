"""cosFormer (Qin et al., "cosFormer: Rethinking Softmax in Attention", 2022, arXiv:2202.08791).

Linear attention that keeps two properties of softmax: weights that are not negative, and more weight for
what is near. Over positions i of queries and j of keys,

    y_i = Σ_j w_ij v_j / Σ_j w_ij        w_ij = relu(q_i)·relu(k_j) cos(π/2 (i - j)/M)

and since cos(a - b) = cos a cos b + sin a sin b, it is a product of features of twice the width,

    φ(q_i) = [relu(q_i) cos(πi/2M), relu(q_i) sin(πi/2M)]          ψ(k_j) likewise.

M is the length, or `max_length` where given: whoever decodes does not know the length, so that a causal
layer always has one (8,192 unless it is told), and refuses positions beyond it, where the cosine would turn
negative. What differs from the official code: there M is the length at hand even when causal, and an output
then depends on how much follows; here only a layer that sees everything takes M from the sequence. Padding
counts for nothing, in M neither.
"""

from __future__ import annotations

from math import pi

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from regardant.core.errors import require
from regardant.core.feature_map import FeatureRule, Sight
from regardant.core.mixer import MultiHead
from regardant.core.pattern import Pattern, split_padding
from regardant.core.supports import Supports

FARTHEST = 8192


class CosineRule(FeatureRule):
    """ReLU features, re-weighted by the cosine of the distance; `max_length` is M (None: the length)."""

    floor = 1e-6

    def __init__(self, *, max_length: int | None = None):
        super().__init__()
        require(
            max_length is None or max_length >= 1, f"max_length is {max_length}, but a position is at least 1"
        )
        self.max_length = max_length

    def of_queries(self, q, sight: Sight, scale):
        return self._turned(q, sight)

    def of_keys(self, k, sight: Sight, scale):
        return self._turned(k, sight)

    def _turned(self, x: Tensor, sight: Sight) -> Tensor:
        end, limit = sight.first + x.shape[2], self.max_length
        require(
            limit is None or end <= limit,
            f"the sequence reaches length {end}, but max_length={limit} is as far as the cosine is positive",
        )
        at = torch.arange(sight.first, end, device=x.device, dtype=x.dtype)
        span = torch.as_tensor(limit or sight.span, device=x.device, dtype=x.dtype).view(-1, 1, 1, 1)
        angle = pi / 2 * at[:, None] / span
        x = torch.relu(x)
        return torch.cat([x * angle.cos(), x * angle.sin()], dim=-1)


class CosFormer(MultiHead):
    """Linear attention with ReLU features and cosine re-weighting over `max_length` positions."""

    supports = Supports(pattern=False, time=1.0, memory=1.0, state=0.0)

    def __init__(
        self, dim: int, heads: int, *, causal: bool = False, max_length: int | None = None, **shared
    ):
        rule = CosineRule(max_length=FARTHEST if causal and max_length is None else max_length)
        super().__init__(dim, heads, causal=causal, max_length=max_length, rule=rule, **shared)

    def attend(self, q, k, v, *, x, pattern, padding=None, record=None):
        span = self._length_of(q, k, pattern, padding)
        return self.rule(q, k, v, pattern=pattern, scale=self.scale, span=span)

    def attend_reference(self, q, k, v, *, x, pattern, padding=None):
        span = self._length_of(q, k, pattern, padding)
        return self.rule.reference(q, k, v, pattern=pattern, scale=self.scale, span=span)

    def _length_of(
        self, q: Tensor, k: Tensor, pattern: Pattern | None, padding: Bool[Tensor, "b n"] | None
    ) -> int | Int[Tensor, "b"] | None:
        """M: where the longer of the two sides ends, padding apart; None where it is fixed."""
        if self.rule.max_length is not None:
            return None
        own = split_padding(pattern)[1]
        if own is None:
            return max(q.shape[2], k.shape[2])
        last = (own * torch.arange(1, k.shape[2] + 1, device=k.device)).amax(dim=1)
        return last.clamp(min=1 if padding is not None else q.shape[2])
