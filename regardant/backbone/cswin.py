"""CSWin Transformer (Dong et al., 2021, arXiv 2107.00652): stripes that widen with depth, then everything.

    x ← x + attention(LN x),    x ← x + MLP(LN x)

The attention is cross-shaped in the first stages (a map of 56, 28 and 14 positions a side has stripes of 1, 2
and 7) and sees everything in the last one, with one LePE for all heads. Stages begin with overlapping
convolutions and a norm; there are no other positions, no shifts and no masks at the sizes that the stripes
divide.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

from torch import nn

from regardant.backbone.kit.backbone import Backbone
from regardant.backbone.kit.feed_forward import FeedForward
from regardant.backbone.kit.head import PooledHead
from regardant.backbone.kit.initial import truncated_normal
from regardant.backbone.kit.official import Rule
from regardant.backbone.kit.stage import Block, Stage, drop_rates
from regardant.backbone.kit.stem import patches
from regardant.core.errors import require
from regardant.core.grid_attention import WholeMapAttention
from regardant.core.grid_position import ValueConvolution
from regardant.grid.cswin import CrossShapedAttention


def _layer(match: re.Match) -> str:
    return f"stages.{int(match[1]) - 1}.layers.{match[2]}."


def _entry(match: re.Match) -> str:
    """`merge1` stands before stage 2; its convolution and its norm are an entry's two parts."""
    return f"stages.{match[1]}.entry.{('conv', 'norm').index(match[2])}."


class CSWin(Backbone):
    """Stages of cross-shaped attention with the given widths of stripes; `None`: everything is seen."""

    variants: ClassVar = {
        "cswin_tiny": dict(width=64, depths=(1, 2, 21, 1), heads=(2, 4, 8, 16)),
        "cswin_small": dict(width=64, depths=(2, 4, 32, 2), heads=(2, 4, 8, 16)),
        "cswin_base": dict(width=96, depths=(2, 4, 32, 2), heads=(4, 8, 16, 32)),
        "cswin_large": dict(width=144, depths=(2, 4, 32, 2), heads=(6, 12, 24, 24)),
    }
    small = (
        dict(width=8, depths=(1, 1), heads=(2, 4), stripes=(1, None), classes=3),
        dict(width=8, depths=(1, 2, 1), heads=(2, 2, 1), stripes=(2, 3, None), classes=2, lepe=False,
             image_channels=1),
    )  # fmt: skip
    official = (
        Rule(r"^stage1_conv_embed\.0\.", "stem.0."),
        Rule(r"^stage1_conv_embed\.2\.", "stem.1."),
        Rule(r"^merge(\d)\.(conv|norm)\.", _entry),
        Rule(r"^stage(\d)\.(\d+)\.", _layer),
        Rule(r"\.norm1\.", ".mix.norm."),
        Rule(r"\.qkv\.", ".mix.branch.to_qkv."),
        Rule(r"\.proj\.", ".mix.branch.to_out."),
        Rule(r"\.attns\.(\d)\.get_v\.", r".mix.branch.positions.\1.convolution."),
        Rule(r"\.norm2\.", ".feed.norm."),
        Rule(r"\.mlp\.fc1\.", ".feed.branch.widen."),
        Rule(r"\.mlp\.fc2\.", ".feed.branch.narrow."),
        Rule(r"^norm\.", "head.norm."),
        Rule(r"^head\.(weight|bias)$", r"head.classify.\1"),
    )

    def __init__(
        self, *, width: int, depths: Sequence[int], heads: Sequence[int], classes: int = 1000,
        stripes: Sequence[int | None] = (1, 2, 7, None), lepe: bool = True, expansion: int = 4,
        drop_path: float = 0.2, features_only: bool = False, image_channels: int = 3,
    ):  # fmt: skip
        widths = [width * 2**stage for stage in range(len(depths))]
        super().__init__(
            strides=[4 * 2**stage for stage in range(len(depths))], channels=widths, classes=classes,
            features_only=features_only, image_channels=image_channels,
        )  # fmt: skip
        require(
            len(stripes) == len(heads) == len(depths),
            f"there are {len(depths)} depths, {len(heads)} heads and {len(stripes)} stripes, but each stage "
            "has one of each",
        )
        self.stem = patches(image_channels, width, size=4, kernel=7, padding=2)
        entries = [None, *(patches(before, after, size=2, kernel=3) for before, after in pairwise(widths))]

        def block(width: int, count: int, stripe: int | None, rate: float) -> Block:
            if stripe is None:
                place = ValueConvolution(width) if lepe else None
                mixer = WholeMapAttention(width, count, position=place)
            else:
                require(count % 2 == 0, f"heads is {count}, but half of them look down and half across")
                mixer = CrossShapedAttention(width, heads_each=count // 2, stripe=stripe, lepe=lepe)
            return Block(width, mixer, FeedForward(width, expansion * width), drop_path=rate)

        self.stages = nn.ModuleList(
            Stage([block(*of_stage, rate) for rate in rates], entry=entry)
            for *of_stage, rates, entry in zip(widths, heads, stripes, drop_rates(drop_path, depths), entries)
        )
        if not features_only:
            self.head = PooledHead(widths[-1], classes, norm=nn.LayerNorm(widths[-1]), normed="before")
        truncated_normal(self)
