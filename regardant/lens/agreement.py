"""How far two score vectors agree: rank and linear correlation, and the overlap of the best few.

All work along the last axis, and on entries where `mask` is True if one is given: padding has no rank.

    kendall    τ_b = (concordant - discordant) / √((pairs - ties in a)(pairs - ties in b))
    spearman   the linear correlation of the ranks, ties sharing their mean rank
    top_overlap  |best k of a ∩ best k of b| / k
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from regardant.core.errors import require

Measure = Callable[..., Tensor]


def pearson(
    a: Float[Tensor, "*b n"], b: Float[Tensor, "*b n"], mask: Bool[Tensor, "*b n"] | None = None
) -> Float[Tensor, "*b"]:
    """Linear correlation; NaN where one side is constant."""
    a, b, mask = _paired(a, b, mask)
    count = mask.sum(-1, keepdim=True)
    a, b = (
        torch.where(mask, x - (x * mask).sum(-1, keepdim=True) / count, 0.0) for x in (a, b)
    )  # fmt: skip
    return (a * b).sum(-1) / (a.square().sum(-1) * b.square().sum(-1)).sqrt()


def spearman(
    a: Float[Tensor, "*b n"], b: Float[Tensor, "*b n"], mask: Bool[Tensor, "*b n"] | None = None
) -> Float[Tensor, "*b"]:
    """The correlation of ranks."""
    a, b, mask = _paired(a, b, mask)
    return pearson(ranks(a, mask), ranks(b, mask), mask)


def kendall(
    a: Float[Tensor, "*b n"], b: Float[Tensor, "*b n"], mask: Bool[Tensor, "*b n"] | None = None
) -> Float[Tensor, "*b"]:
    """τ_b: every pair of entries counts; NaN where one side is all ties."""
    a, b, mask = _paired(a, b, mask)
    both = mask[..., :, None] & mask[..., None, :]
    signs = [torch.where(both, (x[..., :, None] - x[..., None, :]).sign(), 0.0) for x in (a, b)]
    first, second = (sign.flatten(-2) for sign in signs)
    return (first * second).sum(-1) / (first.abs().sum(-1) * second.abs().sum(-1)).sqrt()


def top_overlap(
    a: Float[Tensor, "*b n"], b: Float[Tensor, "*b n"], mask: Bool[Tensor, "*b n"] | None = None, *, best: int
) -> Float[Tensor, "*b"]:
    """The share of the `best` highest entries that both have; chance is best / n."""
    a, b, mask = _paired(a, b, mask)
    least = int(mask.sum(-1).min())
    require(1 <= best <= least, f"best is {best}, but there are {least} entries to choose from")
    chosen = []
    for x in (a, b):
        index = x.masked_fill(~mask, -torch.inf).topk(best, dim=-1).indices
        chosen.append(torch.zeros_like(mask).scatter(-1, index, True))
    return (chosen[0] & chosen[1]).sum(-1).double() / best


def ranks(x: Float[Tensor, "*b n"], mask: Bool[Tensor, "*b n"] | None = None) -> Float[Tensor, "*b n"]:
    """Ranks from 0 among the entries of the mask; those that are equal share their mean rank."""
    mask = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
    x, other = x[..., :, None], x[..., None, :]
    seen = mask[..., None, :]
    return ((other < x) & seen).sum(-1).double() + (((other == x) & seen).sum(-1).double() - 1) / 2


def agreement(
    scores: Mapping[str, Float[Tensor, "b n"]], mask: Bool[Tensor, "b n"] | None = None,
    *, measure: Measure = kendall,
) -> dict[tuple[str, str], Float[Tensor, "b"]]:  # fmt: skip
    """Every pair of score vectors against each other, sample by sample: the table of an agreement study."""
    require(len(scores) >= 2, f"scores has {len(scores)} entries, but agreement is between at least two")
    return {(a, b): measure(scores[a], scores[b], mask) for a, b in combinations(scores, 2)}


def _paired(a: Tensor, b: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    require(a.shape == b.shape, f"the scores are {list(a.shape)} and {list(b.shape)}, but must pair up")
    require(
        mask is None or mask.shape == a.shape,
        f"mask is {None if mask is None else list(mask.shape)}, but the scores are {list(a.shape)}",
    )
    mask = torch.ones_like(a, dtype=torch.bool) if mask is None else mask
    return a.double(), b.double(), mask
