"""LARA (Zheng, Wang and Kong, "Linear Complexity Randomized Self-Attention Mechanism", 2022,
arXiv:2204.04667).

Softmax attention as a mean of random features under a proposal that looks at the sequence: c segments of
queries and keys have means q̄ and k̄, and each proposes around μ_c = q̄_c + k̄_c. With x̂ = √s x, s the scale
of the logits, and one draw ω_c ~ N(μ_c, 1) a segment,

    y_n = Σ_c α_nc Σ_m softmax_m(ω_c·k̂_m - |k̂_m|²/2) v_m
    α_nc = softmax_c( μ_c·q̂_n + ω_c·q̂_n - |q̂_n|²/2 + log Σ_m exp(ω_c·k̂_m - |k̂_m|²/2) - ω_c·μ_c + |μ_c|²/2 )

whose terms are: how near the query is to the segment, both random features, and the proposal's density. In
evaluation ω_c is μ_c itself, so nothing is random there. Segments need the whole sequence: noncausal only.
Padding is in no segment; a sequence shorter than c has a segment a token.
"""

from __future__ import annotations

import torch

from regardant.core.errors import require
from regardant.core.mixer import MultiHead
from regardant.core.padding import padding_alone
from regardant.core.rule import Rule
from regardant.core.segments import segment_means, segment_of, softmax_over
from regardant.core.supports import Supports


class LaraRule(Rule):
    """Randomised attention with `landmarks` proposals, one draw each."""

    supports = Supports(
        causal=False, cross=False, causal_cross=False, step=False, pattern=False, time=1.0, memory=1.0
    )

    def __init__(self, landmarks: int):
        super().__init__()
        require(landmarks >= 1, f"landmarks is {landmarks}, but a sequence has at least 1")
        self.landmarks = landmarks

    def forward(self, q, k, v, *, pattern=None, scale=None):
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        require(scale > 0, f"scale is {scale}, but the kernel exp(scale q·k) needs a positive one")
        kind, real, c = v.dtype, padding_alone(self, pattern), self.landmarks
        share, exact = q.shape[1] // k.shape[1], torch.promote_types(v.dtype, torch.float32)
        q, k, v = (x.to(exact) for x in (q, k, v))
        q, k = q * scale**0.5, (k * scale**0.5).repeat_interleave(share, dim=1)
        v = v.repeat_interleave(share, dim=1)
        segment, used = segment_of(k.shape[2], c, real, device=k.device)
        middle = segment_means(q, segment, c) + segment_means(k, segment, c)
        drawn = middle + torch.randn_like(middle) if self.training else middle
        there = (torch.arange(c, device=k.device) < used[:, None])[:, None, None]
        shown = None if real is None else real.expand(len(k), -1)[:, None, None]
        keys = drawn @ k.mT - k.square().sum(-1)[:, :, None] / 2
        if shown is not None:
            keys = keys.masked_fill(~shown, torch.finfo(keys.dtype).min)
        density = (drawn * middle).sum(-1) - middle.square().sum(-1) / 2
        # |q|²/2 is the same for all proposals of a query, so it falls out of the softmax.
        alpha = q @ (middle + drawn).mT + (keys.logsumexp(dim=-1) - density)[:, :, None]
        out = softmax_over(alpha, there) @ (keys.softmax(dim=-1) @ v)
        return (out if shown is None else out * shown.any(dim=-1, keepdim=True)).to(kind)

    def reference(self, q, k, v, *, pattern=None, scale=None):
        """In evaluation, sample by sample, from what is real alone, with the matrix of weights."""
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        real = padding_alone(self, pattern)
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
        q, k, rows = q * scale**0.5, k * scale**0.5, []
        for sample, queries in enumerate(q):
            keep = slice(None) if real is None else real.expand(len(k), -1)[sample]
            own_q, own_k = q[sample][:, keep], k[sample][:, keep]
            count, weights = own_k.shape[1], queries.new_zeros(*queries.shape[:2], k.shape[2])
            if count > 0:
                c = min(self.landmarks, count)
                sizes = [count // c] * (c - count % c) + [count // c + 1] * (count % c)
                middle = torch.stack(
                    [a.mean(1) + b.mean(1) for a, b in zip(own_q.split(sizes, 1), own_k.split(sizes, 1))],
                    dim=1,
                )

                def feature(x, middle=middle):
                    return (x[:, :, None] * middle[:, None]).sum(-1) - x.square().sum(-1, keepdim=True) / 2

                log_keys = feature(own_k)
                near = (queries[:, :, None] * middle[:, None]).sum(-1)
                log_ratio = near + feature(queries) + log_keys.logsumexp(1)[:, None]
                log_ratio = log_ratio - middle.square().sum(-1)[:, None] / 2
                weights[:, :, keep] = log_ratio.softmax(-1) @ log_keys.softmax(1).mT
            rows.append(weights @ v[sample])
        return torch.stack(rows)


class Lara(MultiHead):
    """Linear randomised attention with `landmarks` data-dependent proposals."""

    supports = Supports(
        causal=False, cross=False, causal_cross=False, step=False, pattern=False, time=1.0, memory=1.0
    )

    def __init__(self, dim: int, heads: int, *, landmarks: int = 16, **shared):
        super().__init__(dim, heads, rule=LaraRule(landmarks), **shared)
