"""DaViT (Ding et al., 2022, arXiv 2204.03645): windows among positions, then groups among channels, in turn.

Every layer, of either kind, is

    x ← x + DW₃(x)      x ← x + mixer(LN x)      x ← x + DW₃(x)      x ← x + MLP(LN x)

with plain attention in 7×7 windows (W) or channel group attention (C) for a mixer. The depthwise
convolutions are all that tells positions apart. A stage begins with a strided convolution; four stages,
strides 4 to 32.

The released code fills windows that stick out with zeros which attention then sees; here they are masked.
At the sizes of the paper (multiples of 32 · 7) nothing sticks out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from torch import nn

from regardant.backbone.kit.backbone import Backbone
from regardant.backbone.kit.convolution import DepthwiseConvolution
from regardant.backbone.kit.feed_forward import FeedForward
from regardant.backbone.kit.head import PooledHead
from regardant.backbone.kit.initial import truncated_normal
from regardant.backbone.kit.official import Rule
from regardant.backbone.kit.residual import Residual
from regardant.backbone.kit.stage import Block, Stage, drop_rates, make_layers
from regardant.backbone.kit.stem import patches
from regardant.core.grid_window import WindowAttention
from regardant.grid.davit import ChannelGroupAttention


def _layer(match: re.Match) -> str:
    """`main_blocks.2.1.0.` is the spatial half of unit 1 of stage 2."""
    stage, unit, half = (int(number) for number in match.groups())
    return f"stages.{stage}.layers.{2 * unit + half}."


def _relabelled(qkv: torch.Tensor) -> torch.Tensor:
    """Released: softmax(kᵀ v) q. Here: softmax(qᵀ k) v. So its k, v, q are our q, k, v."""
    q, k, v = qkv.chunk(3)
    return torch.cat([k, v, q])


class DaViT(Backbone):
    """Four stages of layers W (windows) and C (channel groups)."""

    variants: ClassVar = {
        "davit_tiny": dict(widths=(96, 192, 384, 768), heads=(3, 6, 12, 24), depths=(1, 1, 3, 1)),
        "davit_small": dict(widths=(96, 192, 384, 768), heads=(3, 6, 12, 24), depths=(1, 1, 9, 1)),
        "davit_base": dict(widths=(128, 256, 512, 1024), heads=(4, 8, 16, 32), depths=(1, 1, 9, 1)),
    }
    small = (
        dict(widths=(8, 16), heads=(2, 4), depths=(1, 1), classes=3, window=3),
        dict(widths=(8, 12, 16), heads=(1, 3, 2), depths=(1, 2, 1), classes=2, window=2, unit="CW",
             scale="tokens", image_channels=1),
    )  # fmt: skip
    official = (
        Rule(r"\.1\.attn\.qkv\.", ".1.attn.qkv.", change=_relabelled),
        Rule(r"^patch_embeds\.0\.proj\.", "stem.0."),
        Rule(r"^patch_embeds\.0\.norm\.", "stem.1."),
        Rule(r"^patch_embeds\.(\d+)\.norm\.", r"stages.\1.entry.0."),
        Rule(r"^patch_embeds\.(\d+)\.proj\.", r"stages.\1.entry.1."),
        Rule(r"^main_blocks\.(\d+)\.(\d+)\.(\d+)\.", _layer),
        Rule(r"\.cpe\.0\.proj\.", ".before.branch."),
        Rule(r"\.cpe\.1\.proj\.", ".between.branch."),
        Rule(r"\.norm1\.", ".mix.norm."),
        Rule(r"\.attn\.qkv\.", ".mix.branch.to_qkv."),
        Rule(r"\.attn\.proj\.", ".mix.branch.to_out."),
        Rule(r"\.norm2\.", ".feed.norm."),
        Rule(r"\.mlp\.fc1\.", ".feed.branch.widen."),
        Rule(r"\.mlp\.fc2\.", ".feed.branch.narrow."),
        Rule(r"^norms\.", "head.norm."),
        Rule(r"^head\.(weight|bias)$", r"head.classify.\1"),
    )

    def __init__(
        self, *, widths: Sequence[int], heads: Sequence[int], depths: Sequence[int], classes: int = 1000,
        window: int = 7, unit: str = "WC", scale: str = "dim", expansion: int = 4, drop_path: float = 0.1,
        features_only: bool = False, image_channels: int = 3,
    ):  # fmt: skip
        super().__init__(
            strides=[4 * 2**stage for stage in range(len(widths))], channels=widths, classes=classes,
            features_only=features_only, image_channels=image_channels,
        )  # fmt: skip
        self.stem = patches(image_channels, widths[0], size=4, kernel=7, padding=3)
        entries = [
            None,
            *(patches(before, after, size=2, norm_first=True) for before, after in pairwise(widths)),
        ]
        rates = drop_rates(drop_path, [len(unit) * depth for depth in depths])

        def layers(width: int, count: int, depth: int, rates: Sequence[float]) -> list[nn.Module]:
            def block(mixer: nn.Module, rate: float) -> Block:
                return Block(
                    width, mixer, FeedForward(width, expansion * width), drop_path=rate,
                    before=Residual(DepthwiseConvolution(width), width),
                    between=Residual(DepthwiseConvolution(width), width),
                )  # fmt: skip

            makers = {
                "W": lambda rate: block(WindowAttention(width, count, window=window), rate),
                "C": lambda rate: block(ChannelGroupAttention(width, count, scale=scale), rate),
            }
            return make_layers(unit * depth, makers, rates)

        self.stages = nn.ModuleList(
            Stage(layers(*of_stage), entry=entry)
            for *of_stage, entry in zip(widths, heads, depths, rates, entries, strict=True)
        )
        if not features_only:
            self.head = PooledHead(widths[-1], classes, norm=nn.LayerNorm(widths[-1]))
        truncated_normal(self)
