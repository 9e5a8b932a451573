"""BiFormer (Zhu et al., 2023, arXiv 2303.08810): regions read the regions that they want most.

    x ← x + DW₃(x),    x ← x + attention(LN x),    x ← x + MLP(LN x)

The attention is bi-level routing with more and more regions read, and full in the last stage; maps of 56, 28,
14 and 7 positions a side have the same 7 × 7 regions. The stem is two strided convolutions, stages begin with
another, each with a batch norm; there are no other positions.

The released models differ from the paper in their last stage, and the variants are theirs, so that weights
fit: its queries, keys and values have no bias, its convolution is of the input in place of the values, and it
has 8 heads, however wide it is (the paper's have 32 channels).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import ClassVar

from torch import nn

from regardant.backbone.kit.backbone import Backbone
from regardant.backbone.kit.convolution import BatchNorm, DepthwiseConvolution
from regardant.backbone.kit.feed_forward import FeedForward
from regardant.backbone.kit.head import PooledHead
from regardant.backbone.kit.initial import truncated_normal
from regardant.backbone.kit.official import Rule
from regardant.backbone.kit.residual import Residual
from regardant.backbone.kit.stage import Block, Stage, drop_rates
from regardant.backbone.kit.stem import convolutions, patches
from regardant.core.errors import require
from regardant.grid.biformer import AttentionBesideConvolution, BiLevelRoutingAttention


class BiFormer(Backbone):
    """Stages in which every region reads as many others as `top` says; `None`: all is seen."""

    variants: ClassVar = {
        "biformer_tiny": dict(width=64, depths=(2, 2, 8, 2), heads=(2, 4, 8, 8), drop_path=0.1),
        "biformer_small": dict(width=64, depths=(4, 4, 18, 4), heads=(2, 4, 8, 8), drop_path=0.15),
        "biformer_base": dict(width=96, depths=(4, 4, 18, 4), heads=(3, 6, 12, 8), drop_path=0.4),
    }
    small = (
        dict(width=8, depths=(1, 1), heads=(2, 4), top=(2, None), regions=2, classes=3),
        dict(width=8, depths=(1, 2, 1), heads=(1, 2, 2), top=(1, 3, 1), regions=None, local=0, classes=2,
             image_channels=1),
    )  # fmt: skip
    exempt: ClassVar = {"reach": "which regions a position sees is decided by what is in them"}
    official = (
        Rule(r"^downsample_layers\.0\.", "stem."),
        Rule(r"^downsample_layers\.(\d)\.", r"stages.\1.entry."),
        Rule(r"^stages\.(\d)\.(\d+)\.", r"stages.\1.layers.\2."),
        Rule(r"\.pos_embed\.", ".before.branch."),
        Rule(r"\.norm1\.", ".mix.norm."),
        Rule(r"\.attn\.lepe\.", ".mix.branch.local.convolution."),
        Rule(r"\.attn\.qkv\.qkv\.", parts=[f".mix.branch.to_{part}." for part in "qkv"]),
        Rule(r"\.attn\.qkv\.", ".mix.branch.to_qkv."),
        Rule(r"\.attn\.(wo|proj)\.", ".mix.branch.to_out."),
        Rule(r"\.norm2\.", ".feed.norm."),
        Rule(r"\.mlp\.0\.", ".feed.branch.widen."),
        Rule(r"\.mlp\.3\.", ".feed.branch.narrow."),
        Rule(r"^norm\.", "head.norm."),
        Rule(r"^head\.(weight|bias)$", r"head.classify.\1"),
    )

    def __init__(
        self, *, width: int, depths: Sequence[int], heads: Sequence[int], classes: int = 1000,
        top: Sequence[int | None] = (1, 4, 16, None), regions: int | None = 7, local: int = 5,
        expansion: int = 3, drop_path: float = 0.1, features_only: bool = False, image_channels: int = 3,
    ):  # fmt: skip
        widths = [width * 2**stage for stage in range(len(depths))]
        super().__init__(
            strides=[4 * 2**stage for stage in range(len(depths))], channels=widths, classes=classes,
            features_only=features_only, image_channels=image_channels,
        )  # fmt: skip
        require(
            len(top) == len(heads) == len(depths),
            f"there are {len(depths)} depths, {len(heads)} heads and {len(top)} in top, but each stage has "
            "one of each",
        )
        self.stem = convolutions((image_channels, width // 2, width), (2, 2), bias=True)
        entries = [
            None,
            *(patches(*widths, size=2, kernel=3, norm=BatchNorm) for widths in pairwise(widths)),
        ]

        def block(width: int, count: int, top: int | None, rate: float) -> Block:
            if top is None:
                mixer = AttentionBesideConvolution(width, count, local=local)
            else:
                mixer = BiLevelRoutingAttention(width, count, regions=regions, top=top, local=local)
            return Block(
                width, mixer, FeedForward(width, expansion * width), drop_path=rate,
                before=Residual(DepthwiseConvolution(width), width), norm=partial(nn.LayerNorm, eps=1e-6),
            )  # fmt: skip

        self.stages = nn.ModuleList(
            Stage([block(*of_stage, rate) for rate in rates], entry=entry)
            for *of_stage, rates, entry in zip(widths, heads, top, drop_rates(drop_path, depths), entries)
        )
        if not features_only:
            self.head = PooledHead(widths[-1], classes, norm=BatchNorm(widths[-1]), normed="before")
        truncated_normal(self)
