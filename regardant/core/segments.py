"""Landmarks: a sequence cut into a few segments of nearly equal size, each of them one mean.

The segments are counted over what is real, sample by sample: padding belongs to none, and a sequence shorter
than the number of landmarks gives as many as it has tokens.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regardant.core.errors import require


def segment_of(
    length: int, landmarks: int, real: Bool[Tensor, "#b n"] | None = None,
    *, device: torch.device | None = None,
) -> tuple[Int[Tensor, "#b n"], Int[Tensor, "#b"]]:  # fmt: skip
    """The segment of every token (of padding: `landmarks`), and how many segments there are.

    Where the division leaves a rest, the last segments are longer by one.
    """
    require(landmarks >= 1, f"landmarks is {landmarks}, but a sequence has at least 1")
    if real is None:
        real = torch.ones(1, length, dtype=torch.bool, device=device)
    real = real.reshape(-1, length)
    count = real.sum(dim=1, keepdim=True)
    used = count.clamp(max=landmarks)
    size = count // used.clamp(min=1)
    short = (size + 1) * used - count
    rank = real.cumsum(dim=1) - 1
    before = short * size
    segment = torch.where(rank < before, rank // size.clamp(min=1), short + (rank - before) // (size + 1))
    return segment.masked_fill(~real, landmarks), used[:, 0]


def segment_means(
    x: Float[Tensor, "b h n d"], segment: Int[Tensor, "#b n"], landmarks: int
) -> Float[Tensor, "b h c d"]:
    """The mean of every segment; zero for segments that are not there."""
    member = segment[:, None, :] == torch.arange(landmarks, device=x.device)[:, None]
    share = member.to(x.dtype) / member.sum(dim=-1, keepdim=True).clamp(min=1)
    return share[:, None] @ x


def softmax_over(
    logits: Float[Tensor, "*b m n"], seen: Bool[Tensor, "#*b #m n"] | None, dim: int = -1
) -> Float[Tensor, "*b m n"]:
    """Softmax over what is seen; where that is nothing, something finite."""
    if seen is not None:
        logits = logits.masked_fill(~seen, torch.finfo(logits.dtype).min)
    return logits.softmax(dim=dim)
