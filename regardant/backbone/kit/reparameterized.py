"""Blocks that are trained in more parts than they run in: batch norms and parallel branches, folded.

    y = γ (W * x + b - μ) / σ + β   =   (γ W / σ) * x + γ (b - μ) / σ + β

The statistics are the running ones, so that what is folded is what runs in eval mode.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

from regardant.backbone.kit.convolution import BatchNorm, Convolution
from regardant.backbone.kit.field import Field
from regardant.backbone.kit.residual import InTurn
from regardant.core.errors import require


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
        self.identity = BatchNorm(after) if identity else None

    @property
    def widest(self) -> Convolution:
        return max((branch[0] for branch in self.branches), key=lambda each: each.kernel_size[0])

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b i j d"]:
        total = sum(branch(x) for branch in self.branches)
        return total if self.identity is None else total + self.identity(x)

    def field(self, height: int, width: int) -> Field:
        return self.widest.field(height, width)

    @torch.no_grad()
    def fused(self) -> Convolution:
        """One convolution that does the same in eval mode."""
        folded = [fold(*branch) for branch in self.branches]
        widest = max(folded, key=lambda each: each.kernel_size[0])
        side = widest.kernel_size[0]
        if self.identity is not None:
            folded.append(fold(_itself(widest), self.identity))
        for other in folded:
            if other is not widest:
                around = (side - other.kernel_size[0]) // 2
                widest.weight += pad(other.weight, (around,) * 4)
                widest.bias += other.bias
        return widest


def _itself(like: Convolution) -> Convolution:
    """The 1×1 convolution that leaves x as it is."""
    width = like.out_channels
    same = Convolution(width, width, 1, groups=like.groups, bias=False).to(like.weight)
    within = width // like.groups
    same.weight.copy_(torch.eye(within).repeat(like.groups, 1)[..., None, None])
    return same


@torch.no_grad()
def fold(convolution: Convolution, norm: nn.BatchNorm2d) -> Convolution:
    """A convolution that does what this one and the batch norm behind it do in eval mode."""
    one = Convolution(
        convolution.in_channels, convolution.out_channels, convolution.kernel_size[0],
        stride=convolution.stride[0], padding=convolution.beyond, groups=convolution.groups,
    ).to(convolution.weight)  # fmt: skip
    gain = norm.weight * (norm.running_var + norm.eps).rsqrt()
    before = 0 if convolution.bias is None else convolution.bias
    one.weight.copy_(convolution.weight * gain[:, None, None, None])
    one.bias.copy_((before - norm.running_mean) * gain + norm.bias)
    return one.train(convolution.training)


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
