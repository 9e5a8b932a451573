"""A small MobileNet (Howard et al., 2017, arXiv 1704.04861): a host for gates, of any size.

Every block is a 3×3 convolution a channel and a 1×1 convolution across channels, both normalised, both with a
relu. The 1×1 convolutions hold nearly all the weights: a gate that takes a whole block's place saves them
(`model.blocks[3] = gate`, where the block changes neither width nor size).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from regardant.backbone.resnet import convolution
from regardant.core.errors import require


class MobileNet(nn.Module):
    """Images [b, channels, h, w] → logits [b, classes]; a block halves the map where its stride is 2."""

    def __init__(
        self, *, classes: int, channels: int = 3, widths: Sequence[int] = (16, 32, 64, 64, 64),
        strides: Sequence[int] = (1, 2, 2, 1, 1),
    ):  # fmt: skip
        super().__init__()
        require(len(widths) >= 1, "widths is empty, but a network has at least its stem")
        require(
            len(strides) == len(widths),
            f"strides is {list(strides)}, but the stem and the blocks are {len(widths)}, each with a stride",
        )
        self.stem = nn.Sequential(convolution(channels, widths[0], stride=strides[0]), nn.ReLU())
        self.blocks = nn.Sequential(
            *(
                DepthSeparable(before, after, stride=stride)
                for (before, after), stride in zip(pairwise(widths), strides[1:])
            )
        )
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes"]:
        return self.head(self.blocks(self.stem(x)).mean(dim=(-2, -1)))


class DepthSeparable(nn.Sequential):
    """A convolution in every channel, then one across them."""

    def __init__(self, before: int, after: int, *, stride: int = 1):
        super().__init__(
            convolution(before, before, stride=stride, groups=before), nn.ReLU(),
            convolution(before, after, size=1), nn.ReLU(),
        )  # fmt: skip
