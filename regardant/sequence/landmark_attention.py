"""Landmark attention (Mohtashami & Jaggi, "Landmark Attention: Random-Access Infinite Context Length for
Transformers", 2023, arXiv:2305.16300): as it is trained.

Behind every block of ℓ tokens stands a landmark token, and its key is the gate to the block. A query in
block c gives its own tokens and the landmarks of all earlier blocks one softmax, and lets each earlier block
share out what its landmark got:

    s_j = q·k_j/√d, causal        [p_own, p_1 … p_{c-1}] = softmax over {s_j in block c} and the landmarks' s
    y   = Σ_{j in c} p_j v_j + Σ_{i<c} p_i Σ_{j in i} softmax_{j in i}(s)_j v_j

Landmarks' values are never read, and the landmark of a query's own block is invisible, also to itself. Rows
sum to 1. All pairs are computed; `regardant.sequence.landmark_retrieval` takes the same weights and reads
few blocks. Landmarks come into the tokens by `regardant.core.landmarks.insert_landmarks`, and the same,
with the label that the loss leaves out, into the labels.

What differs from the official code: landmarks stand at every (ℓ+1)-th position, which makes the grouped
softmax two plain ones instead of scatters; a block that is padding but for its landmark is not read; there
is no dropout of groups.
"""

from __future__ import annotations

import torch

from regardant.core.errors import require
from regardant.core.landmarks import BlockSoftmax, grouped_softmax, is_landmark
from regardant.core.mixer import MultiHead
from regardant.core.rule import SoftmaxRule
from regardant.core.supports import Supports


class LandmarkAttention(MultiHead):
    """Attention under the grouped softmax: behind every `block` tokens stands their landmark."""

    supports = Supports(
        noncausal=False, cross=False, causal_cross=False, pattern=False, time=2.0, memory=1.0, state=1.0
    )

    def __init__(self, dim: int, heads: int, *, causal: bool = True, block: int = 50, **shared):
        require(block >= 1, f"block is {block}, but a landmark stands behind at least 1 token")
        super().__init__(dim, heads, causal=causal, **shared)
        self.block = block
        self.rule = SoftmaxRule(bias=self.rule.bias, normaliser=BlockSoftmax(block))

    def attend_reference(self, q, k, v, *, x, pattern, padding=None):
        share, n = q.shape[1] // k.shape[1], k.shape[2]
        k, v = k.repeat_interleave(share, dim=1), v.repeat_interleave(share, dim=1)
        at = torch.arange(n, device=q.device)
        logits = q @ k.mT * (self.head_dim**-0.5 if self.scale is None else self.scale)
        if self.rule.bias is not None:
            logits = logits + self.rule.bias.block(at, at)
        mask = pattern.block(at, at, batch=len(q), heads=self.heads).expand(logits.shape)
        return grouped_softmax(logits, mask, is_landmark(n, block=self.block).to(q.device)) @ v
