"""Backbones: images [b, channels, h, w] → logits [b, classes], or the map of every stage.

A backbone sets `stem`, `stages` and `head`; what it is made of sees maps with channels last. Its `variants`
are the paper's models by name, `small` are the ones that the contract suite tries, and `official` says
how the released weights are called here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regardant.backbone.kit.field import Field, field_of
from regardant.backbone.kit.named import NamedNetwork
from regardant.backbone.kit.residual import call
from regardant.core.checks import under_autocast
from regardant.core.errors import require
from regardant.core.network import Example
from regardant.core.record import Record


class Backbone(NamedNetwork):
    """Base of the backbones.

    `strides` and `channels` are those of the maps that `features_only=True` gives, one a stage, [b, c, h, w].
    A side of n pixels has ⌈n / stride⌉ positions. Images may have any size that is no smaller than the
    largest stride.
    """

    small: ClassVar[Sequence[Mapping[str, Any]]] = ()
    """Configurations that are small enough to be tried in tests, and cover the options."""

    def __init__(
        self, *, strides: Sequence[int], channels: Sequence[int], features_only: bool, image_channels: int,
        classes: int,
    ):  # fmt: skip
        super().__init__()
        require(image_channels >= 1, f"image_channels is {image_channels}, but an image has at least 1")
        require(features_only or classes >= 1, f"classes is {classes}, but there is at least 1")
        require(
            len(strides) == len(channels),
            f"there are {len(strides)} strides, but {len(channels)} widths of stages",
        )
        self.strides, self.channels = tuple(strides), tuple(channels)
        self.features_only, self.image_channels = features_only, image_channels
        self.stem: nn.Module = nn.Identity()
        self.stages: Sequence[nn.Module] = nn.ModuleList()
        self.head: nn.Module = nn.Identity()

    def forward(
        self, images: Float[Tensor, "b k h w"], *, record: Record | None = None
    ) -> Float[Tensor, "b classes"] | list[Float[Tensor, "b c i j"]]:
        return self._run(images, Record(noting=False) if record is None else record, plainly=False)

    def reference(self, images: Float[Tensor, "b k h w"]):
        return self._run(images, Record(), plainly=True)

    def _run(self, images: Tensor, record: Record, *, plainly: bool) -> Tensor | list[Tensor]:
        self.check_images(images)
        maps = list(self.maps(images, record=record, plainly=plainly))
        if self.features_only:
            return [each.permute(0, 3, 1, 2) for each in maps]
        return call(self.head, maps[-1], record=record, plainly=plainly)

    def maps(
        self, images: Float[Tensor, "b k h w"], *, record: Record, plainly: bool
    ) -> Iterator[Float[Tensor, "b i j c"]]:
        """The map of each stage, channels last."""
        x = images.permute(0, 2, 3, 1)
        x = call(self.stem, x, record=record, plainly=plainly)
        for stage in self.stages:
            x = call(stage, x, record=record, plainly=plainly)
            yield x

    def fields(self, height: int, width: int) -> list[Field]:
        """Which pixels each position of each stage's map hears of, for images of this size."""
        found, result = field_of(self.stem, height, width), []
        for stage in self.stages:
            found = found.then(field_of(stage, *found.after))
            result.append(found)
        return result

    def check_images(self, images: Tensor) -> None:
        weight, least = next(self.parameters()), max(self.strides)
        require(
            images.ndim == 4, f"images have shape {tuple(images.shape)}, but they are [b, channels, h, w]"
        )
        require(
            images.shape[1] == self.image_channels,
            f"images have {images.shape[1]} channels, but this backbone was made for {self.image_channels}",
        )
        require(
            min(images.shape[2:]) >= least,
            f"images are {images.shape[2]}×{images.shape[3]}, but with a stride of {least} they are at least "
            f"{least}×{least}",
        )
        if not under_autocast(images.device.type):
            require(
                images.dtype == weight.dtype,
                f"images are {images.dtype}, but this backbone's weights are {weight.dtype}",
            )

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Example]:
        for config in cls.small:
            for features_only in (False, True):
                stride = max(cls(**config, features_only=True).strides)
                channels = config.get("image_channels", 3)
                for height, width in ((33, 64), (stride, 2 * stride + 3), (32, 32)):
                    size = (2, channels, max(height, stride), max(width, stride))
                    images = torch.randn(size, generator=generator, dtype=torch.float64)
                    yield Example({**config, "features_only": features_only}, (images,))

    def wanted(self, name):
        return not (self.features_only and name.startswith("head."))
