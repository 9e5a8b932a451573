"""Convolutions, pooling and batch norms on maps with channels last.

A map [b, h, w, c] is what PyTorch calls `channels_last` once its axes are named in the other order, so
nothing is copied. What has a stride gives ⌈side / stride⌉ positions at any size: what lacks at the bottom
and on the right is zeros.

What is a product is run as one: patches that do not overlap, and what looks at single positions.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from regardant.backbone.kit.field import Field
from regardant.core.errors import require
from regardant.core.grid_position import on_channels_first
from regardant.core.product import DEEP, is_linear, linear, listened_to

COLOURS, SIDE = 16, 8
"""With so many channels a row of a patch is long enough to be moved at once, whatever its side; with fewer,
a patch of so many positions a side is."""


class Convolution(nn.Conv2d):
    """A convolution on [b, h, w, c].

    `padding` is how many zeros stand before a map, half the kernel unless given; "same" centres what the
    size needs, as TensorFlow does.
    """

    def __init__(
        self, before: int, after: int, kernel: int, *, stride: int = 1,
        padding: int | Literal["same"] | None = None, groups: int = 1, bias: bool = True,
    ):  # fmt: skip
        require(
            before % groups == 0 and after % groups == 0,
            f"groups is {groups}, which does not divide {before} and {after} channels",
        )
        super().__init__(before, after, kernel, stride=stride, groups=groups, bias=bias)
        self.beyond = kernel // 2 if padding is None else padding

    def margins(self, length: int) -> tuple[int, int]:
        """Zeros before and behind a side of this length."""
        return margins(length, self.kernel_size[0], self.stride[0], self.beyond)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b i j d"]:
        return self.convolve(x, self.weight, self.bias)

    def convolve(self, x: Float[Tensor, "b h w c"], weight: Tensor, bias: Tensor | None) -> Tensor:
        """What this layer would do with other parameters."""
        (above, below), (left, right) = self.margins(x.shape[1]), self.margins(x.shape[2])
        apart = self.kernel_size == self.stride and not any((above, below, left, right))
        rows = self._in_rows(x, weight) if apart and self.groups == 1 else None
        if rows is not None:
            return linear(*rows, bias)
        groups, each = self.groups, self.out_channels // self.groups
        if 1 < groups == self.in_channels and each > 1 and x.device.type == "cpu":
            # oneDNN is fast where each channel gives one, and several times slower where it gives more.
            x, groups = x[..., None].expand(*x.shape, each).flatten(3), self.out_channels
        x = x.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        even = above == left
        if not (even and below <= above and right <= left):
            x, above, left = F.pad(x, (left, right, above, below)), 0, 0
        return F.conv2d(x, weight, bias, self.stride, (above, left), 1, groups).permute(0, 2, 3, 1)

    def _in_rows(self, x: Float[Tensor, "b h w c"], weight: Tensor) -> tuple[Tensor, Tensor] | None:
        """What each position sees side by side, and the weights in that order, where kernels do not overlap
        and the product of the two is less work than a convolution."""
        side, channels = self.kernel_size, x.shape[3]
        if side == (1, 1):
            return (x, weight.flatten(1)) if channels >= DEEP else None
        if channels >= COLOURS:
            return _patches(x, *side), weight.permute(0, 2, 3, 1).flatten(1)
        if side[1] >= SIDE:  # as images come, channels first, so that their rows are not taken apart
            return _patches(x, *side, channels_first=True), weight.flatten(1)
        return None

    def field(self, height: int, width: int) -> Field:
        return Field.window(
            (height, width), self.kernel_size[0], self.stride[0],
            (self.margins(height)[0], self.margins(width)[0]),
        )  # fmt: skip


def _patches(
    x: Float[Tensor, "b h w c"], height: int, width: int, *, channels_first: bool = False
) -> Float[Tensor, "b i j p"]:
    """Patches that do not overlap, each in a row."""
    squares = x.unflatten(2, (-1, width)).unflatten(1, (-1, height))
    order = (0, 1, 3, 5, 2, 4) if channels_first else (0, 1, 3, 2, 4, 5)
    return squares.permute(order).flatten(3)


class DepthwiseConvolution(Convolution):
    """Each channel by itself."""

    def __init__(self, dim: int, kernel: int = 3, *, stride: int = 1, padding=None, bias: bool = True):
        super().__init__(dim, dim, kernel, stride=stride, padding=padding, groups=dim, bias=bias)


class Pooling(nn.Module):
    """The mean or the largest of windows, channels last; what lies off the map does not count."""

    def __init__(
        self, kind: Literal["mean", "largest"], kernel: int, *, stride: int,
        padding: int | Literal["same"] | None = None,
    ):  # fmt: skip
        super().__init__()
        self.kind, self.kernel, self.stride = kind, kernel, stride
        self.beyond = (kernel // 2 if kernel > stride else 0) if padding is None else padding

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b i j c"]:
        above, below = margins(x.shape[1], self.kernel, self.stride, self.beyond)
        left, right = margins(x.shape[2], self.kernel, self.stride, self.beyond)
        sides = (left, max(right, 0), above, max(below, 0))
        if self.kind == "largest":
            filled = F.pad(x.permute(0, 3, 1, 2), sides, value=-torch.inf) if any(sides) else None
            x = x.permute(0, 3, 1, 2) if filled is None else filled
            return F.max_pool2d(x, self.kernel, self.stride).permute(0, 2, 3, 1)
        if not any(sides):
            return F.avg_pool2d(x.permute(0, 3, 1, 2), self.kernel, self.stride).permute(0, 2, 3, 1)
        real = F.pad(torch.ones(1, 1, *x.shape[1:3], dtype=x.dtype, device=x.device), sides)
        sums = F.avg_pool2d(F.pad(x.permute(0, 3, 1, 2), sides), self.kernel, self.stride)
        return (sums / F.avg_pool2d(real, self.kernel, self.stride)).permute(0, 2, 3, 1)

    def field(self, height: int, width: int) -> Field:
        before = tuple(
            margins(length, self.kernel, self.stride, self.beyond)[0] for length in (height, width)
        )
        return Field.window((height, width), self.kernel, self.stride, before)


def margins(length: int, kernel: int, stride: int, beyond: int | str) -> tuple[int, int]:
    """Zeros before and behind a side, so that ⌈length / stride⌉ windows fit. Behind may be less than none."""
    needed = (-(-length // stride) - 1) * stride + kernel - length
    before = max(needed, 0) // 2 if beyond == "same" else beyond
    return before, needed - before


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation of the channels of [b, h, w, c]."""

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        return on_channels_first(super().forward, x)


