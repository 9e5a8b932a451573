"""FlexAttention, compiled for each pattern and length, set against our plans on the same q, k and v.

Its block mask is made beforehand and counts nothing. On a CPU it has no backward.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from bench.contest import Contest
from regardant.compare.workload import map_size
from regardant.core import plan
from regardant.core.grid_pattern import Neighborhood
from regardant.core.pattern import Causal, Pattern, Window

HEADS, WIDTH = 8, 64

AWAKE = 0.01
"""Seconds after which the threads of the other side sleep: compiled code has a pool of its own."""


def heads(length: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(length)
    q, k, v = (torch.randn(1, HEADS, length, WIDTH, generator=generator) for _ in range(3))
    return q, k, v


def compiled(mask: Callable[..., Tensor], length: int) -> Callable[..., Tensor]:
    """FlexAttention under a mask of this length."""
    blocks = create_block_mask(mask, None, None, length, length, device="cpu")
    run = torch.compile(flex_attention, dynamic=False)
    return lambda q, k, v: run(q, k, v, block_mask=blocks)


def against(pattern: Pattern, mask: Callable[..., Tensor], length: int) -> Contest:
    return Contest(
        ours=lambda q, k, v: plan.attend(q, k, v, pattern),
        theirs=compiled(mask, length),
        inputs=heads(length),
        exact=lambda q, k, v: plan.attend_dense(q, k, v, pattern),
        backward=False,
        lead=AWAKE,
    )


def causal_against_flex(length: int) -> Contest:
    return against(Causal(), lambda b, h, i, j: j <= i, length)


def window_against_flex(length: int, *, window: int) -> Contest:
    return against(
        Causal() & Window(window), lambda b, h, i, j: (j <= i) & (i - j < window), length
    )  # fmt: skip


def neighborhood_against_flex(length: int, *, kernel: int) -> Contest:
    """Two-dimensional neighbourhood attention; windows shift at the borders."""
    height, width = map_size(length)

    def near(a: Tensor, b: Tensor, side: int) -> Tensor:
        first = torch.clamp(a - kernel // 2, 0, max(side - kernel, 0))
        return (b >= first) & (b < first + kernel)

    return against(
        Neighborhood((kernel, kernel)).on(height, width),
        lambda b, h, i, j: near(i // width, j // width, height) & near(i % width, j % width, width),
        length,
    )
