"""Blocks of queries that attend to the blocks of keys which were chosen for them, on sequences and on maps.

    scores of blocks → `regardant.core.selected.strongest` (or a search) → chosen blocks → `attend_blocks`

How blocks are scored differs from system to system: means of queries and keys, learned gates, a search from
coarse to fine. What follows is the same, in language and in vision: the chosen blocks are copied whole and
side by side, and their keys are one softmax. Nothing of the size queries × keys is made.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regardant.core.errors import require
from regardant.core.selected import exact

NUMBERS = 2**22
"""Numbers of keys, or of logits, that are held at once."""


def attend_blocks(
    q: Float[Tensor, "p h r d"], k: Float[Tensor, "u s g d"], v: Float[Tensor, "u s g e"],
    chosen: Int[Tensor, "p n"], *, scale: float, sees: Bool[Tensor, "p #r n*s"] | None = None,
) -> Float[Tensor, "p h r e"]:  # fmt: skip
    """Softmax attention of p blocks of r queries, each to its own n of the u blocks of s keys.

    `g` divides `h`: heads share keys in consecutive groups. `sees` says which of the chosen keys a query
    sees, block after block; all of them unless given, and a query that sees none gives zeros.
    """
    (p, h, r, d), (s, g) = q.shape, k.shape[1:3]
    require(len(chosen) == p, f"chosen is for {len(chosen)} blocks of queries, but there are {p}")
    require(h % g == 0, f"{g} heads of keys cannot be shared by {h} heads of queries")
    step = max(1, NUMBERS // (chosen.shape[1] * s * max(g * d, h * r)))
    parts = []
    for first in range(0, p, step):
        own = slice(first, first + step)
        keys, values = (_taken(x, chosen[own]) for x in (k, v))
        parts.append(_attend(q[own], keys, values, None if sees is None else sees[own], scale))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _taken(x: Float[Tensor, "u s g d"], chosen: Int[Tensor, "p n"]) -> Float[Tensor, "p g n*s d"]:
    """Whole blocks, each copied in one piece."""
    blocks = x.flatten(1).index_select(0, chosen.flatten())
    return blocks.view(len(chosen), -1, *x.shape[2:]).transpose(1, 2)


def _attend(
    q: Float[Tensor, "p h r d"], k: Float[Tensor, "p g n d"], v: Float[Tensor, "p g n e"],
    sees: Bool[Tensor, "p #r n"] | None, scale: float,
) -> Float[Tensor, "p h r e"]:  # fmt: skip
    (h, r), g = q.shape[1:3], k.shape[1]
    if sees is None:
        return F.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=g != h)
    logits = exact((q * scale).unflatten(1, (g, -1)).flatten(2, 3) @ k.mT).unflatten(2, (-1, r))
    # The least number in place of -inf: a query that sees nothing has no NaN to be cleared away.
    logits = logits.masked_fill(~sees[:, None, None], torch.finfo(logits.dtype).min)
    out = (logits.softmax(dim=-1).to(v.dtype).flatten(2, 3) @ v).unflatten(2, (-1, r)).flatten(1, 2)
    return out.masked_fill(~sees.any(dim=-1)[:, None, :, None], 0)