def absorbed(layer: Convolution | nn.Linear, norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias with which a layer does what it and the batch norm behind it do in eval mode:

    γ (W * x + b - μ) / σ + β   =   (γ W / σ) * x + γ (b - μ) / σ + β
    """
    gain = norm.weight * (norm.running_var + norm.eps).rsqrt()
    mean = norm.running_mean if layer.bias is None else norm.running_mean - layer.bias
    weight = layer.weight * gain.view(-1, *(1,) * (layer.weight.ndim - 1))
    return weight, torch.addcmul(norm.bias, mean, gain, value=-1)


def absorbs(layer: nn.Module, norm: nn.Module, x: Float[Tensor, "b *n c"]) -> bool:
    """Whether a layer and the batch norm behind it may run as one, and whether that is less to do."""
    return (
        type(norm) is BatchNorm
        and not norm.training
        and (type(layer) in (Convolution, DepthwiseConvolution) or is_linear(layer))
        and layer.weight[0].numel() <= x.shape[:-1].numel()
        and not (listened_to(layer) or listened_to(norm))
    )


def absorbing(layer: Convolution | nn.Linear, norm: BatchNorm, x: Float[Tensor, "b *n c"]) -> Tensor:
    """What the two make of x, in one."""
    weight, bias = absorbed(layer, norm)
    return linear(x, weight, bias) if isinstance(layer, nn.Linear) else layer.convolve(x, weight, bias)


class SqueezeExcite(nn.Module):
    """Channels weighted by two layers over their means (Hu et al.), channels last."""

    def __init__(self, dim: int, hidden: int, activation: type[nn.Module] = nn.SiLU):
        super().__init__()
        self.squeeze, self.activation = nn.Linear(dim, hidden), activation()
        self.excite = nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        weights = self.excite(self.activation(self.squeeze(x.mean(dim=(1, 2), keepdim=True))))
        return x * weights.sigmoid()

    def field(self, height: int, width: int) -> Field:
        return Field.everything((height, width))
