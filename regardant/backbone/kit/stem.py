"""What stands before a stage: stems (images → the first map) and merging (a map → a smaller, wider one)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

from regardant.backbone.kit.convolution import BatchNorm, Convolution
from regardant.backbone.kit.field import Field
from regardant.backbone.kit.residual import InTurn
from regardant.core.product import Linear

Norm = Callable[[int], nn.Module]


def patches(
    before: int, after: int, *, size: int, kernel: int | None = None, padding: int | None = None,
    norm: Norm | None = nn.LayerNorm, norm_first: bool = False, bias: bool = True,
) -> InTurn:  # fmt: skip
    """One strided convolution and a norm: patch embedding, and merging between stages.

    `kernel` is `size` unless given: patches that do not overlap. `norm_first` norms what comes in.
    """
    kernel = size if kernel is None else kernel
    padding = (0 if kernel == size else kernel // 2) if padding is None else padding
    convolution = Convolution(before, after, kernel, stride=size, padding=padding, bias=bias)
    if norm is None:
        return InTurn(convolution)
    return InTurn(norm(before), convolution) if norm_first else InTurn(convolution, norm(after))


def convolutions(
    widths: Sequence[int], strides: Sequence[int], *, norm: Norm = BatchNorm, bias: bool = False,
    activation: Callable[[], nn.Module] = nn.GELU, last_norm: bool = True, kernel: int = 3,
    padding: int | Literal["same"] | None = None,
) -> InTurn:  # fmt: skip
    """Convolutions from `widths[0]` channels on, one a stride, with norms, and activations between them."""
    parts: list[nn.Module] = []
    for index, ((before, after), stride) in enumerate(zip(pairwise(widths), strides, strict=True)):
        last = index == len(strides) - 1
        parts.append(Convolution(before, after, kernel, stride=stride, bias=bias, padding=padding))
        parts += [norm(after)] if last_norm or not last else []
        parts += [] if last else [activation()]
    return InTurn(*parts)


class NeighborMerging(nn.Module):
    """Each square of four positions side by side, normed, and narrowed to `after` (Liu et al., Swin).

    They follow one another down the columns. Where a side is odd, zeros stand at its end.
    """

    def __init__(self, before: int, after: int):
        super().__init__()
        self.norm, self.narrow = nn.LayerNorm(4 * before), Linear(4 * before, after, bias=False)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b i j d"]:
        below, right = x.shape[1] % 2, x.shape[2] % 2
        if below or right:
            x = pad(x, (0, 0, 0, right, 0, below))
        squares = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
        return self.narrow(self.norm(squares.permute(0, 1, 3, 4, 2, 5).flatten(3)))

    def field(self, height: int, width: int) -> Field:
        return Field.window((height, width), 2, 2, 0)
