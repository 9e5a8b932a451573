"""HaloNet (Vaswani et al., 2021, arXiv 2103.12731): a ResNet with attention in haloed blocks for its 3×3s.

    x ← φ(shortcut(x) + BN W₂ φ BN attention(φ BN W₁ x))

The bottlenecks are 64, 128, 256 and 512 wide; values are r_v times as wide, and what leaves a block r_b
times. The first block of each stage but the first asks every second position only (a stride of 2), and its
shortcut is a strided projection. A stem of 7×7 with stride 2 and the largest of 3×3, and in the larger
models a last 1×1 layer of d_f channels. Parameters do not depend on the blocks' size but by their tables of
offsets.

The members H0 to H7 are the paper's; there is no official code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn

from regardant.backbone.kit.backbone import Backbone
from regardant.backbone.kit.convolution import BatchNorm, Convolution, Pooling
from regardant.backbone.kit.field import Field
from regardant.backbone.kit.head import PooledHead
from regardant.backbone.kit.residual import InTurn, Residual
from regardant.backbone.kit.stage import Stage, drop_rates
from regardant.core.errors import require
from regardant.core.grid_pattern import Halo
from regardant.grid.halonet import ReducingHaloAttention

WIDTHS, HEADS = (64, 128, 256, 512), (4, 8, 8, 8)


class Attending(nn.Module):
    """The layer in a network: what it sees, where it asks every `stride`-th position only."""

    def __init__(self, attention: ReducingHaloAttention):
        super().__init__()
        self.attention = attention

    def forward(self, x, *, record=None, plainly: bool = False):
        return self.attention.reference(x) if plainly else self.attention(x)

    def field(self, height: int, width: int) -> Field:
        layer = self.attention
        whole = Field.of_pattern(Halo(layer.block, layer.halo).on(height, width), (height, width))
        at = torch.arange(height * width).view(height, width)[:: layer.stride, :: layer.stride]
        return Field((height, width), tuple(at.shape), whole.relation[at.flatten()])


def _shape(block: int, halo: int, values: float, out: float, third: int, last: int | None) -> dict:
    return dict(block=block, halo=halo, values=values, out=out, depths=(3, 3, third, 3), last=last)


class HaloNet(Backbone):
    """`values` is the paper's r_v, `out` its r_b, `last` its d_f."""

    variants: ClassVar = {
        "halonet_h0": _shape(8, 3, 1.0, 0.5, 7, None),
        "halonet_h1": _shape(8, 3, 1.0, 1.0, 10, None),
        "halonet_h2": _shape(8, 3, 1.0, 1.25, 11, None),
        "halonet_h3": _shape(10, 3, 1.0, 1.5, 12, 1024),
        "halonet_h4": _shape(12, 2, 1.0, 3.0, 12, 1280),
        "halonet_h5": _shape(14, 2, 2.5, 2.0, 23, 1536),
        "halonet_h6": _shape(8, 4, 3.0, 2.75, 24, 1536),
        "halonet_h7": _shape(10, 3, 4.0, 3.5, 26, 2048),
    }
    small = (
        dict(depths=(1, 1), block=2, halo=1, widths=(8, 12), heads=(2, 2), classes=3),
        dict(depths=(2, 1), block=4, halo=2, values=2.0, out=1.5, widths=(8, 12), heads=(1, 2), last=32,
             stem=8, classes=7, image_channels=1),
    )  # fmt: skip

    def __init__(
        self, *, depths: Sequence[int], block: int = 8, halo: int = 3, values: float = 1.0,
        out: float = 1.0, last: int | None = None, widths: Sequence[int] = WIDTHS,
        heads: Sequence[int] = HEADS, stem: int = 64, classes: int = 1000, drop_path: float = 0.0,
        features_only: bool = False, image_channels: int = 3,
    ):  # fmt: skip
        leaving = [int(width * out) for width in widths]
        super().__init__(
            strides=[4 * 2**stage for stage in range(len(widths))], channels=leaving, classes=classes,
            features_only=features_only, image_channels=image_channels,
        )  # fmt: skip
        require(
            len(depths) == len(heads) == len(widths),
            f"there are {len(depths)} depths, {len(widths)} widths and {len(heads)} heads, but each stage "
            "has one of each",
        )
        self.stem = InTurn(
            Convolution(image_channels, stem, 7, stride=2, bias=False), BatchNorm(stem), nn.ReLU(),
            Pooling("largest", 3, stride=2),
        )  # fmt: skip

        def layer(before: int, width: int, after: int, count: int, stride: int, rate: float) -> InTurn:
            valued = int(width * values)
            attention = ReducingHaloAttention(
                width, count, block=block, halo=halo, value_dim=valued, stride=stride
            )
            branch = InTurn(
                Convolution(before, width, 1, bias=False), BatchNorm(width), nn.ReLU(),
                Attending(attention), BatchNorm(valued), nn.ReLU(),
                Convolution(valued, after, 1, bias=False), BatchNorm(after),
            )  # fmt: skip
            same = before == after and stride == 1
            shortcut = None if same else InTurn(
                Convolution(before, after, 1, stride=stride, bias=False), BatchNorm(after)
            )  # fmt: skip
            return InTurn(Residual(branch, after, shortcut=shortcut, drop_path=rate), nn.ReLU())

        stages = []
        for index, (before, width, after, count, rates) in enumerate(
            zip((stem, *leaving), widths, leaving, heads, drop_rates(drop_path, depths))
        ):
            layers = [
                layer(before if at == 0 else after, width, after, count, 2 if at == 0 < index else 1, rate)
                for at, rate in enumerate(rates)
            ]
            stages.append(Stage(layers))
        self.stages = nn.ModuleList(stages)
        if not features_only:
            widest = leaving[-1]
            widen = nn.Identity() if last is None else InTurn(
                Convolution(widest, last, 1, bias=False), BatchNorm(last), nn.ReLU()
            )  # fmt: skip
            self.head = InTurn(widen, PooledHead(last or widest, classes))
