"""Nyströmformer (Xiong et al., "Nyströmformer: A Nyström-Based Algorithm for Approximating Self-Attention",
2021, arXiv:2102.03902).

The softmax matrix out of three thin ones. Queries and keys are cut into c segments with means Q̃ and K̃
(landmarks), and with s the scale of the logits,

    y = softmax(s Q K̃ᵀ) Z softmax(s Q̃ Kᵀ) V + conv(V)        Z ≈ softmax(s Q̃ K̃ᵀ)⁺
    Z ← Z/4 (13 - A Z (15 - A Z (7 - A Z))), six times, from Z = Aᵀ/(‖A‖₁ ‖A‖_∞)

conv is a depthwise convolution along the values, one kernel a head. A sequence of at most c tokens has a
landmark for each, and then y is softmax itself. The landmarks of queries mix all tokens: there is no causal
form. What differs from the official code: ‖A‖ is that of each matrix (there the largest of the batch, so
that samples depend on each other), any length can be cut, padding is in no segment.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from regardant.core.errors import require
from regardant.core.mixer import MultiHead
from regardant.core.padding import padding_alone
from regardant.core.rule import Rule
from regardant.core.segments import segment_means, segment_of, softmax_over
from regardant.core.supports import Supports

ITERATIONS = 6


def iterative_inverse(matrix: Float[Tensor, "*b c c"]) -> Float[Tensor, "*b c c"]:
    """The pseudo-inverse of a matrix whose rows sum to one, by iteration of the third order."""
    inverse = matrix.mT / matrix.sum(dim=-2).amax(dim=-1)[..., None, None].clamp(min=1e-12)
    unit = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    for _ in range(ITERATIONS):
        product = matrix @ inverse
        inverse = inverse @ (13 * unit - product @ (15 * unit - product @ (7 * unit - product))) / 4
    return inverse


class NystromRule(Rule):
    """Self-attention through `landmarks` segment means."""

    supports = Supports(
        causal=False, cross=False, causal_cross=False, step=False, pattern=False, time=1.0, memory=1.0
    )

    def __init__(self, landmarks: int):
        super().__init__()
        require(landmarks >= 1, f"landmarks is {landmarks}, but a sequence has at least 1")
        self.landmarks = landmarks

    def forward(self, q, k, v, *, pattern=None, scale=None):
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        kind, real, c = v.dtype, padding_alone(self, pattern), self.landmarks
        share, exact = q.shape[1] // k.shape[1], torch.promote_types(v.dtype, torch.float32)
        q, k, v = (x.to(exact) for x in (q, k, v))
        k, v = (x.repeat_interleave(share, dim=1) for x in (k, v))
        segment, used = segment_of(k.shape[2], c, real, device=k.device)
        few = (used < c)[:, None, None, None] if real is not None or k.shape[2] < c else None
        near_q, near_k = (segment_means(x, segment, c) for x in (q, k))
        seen = None if few is None else (torch.arange(c, device=k.device) < used[:, None])[:, None, None]
        to_landmarks = softmax_over(q @ near_k.mT * scale, seen)
        shown = None if real is None else real.expand(len(k), -1)[:, None, None]
        gathered = softmax_over(near_q @ k.mT * scale, shown) @ v
        between = softmax_over(near_q @ near_k.mT * scale, seen)
        if few is not None:  # as many landmarks as tokens: the values themselves
            between = torch.where(few, torch.eye(c, dtype=q.dtype, device=q.device), between)
            gathered = torch.where(few, segment_means(v, segment, c), gathered)
            inverse = torch.where(few, between, iterative_inverse(between))
        else:
            inverse = iterative_inverse(between)
        out = to_landmarks @ (inverse @ gathered)
        return (out if shown is None else out * shown.any(dim=-1, keepdim=True)).to(kind)

    def reference(self, q, k, v, *, pattern=None, scale=None):
        """Sample by sample, from what is real alone."""
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        real = padding_alone(self, pattern)
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
        rows = []
        for sample, queries in enumerate(q):
            keep = slice(None) if real is None else real.expand(len(k), -1)[sample]
            own_q, own_k, own_v = (x[sample][:, keep] for x in (q, k, v))
            count = own_k.shape[1]
            if count == 0:
                rows.append(torch.zeros_like(v[sample, :, :1].expand(-1, queries.shape[1], -1)))
                continue
            if count < self.landmarks:
                rows.append((queries @ own_k.mT * scale).softmax(-1) @ own_v)
                continue
            size, rest = divmod(count, self.landmarks)
            sizes = [size] * (self.landmarks - rest) + [size + 1] * rest
            near_q, near_k = (
                torch.stack([part.mean(dim=1) for part in x.split(sizes, dim=1)], dim=1)
                for x in (own_q, own_k)
            )
            weights = (queries @ near_k.mT * scale).softmax(-1)
            core = iterative_inverse((near_q @ near_k.mT * scale).softmax(-1))
            rows.append(weights @ core @ (near_q @ own_k.mT * scale).softmax(-1) @ own_v)
        return torch.stack(rows)


class Nystromformer(MultiHead):
    """Attention through `landmarks` segment means, and a convolution of the values with kernels of `kernel`
    tokens (0: none)."""

    supports = Supports(
        causal=False, cross=False, causal_cross=False, step=False, pattern=False, time=1.0, memory=1.0
    )

    def __init__(self, dim: int, heads: int, *, landmarks: int = 64, kernel: int = 33, **shared):
        super().__init__(dim, heads, rule=NystromRule(landmarks), **shared)
        require(
            kernel == 0 or kernel % 2 == 1, f"kernel is {kernel}, but it is odd, with a middle, or 0 for none"
        )
        self.convolution = (
            nn.Conv1d(heads, heads, kernel, padding=kernel // 2, groups=heads, bias=False) if kernel else None
        )

    def attend(self, q, k, v, *, x, pattern, padding=None, record=None):
        out = self.rule(q, k, v, pattern=pattern, scale=self.scale)
        return out if self.convolution is None else out + self._convolved(v, padding)

    def attend_reference(self, q, k, v, *, x, pattern, padding=None):
        out = self.rule.reference(q, k, v, pattern=pattern, scale=self.scale)
        if self.convolution is None:
            return out
        v = v.repeat_interleave(self.heads // self.kv_heads, dim=1)
        v = v if padding is None else v * padding[:, None, :, None]
        half = self.convolution.weight.shape[-1] // 2
        windows = F.pad(v, (0, 0, half, half)).unfold(2, 2 * half + 1, 1)
        return out + torch.einsum("bhndk,hk->bhnd", windows, self.convolution.weight[:, 0])

    def _convolved(self, v: Float[Tensor, "b g n d"], padding: Bool[Tensor, "b n"] | None) -> Tensor:
        v = v.repeat_interleave(self.heads // self.kv_heads, dim=1)
        v = v if padding is None else v.masked_fill(~padding[:, None, :, None], 0)
        channels = self.convolution(v.permute(0, 3, 1, 2).flatten(0, 1))
        return channels.unflatten(0, (len(v), -1)).permute(0, 2, 3, 1)
