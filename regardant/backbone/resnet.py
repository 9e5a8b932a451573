"""A small residual network for images (He et al., 2016, arXiv 1512.03385): a host for gates, of any size.

Blocks of two 3×3 convolutions, normalised, with a skip that is a convolution where the shape changes. Behind
a block's last normalisation is where gates sit: `where="stages.*.*.second.1"`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from regardant.core.errors import require


class ResNet(nn.Module):
    """Images [b, channels, h, w] → logits [b, classes]; every stage but the first halves the map."""

    def __init__(
        self, *, classes: int, channels: int = 3, widths: Sequence[int] = (16, 32, 64),
        depths: Sequence[int] | None = None,
    ):  # fmt: skip
        super().__init__()
        depths = [1] * len(widths) if depths is None else depths
        require(len(widths) >= 1, "widths is empty, but a network has at least one stage")
        require(
            len(depths) == len(widths) and min(depths) >= 1,
            f"depths is {list(depths)}, but each of the {len(widths)} stages has at least 1 block",
        )
        self.stem = convolution(channels, widths[0])
        self.stages = nn.ModuleList()
        for index, ((before, after), depth) in enumerate(zip(pairwise([widths[0], *widths]), depths)):
            blocks = [Residual(before, after, stride=1 if index == 0 else 2)]
            blocks += [Residual(after, after) for _ in range(depth - 1)]
            self.stages.append(nn.Sequential(*blocks))
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes"]:
        x = self.stem(x).relu()
        for stage in self.stages:
            x = stage(x)
        return self.head(x.mean(dim=(-2, -1)))


class Residual(nn.Module):
    """relu(skip(x) + second(relu(first(x))))."""

    def __init__(self, before: int, after: int, *, stride: int = 1):
        super().__init__()
        self.first, self.second = convolution(before, after, stride=stride), convolution(after, after)
        same = before == after and stride == 1
        self.skip = nn.Identity() if same else convolution(before, after, size=1, stride=stride)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k i j"]:
        return (self.skip(x) + self.second(self.first(x).relu())).relu()


def convolution(before: int, after: int, *, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution and its batch normalisation."""
    conv = nn.Conv2d(before, after, size, stride=stride, padding=size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after))
