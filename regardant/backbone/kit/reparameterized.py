"""Blocks that are trained in more parts than they run in: batch norms and parallel branches, folded.

The statistics are the running ones, so that what is folded is what runs in eval mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

from regardant.backbone.kit.convolution import BatchNorm, Convolution, absorbed
from regardant.backbone.kit.field import Field
from regardant.backbone.kit.residual import InTurn
from regardant.core.errors import require
from regardant.core.product import listened_to


class ParallelConvolutions(nn.Module):
    """The sum of convolutions of different kernels, each with a batch norm: one convolution when fused.

    All have the stride, the groups and the middle of the largest. `identity` adds a batch norm of x itself.
    """

    def __init__(
        self, before: int, after: int, kernels: Sequence[int], *, stride: int = 1, groups: int = 1,
        identity: bool = False,
    ):  # fmt: skip
        super().__init__()
        require(
            all(kernel % 2 == 1 for kernel in kernels),
            f"kernels are {tuple(kernels)}, but only odd ones have a middle to share",
        )
        require(
            not identity or (before == after and stride == 1),
            "identity is True, but the branch changes the shape of x",
        )
        self.branches = nn.ModuleList(
            InTurn(
                Convolution(before, after, kernel, stride=stride, groups=groups, bias=False), BatchNorm(after)
            )
            for kernel in kernels
        )
        self._widest = kernels.index(max(kernels))
        self.identity = BatchNorm(after) if identity else None

    @property
    def widest(self) -> Convolution:
        return self.branches[self._widest][0]

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b i j d"]:
        if not (self.training or listened_to(self)):
            return self.widest.convolve(x, *self.together())
        return self.reference(x)

    def reference(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b i j d"]:
        parts = [branch(x, plainly=True) for branch in self.branches]
        return reduce(add, parts if self.identity is None else [*parts, self.identity(x)])

    def field(self, height: int, width: int) -> Field:
        return self.widest.field(height, width)

    def together(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the one convolution that does the same in eval mode."""
        widest = self.widest
        parts = [absorbed(*branch) for branch in self.branches]
        if self.identity is not None:
            parts.append(absorbed(_itself(widest), self.identity))
        side = widest.kernel_size[0]
        weights = [pad(weight, ((side - weight.shape[-1]) // 2,) * 4) for weight, _ in parts]
        return reduce(add, weights), reduce(add, [bias for _, bias in parts])

    def fused(self) -> Convolution:
        return _like(self.widest, *self.together())


def _itself(like: Convolution) -> Convolution:
    """The 1×1 convolution that leaves x as it is."""
    width = like.out_channels
    same = Convolution(width, width, 1, groups=like.groups, bias=False).to(like.weight)
    within = width // like.groups
    with torch.no_grad():
        same.weight.copy_(torch.eye(within).repeat(like.groups, 1)[..., None, None])
    return same


@torch.no_grad()
def _like(convolution: Convolution, weight: Tensor, bias: Tensor) -> Convolution:
    """The same convolution with other parameters."""
    one = Convolution(
        convolution.in_channels, convolution.out_channels, convolution.kernel_size[0],
        stride=convolution.stride[0], padding=convolution.beyond, groups=convolution.groups,
    ).to(weight)  # fmt: skip
    one.weight.copy_(weight)
    one.bias.copy_(bias)
    return one.train(convolution.training)


def fold(convolution: Convolution, norm: BatchNorm) -> Convolution:
    """A convolution that does what this one and the batch norm behind it do in eval mode."""
    return _like(convolution, *absorbed(convolution, norm))


def fuse(network: nn.Module) -> None:
    """Put every part that can be folded into one convolution in that convolution's form, in place."""
    for name, child in list(network.named_children()):
        if hasattr(child, "fused"):
            setattr(network, name, child.fused())
            continue
        fuse(child)
    if isinstance(network, InTurn):
        for at in range(len(network) - 1):
            first, second = network[at], network[at + 1]
            if isinstance(first, Convolution) and isinstance(second, BatchNorm):
                network[at], network[at + 1] = fold(first, second), nn.Identity()
