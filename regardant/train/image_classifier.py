"""A small classifier of images around any grid mixers: the same network, only the mixers differ."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from regardant.backbone.kit.convolution import BatchNorm, DepthwiseConvolution
from regardant.backbone.kit.feed_forward import FeedForward
from regardant.backbone.kit.head import PooledHead
from regardant.backbone.kit.residual import InTurn, Residual
from regardant.backbone.kit.stage import Block
from regardant.backbone.kit.stem import convolutions
from regardant.core.errors import require
from regardant.core.record import Record
from regardant.train.model import Factory


class ImageClassifier(nn.Module):
    """Images [b, channels, h, w] → logits [b, classes].

    Two convolutions bring the image to a map of a `stride`-th of its sides; every mixer stands in a block
    with an MLP, after a depthwise convolution that tells places apart where `local` says so.
    """

    def __init__(
        self, channels: int, classes: int, mixers: Sequence[Factory], *, dim: int, stride: int = 2,
        expansion: int = 2, local: bool = True,
    ):  # fmt: skip
        super().__init__()
        require(stride in (1, 2, 4), f"stride is {stride}, but the two convolutions make 1, 2 or 4 of it")
        steps = {1: (1, 1), 2: (2, 1), 4: (2, 2)}[stride]
        self.stem = convolutions((channels, dim // 2, dim), steps, norm=BatchNorm)
        self.blocks = InTurn(
            *(
                Block(
                    dim, make(), FeedForward(dim, expansion * dim),
                    before=Residual(DepthwiseConvolution(dim), dim) if local else None,
                )
                for make in mixers
            )
        )  # fmt: skip
        self.head = PooledHead(dim, classes, norm=nn.LayerNorm(dim), normed="before")

    def forward(
        self, images: Float[Tensor, "b k h w"], *, record: Record | None = None
    ) -> Float[Tensor, "b classes"]:
        x = self.stem(images.permute(0, 2, 3, 1))
        return self.head(self.blocks(x, record=record))
