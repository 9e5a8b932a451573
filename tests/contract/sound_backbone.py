"""A backbone that keeps every promise: small, local, with a norm to fold."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from regardant.backbone.kit.backbone import Backbone
from regardant.backbone.kit.convolution import BatchNorm, Convolution
from regardant.backbone.kit.head import PooledHead
from regardant.backbone.kit.official import Rule
from regardant.backbone.kit.residual import InTurn
from regardant.backbone.kit.stage import Stage
from regardant.grid.davit import ChannelGroupAttention


class Local(Backbone):
    """Two stages of convolutions, strides 2 and 6; the head alone sees everything."""

    variants: ClassVar = {"local_tiny": dict(width=8)}
    small = (dict(width=4, classes=3),)
    official = (Rule("^body", "stages"),)

    def __init__(self, *, width: int, classes: int = 1000, features_only=False, image_channels=3):
        super().__init__(
            strides=self.told_strides(), channels=self.told_channels(width), classes=classes,
            features_only=features_only, image_channels=image_channels,
        )  # fmt: skip
        self.stem = Convolution(image_channels, width, 3, stride=2)
        self.stages = nn.ModuleList(
            [
                Stage([self.layer(width)], ending=nn.LayerNorm(width)),
                Stage([self.layer(2 * width)], entry=Convolution(width, 2 * width, 3, stride=3)),
            ]
        )
        if not features_only:
            self.head = PooledHead(2 * width, classes)

    def layer(self, width: int) -> nn.Module:
        return InTurn(Convolution(width, width, 3, bias=False), BatchNorm(width), nn.GELU())

    def told_strides(self) -> tuple[int, ...]:
        return 2, 6

    def told_channels(self, width: int) -> tuple[int, ...]:
        return width, 2 * width


class Worded(Local):
    """The same with a mixer that sees the whole map."""

    def layer(self, width):
        return InTurn(ChannelGroupAttention(width, 2), Convolution(width, width, 1), BatchNorm(width))
