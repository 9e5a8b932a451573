"""A plain pyramid around any grid mixer: the backbone in which only the mixer differs.

    create("pyramid_tiny", classes=10, mixer="axial")
    create("pyramid_tiny", mixer=("neighborhood", "axial"), gate="eca")         # in turn
    create("pyramid_tiny", mixer="neighborhood", options=dict(kernel=5, dilation=2))

Of the form that most hierarchical vision transformers have: two strided convolutions, then stages of blocks

    x ← x + DW₃(x)      x ← x + gate(mixer(LN x))      x ← x + MLP(LN x)

with a strided convolution and a norm before each stage but the first, and the mean of the last map to the
head. The depthwise convolution tells places apart for mixers that cannot; `local=False` leaves it out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar

from torch import nn

from regardant.backbone.kit.backbone import Backbone
from regardant.backbone.kit.convolution import DepthwiseConvolution
from regardant.backbone.kit.feed_forward import FeedForward
from regardant.backbone.kit.head import PooledHead
from regardant.backbone.kit.initial import truncated_normal
from regardant.backbone.kit.mixers import Maker, around, maker
from regardant.backbone.kit.residual import Residual
from regardant.backbone.kit.stage import Stage, drop_rates
from regardant.backbone.kit.stem import convolutions, patches
from regardant.core.errors import require
from regardant.gate.channels_last import ChannelsLast
from regardant.gate.insertion import named


class Pyramid(Backbone):
    """Stages around one mixer, or several in turn: names of grid mixers, or makers (dim, heads) → mixer.

    `options` go to every mixer. `gate` is the name of a gate that stands behind each.
    """

    variants: ClassVar = {
        "pyramid_tiny": dict(widths=(32, 64, 128, 256), heads=(1, 2, 4, 8), depths=(1, 1, 3, 1)),
        "pyramid_small": dict(widths=(64, 128, 256, 512), heads=(2, 4, 8, 16), depths=(2, 2, 6, 2)),
    }
    small = (
        dict(widths=(8, 12), heads=(2, 3), depths=(2, 1), classes=3, mixer=("axial", "neighborhood")),
        dict(widths=(8, 8), heads=(1, 2), depths=(1, 1), classes=2, mixer="axial", gate="eca",
             options=dict(combine="sum"), local=False, image_channels=1),
        dict(widths=(8,), heads=(2,), depths=(2,), classes=2, mixer="neighborhood", local=False,
             options=dict(kernel=3, dilation=2, relative_bias=True)),
        dict(widths=(8, 16), heads=(1, 2), depths=(1, 1), classes=2, mixer="criss-cross",
             options=dict(recurrence=1, reduction=2)),
    )  # fmt: skip

    def __init__(
        self, *, widths: Sequence[int], heads: Sequence[int], depths: Sequence[int],
        mixer: str | Maker | Sequence[str | Maker] = "window",
        options: Mapping[str, Any] | None = None, gate: str | None = None, local: bool = True,
        expansion: int = 4, classes: int = 1000, drop_path: float = 0.0, features_only: bool = False,
        image_channels: int = 3,
    ):  # fmt: skip
        super().__init__(
            strides=[4 * 2**stage for stage in range(len(widths))], channels=widths, classes=classes,
            features_only=features_only, image_channels=image_channels,
        )  # fmt: skip
        several = [mixer] if isinstance(mixer, str) or callable(mixer) else list(mixer)
        require(len(several) >= 1, "mixer is empty, but a layer has one")
        makers = [maker(each, **(options or {})) for each in several]
        gates = None if gate is None else named(gate)
        self.stem = convolutions((image_channels, widths[0] // 2, widths[0]), (2, 2))
        merge = partial(patches, size=2, kernel=3)
        entries = [None, *(merge(before, after) for before, after in pairwise(widths))]

        def layers(width: int, count: int, rates: Sequence[float]) -> list[nn.Module]:
            return [
                around(
                    makers[index % len(makers)](width, count), width, drop_path=rate,
                    feed_forward=FeedForward(width, expansion * width),
                    before=Residual(DepthwiseConvolution(width), width) if local else None,
                    gate=None if gates is None else ChannelsLast(gates(width)),
                )
                for index, rate in enumerate(rates)
            ]  # fmt: skip

        self.stages = nn.ModuleList(
            Stage(layers(*of_stage), entry=entry)
            for *of_stage, entry in zip(widths, heads, drop_rates(drop_path, depths), entries, strict=True)
        )
        if not features_only:
            self.head = PooledHead(widths[-1], classes, norm=nn.LayerNorm(widths[-1]), normed="before")
        truncated_normal(self)
