"""Which tokens of an image go on, by what the class token attends to, and what becomes of the others.

a     = mean over heads of softmax(q_class kᵀ · scale)      over all tokens; the class token's own left out
kept  = the ⌈rate · n⌉ largest of a
fused = Σ a_i x_i over the others                          the weights as they are: their sum is below one
"""

from __future__ import annotations

from math import ceil

import torch
from jaxtyping import Float, Int
from torch import Tensor

from regardant.core.errors import require

FUSED = -1
"""The place of a token that is none of the image's."""


def check_rate(name: str, rate: float) -> None:
    require(0 < rate <= 1, f"{name} is {rate}, but the share of tokens that go on is above 0 and at most 1")


def attention_of_class(
    q: Float[Tensor, "b h n d"], k: Float[Tensor, "b h n d"], *, scale: float | None = None
) -> Float[Tensor, "b n-1"]:
    """a: one row of the map, and no more of it is made. The class token is the first."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    row = (q[:, :, :1] * scale @ k.mT).softmax(dim=-1)
    return row[:, :, 0, 1:].mean(dim=1)


def parted(
    scores: Float[Tensor, "b n"], rate: float
) -> tuple[Int[Tensor, "b kept"], Int[Tensor, "b others"]]:
    """Places of the best ⌈rate · n⌉, and of the others, each from the best down."""
    count = scores.shape[1]
    order = scores.argsort(dim=1, descending=True, stable=True)
    kept, others = order.tensor_split([min(ceil(rate * count), count)], dim=1)
    return kept, others


def fused(
    x: Float[Tensor, "b n c"], attention: Float[Tensor, "b n"], kept: Int[Tensor, "b kept"]
) -> Float[Tensor, "b 1 c"]:
    """One token of all that are not kept."""
    return attention.scatter(1, kept, 0.0)[:, None] @ x


def at(x: Float[Tensor, "b n c"], places: Int[Tensor, "b k"]) -> Float[Tensor, "b k c"]:
    """The tokens at these places: whole rows are moved, not number by number."""
    rows = places + x.shape[1] * torch.arange(len(x), device=x.device)[:, None]
    return x.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, rows.shape)
