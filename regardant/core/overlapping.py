"""Overlapping rectangles of maps, cut out side by side and laid back on one another.

`Tensor.unfold` gives the pieces, but torch's own way back from them goes number by number. Here slices are
added, as many as a piece is steps long, of all pieces at once.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

Pair = tuple[int, int]


def rectangles(
    x: Float[Tensor, "b h w c"], size: Pair, step: Pair
) -> Float[Tensor, "b down across rows columns c"]:
    """The rectangles of `size` whose corners stand `step` apart; a map holds whole ones only."""
    return _Rectangles.apply(x, size, step)


class _Rectangles(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, size: Pair, step: Pair) -> Tensor:
        parts = x.unfold(1, size[0], step[0]).unfold(2, size[1], step[1])
        return parts.permute(0, 1, 2, 4, 5, 3).contiguous()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Pair, Pair], output: Tensor) -> None:
        x, _, ctx.step = inputs
        ctx.whole = x.shape

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (_, height, width, _), (down, across) = ctx.whole, ctx.step
        rows = laid_down(grad.transpose(2, 3), 3, across, width)
        return laid_down(rows, 1, down, height), None, None


def laid_down(parts: Tensor, dim: int, step: int, length: int) -> Tensor:
    """Pieces along `dim`, each as long as the next axis, `step` apart on one axis of `length`: their sum."""
    count, size = parts.shape[dim : dim + 2]
    spare = -(-size // step) * step
    shape = (*parts.shape[:dim], max((count - 1) * step + spare, length), *parts.shape[dim + 2 :])
    total = parts.new_zeros(shape)
    for first in range(0, size, step):
        piece = parts.narrow(dim + 1, first, min(step, size - first))
        places = total.narrow(dim, first, count * step).unflatten(dim, (count, step))
        places.narrow(dim + 1, 0, piece.shape[dim + 1]).add_(piece)
    return total.narrow(dim, 0, length)
