"""Softmax under a pattern by FlexAttention: a kernel compiled for the pattern's index arithmetic."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from regardant.core.visibility import Visibility


def block_mask(sees: Visibility, device: torch.device) -> BlockMask:
    """Which blocks of 128 by 128 pairs hold anything visible."""
    pattern, real, offset = sees.pattern, sees.real, sees.offset
    real = None if real is None else real.to(device)

    def mask_mod(batch, head, i, j):
        mask = i >= 0 if pattern is None else pattern.mask_mod(batch, head, i + offset, j)
        return mask if real is None else mask & real[batch if len(real) > 1 else 0, j]

    by_batch = (pattern is not None and pattern.by_batch) or (real is not None and len(real) > 1)
    by_head = pattern is not None and pattern.by_head
    return create_block_mask(
        mask_mod, sees.batch if by_batch else None, sees.heads if by_head else None,
        sees.queries, sees.keys, device=str(device),
    )  # fmt: skip


def attend_flex(
    q: Float[Tensor, "b h m d"], k: Float[Tensor, "b g n d"], v: Float[Tensor, "b g n e"],
    sees: Visibility, *, scale: float,
) -> Float[Tensor, "b h m e"]:  # fmt: skip
    """The first call of a shape compiles: seconds. Rows that see no key give zeros."""
    compiled = torch.compile(flex_attention, dynamic=False)
    return compiled(
        q, k, v, block_mask=block_mask(sees, q.device), scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )
