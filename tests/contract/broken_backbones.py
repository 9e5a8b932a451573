"""Backbones that break one promise each."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from regardant.backbone.kit.convolution import BatchNorm, Convolution
from regardant.backbone.kit.field import Field
from tests.contract.sound_backbone import Local


class TellsAnotherStride(Local):
    """Strides 2 and 6, said to be 2 and 4."""

    def told_strides(self):
        return 2, 4


class TellsOtherChannels(Local):
    """Says a width of its stages that they do not have."""

    def told_channels(self, width):
        return width, width


class CutsTheBorder(Local):
    """Drops the last row of maps of odd height."""

    def maps(self, images, *, record, plainly):
        for each in super().maps(images, record=record, plainly=plainly):
            yield each[:, : max(1, each.shape[1] // 2 * 2)]


class TakesAnything(Local):
    """Takes images that are smaller than its stride."""

    def check_images(self, images):
        if min(images.shape[2:]) >= max(self.strides):
            super().check_images(images)


class SeesMore(Local):
    """Adds the mean of the whole image to its first map, which its field does not say."""

    def maps(self, images, *, record, plainly):
        first, second = super().maps(images, record=record, plainly=plainly)
        yield first + images.mean(dim=(1, 2, 3))[:, None, None, None]
        yield second


class SaysThatItSeesAll(Local):
    """A field of everything, where convolutions are all there is."""

    def fields(self, height, width):
        return [Field.everything(each.before, each.after) for each in super().fields(height, width)]


class VariantOfAnother(Local):
    """A variant with an argument that the constructor does not take."""

    variants: ClassVar = {"local_tiny": dict(width=8, depth=3)}


class LeavesTheStatistics(nn.Module):
    """A convolution and its norm, folded as if the norm had no statistics."""

    def __init__(self, width: int):
        super().__init__()
        self.convolution, self.norm = Convolution(width, width, 3), BatchNorm(width)

    def forward(self, x):
        return self.norm(self.convolution(x))

    def field(self, height, width):
        return self.convolution.field(height, width)

    @torch.no_grad()
    def fused(self):
        self.convolution.weight *= self.norm.weight[:, None, None, None]
        return self.convolution


class FusesToSomethingElse(Local):
    """Its layers fold into something else."""

    def layer(self, width):
        return LeavesTheStatistics(width)


class LoadsAnything(Local):
    """Takes whatever fits out of a checkpoint, and says nothing of the rest."""

    def load_official(self, state):
        self.load_state_dict(state, strict=False)
        return self
