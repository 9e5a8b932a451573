"""FocalNet (Yang et al., 2022, arXiv 2203.11926): focal modulation in the pyramid of Swin.

Every layer is

    x ← x + modulation(LN x)      x ← x + MLP(LN x)

or, `normed="after"` as in the large models, x + γ LN(modulation(x)) and so on, with a small γ to begin with.
Four stages, strides 4 to 32; patches and merging are strided convolutions, which overlap in the large models.
SRF and LRF are two and three levels of contexts, the first of 3 × 3.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, Literal, get_args

from torch import nn

from regardant.backbone.kit.backbone import Backbone
from regardant.backbone.kit.feed_forward import FeedForward
from regardant.backbone.kit.head import PooledHead
from regardant.backbone.kit.initial import truncated_normal
from regardant.backbone.kit.official import Rule
from regardant.backbone.kit.residual import InTurn
from regardant.backbone.kit.stage import Block, Stage, drop_rates
from regardant.backbone.kit.stem import patches
from regardant.core.errors import unknown
from regardant.grid.focalnet import FocalModulation

Normed = Literal["before", "after"]
SMALL, DEEP = (2, 2, 6, 2), (2, 2, 18, 2)
LARGE = dict(depths=DEEP, normed="after", scale=1e-4, overlap=True, drop_path=0.5)


def _entry(match: re.Match) -> str:
    """What ends a stage there begins the next one here."""
    return f"stages.{int(match[1]) + 1}.entry.{0 if match[2] == 'proj' else 1}."


def _rules(mixer: str, mixed: str, feed: str, fed: str) -> tuple[Rule, ...]:
    """`mixed` and `fed` are the norms of the two branches."""
    return (
        Rule(r"^patch_embed\.proj\.", "stem.0."),
        Rule(r"^patch_embed\.norm\.", "stem.1."),
        Rule(r"^layers\.(\d+)\.downsample\.(proj|norm)\.", _entry),
        Rule(r"^layers\.(\d+)\.blocks\.", r"stages.\1.layers."),
        Rule(r"\.gamma_1$", ".mix.scale"),
        Rule(r"\.gamma_2$", ".feed.scale"),
        Rule(r"\.norm1\.", f".{mixed}."),
        Rule(r"\.norm2\.", f".{fed}."),
        Rule(r"\.modulation\.f\.", f".{mixer}.to_parts."),
        Rule(r"\.modulation\.h\.", f".{mixer}.to_modulator."),
        Rule(r"\.modulation\.proj\.", f".{mixer}.to_out."),
        Rule(r"\.modulation\.ln\.", f".{mixer}.norm."),
        Rule(r"\.modulation\.focal_layers\.(\d+)\.0\.", rf".{mixer}.contexts.\1."),
        Rule(r"\.mlp\.fc1\.", f".{feed}.widen."),
        Rule(r"\.mlp\.fc2\.", f".{feed}.narrow."),
        Rule(r"^norm\.", "head.norm."),
        Rule(r"^head\.(weight|bias)$", r"head.classify.\1"),
    )


class FocalNet(Backbone):
    """Stages of focal modulation; a stage is twice as wide as the one before."""

    variants: ClassVar = {
        "focalnet_tiny_srf": dict(width=96, depths=SMALL, levels=2, drop_path=0.2),
        "focalnet_tiny_lrf": dict(width=96, depths=SMALL, levels=3, drop_path=0.2),
        "focalnet_small_srf": dict(width=96, depths=DEEP, levels=2, drop_path=0.3),
        "focalnet_small_lrf": dict(width=96, depths=DEEP, levels=3, drop_path=0.3),
        "focalnet_base_srf": dict(width=128, depths=DEEP, levels=2, drop_path=0.5),
        "focalnet_base_lrf": dict(width=128, depths=DEEP, levels=3, drop_path=0.5),
        "focalnet_large_fl3": dict(LARGE, width=192, levels=3, window=5),
        "focalnet_large_fl4": dict(LARGE, width=192, levels=4, averaged=True),
        "focalnet_xlarge_fl3": dict(LARGE, width=256, levels=3, window=5),
        "focalnet_xlarge_fl4": dict(LARGE, width=256, levels=4),
        "focalnet_huge_fl3": dict(LARGE, width=352, levels=3, normed_modulation=True),
        "focalnet_huge_fl4": dict(LARGE, width=352, levels=4, normed_modulation=True),
    }
    small = (
        dict(width=8, depths=(1, 1), levels=2, classes=3, expansion=2),
        dict(width=4, depths=(1, 2, 1), levels=1, window=5, classes=2, expansion=2, normed="after", scale=0.5,
             overlap=True, averaged=True, normed_modulation=True, image_channels=1),
    )  # fmt: skip
    official = _rules("mix.branch", "mix.norm", "feed.branch", "feed.norm")

    def __init__(
        self, *, width: int, depths: Sequence[int], levels: int = 2, window: int = 3, classes: int = 1000,
        normed: Normed = "before", scale: float | None = None, overlap: bool = False, averaged: bool = False,
        normed_modulation: bool = False, expansion: int = 4, drop_path: float = 0.2,
        features_only: bool = False, image_channels: int = 3,
    ):  # fmt: skip
        widths = [width * 2**stage for stage in range(len(depths))]
        super().__init__(
            strides=[4 * 2**stage for stage in range(len(depths))], channels=widths, classes=classes,
            features_only=features_only, image_channels=image_channels,
        )  # fmt: skip
        if normed not in get_args(Normed):
            raise unknown("normed", normed, get_args(Normed))
        if normed == "after":
            self.official = _rules("mix.branch.0", "mix.branch.1", "feed.branch.0", "feed.branch.1")
        wide = (7, 2, 3) if overlap else (4, 0, 2)
        self.stem = patches(image_channels, width, size=4, kernel=wide[0], padding=wide[1])
        entries = [
            None,
            *(patches(before, after, size=2, kernel=wide[2]) for before, after in pairwise(widths)),
        ]

        def block(width: int, rate: float) -> Block:
            mixer: nn.Module = FocalModulation(
                width, levels=levels, window=window, averaged=averaged, normed=normed_modulation
            )
            feed: nn.Module = FeedForward(width, expansion * width)
            if normed == "before":
                return Block(width, mixer, feed, drop_path=rate, scale=scale)
            mixer, feed = (InTurn(part, nn.LayerNorm(width)) for part in (mixer, feed))
            return Block(width, mixer, feed, norm=lambda dim: nn.Identity(), drop_path=rate, scale=scale)

        self.stages = nn.ModuleList(
            Stage([block(width, rate) for rate in rates], entry=entry)
            for width, rates, entry in zip(widths, drop_rates(drop_path, depths), entries)
        )
        if not features_only:
            self.head = PooledHead(widths[-1], classes, norm=nn.LayerNorm(widths[-1]), normed="before")
        truncated_normal(self)
