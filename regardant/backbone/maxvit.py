"""MaxViT (Tu et al., 2022, arXiv 2204.01697): convolution, attention in windows, attention on grids.

A layer is

    x ← shortcut(x) + W₂ SE(φ BN DW₃(φ BN W₁(BN x)))      a mobile convolution, four times as wide inside
    x ← x + block attention(LN x),   x ← x + MLP(LN x)
    x ← x + grid attention(LN x),    x ← x + MLP(LN x)

Every stage halves the map in the depthwise convolution of its first layer, whose shortcut then is the mean of
2×2 and a projection. The head norms the mean, and has a layer with tanh before the classes.

As the released TensorFlow code has it, down to its padding, the tanh approximation of GELU and the norms' ε;
checked against timm's port with the same weights. `axes` says which attentions follow a convolution: B
(block) and G (grid). Windows keep their size at any size of the image, where the paper grows them with it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import ClassVar

from torch import nn

from regardant.backbone.kit.activation import TanhGELU
from regardant.backbone.kit.backbone import Backbone
from regardant.backbone.kit.convolution import (
    BatchNorm,
    DepthwiseConvolution,
    Pooling,
    SqueezeExcite,
)
from regardant.backbone.kit.feed_forward import FeedForward
from regardant.backbone.kit.head import PooledHead
from regardant.backbone.kit.initial import truncated_normal
from regardant.backbone.kit.official import Rule
from regardant.backbone.kit.residual import InTurn, Residual
from regardant.backbone.kit.stage import Block, Stage, drop_rates, make_layers
from regardant.backbone.kit.stem import convolutions
from regardant.core.errors import require
from regardant.grid.maxvit import BlockAttention, GridAttention

Batch = partial(BatchNorm, eps=1e-3)


def mobile_convolution(before: int, after: int, *, stride: int, drop_path: float) -> Residual:
    """Widen, look around, weigh the channels, narrow."""
    hidden = 4 * after
    branch = InTurn(
        nn.Linear(before, hidden, bias=False), Batch(hidden), TanhGELU(),
        DepthwiseConvolution(hidden, 3, stride=stride, padding="same", bias=False), Batch(hidden),
        TanhGELU(),
        SqueezeExcite(hidden, after // 4), nn.Linear(hidden, after),
    )  # fmt: skip
    shortcut = InTurn(
        Pooling("mean", stride, stride=stride) if stride > 1 else nn.Identity(),
        nn.Linear(before, after) if before != after else nn.Identity(),
    )
    return Residual(branch, after, norm=Batch(before), drop_path=drop_path, shortcut=shortcut)


_PARTS = {
    "conv1_1x1": "branch.0", "norm1": "branch.1", "conv2_kxk": "branch.3", "norm2": "branch.4",
    "se.fc1": "branch.6.squeeze", "se.fc2": "branch.6.excite", "conv3_1x1": "branch.7", "pre_norm": "norm",
    "shortcut.expand": "shortcut.1",
}  # fmt: skip
_ATTENTION = {
    "norm1": "mix.norm", "attn.qkv": "mix.branch.to_qkv", "attn.proj": "mix.branch.to_out",
    "attn.rel_pos.relative_position_bias_table": "mix.branch.positions.0.table", "norm2": "feed.norm",
    "mlp.fc1": "feed.branch.widen", "mlp.fc2": "feed.branch.narrow",
}  # fmt: skip
_HEAD = {"norm": "norm", "pre_logits.fc": "hidden.0", "fc": "classify"}


def _layer(match: re.Match) -> str:
    stage, layer, which, part = match.groups()
    place = {"conv": 0, "attn_block": 1, "attn_grid": 2}[which]
    names = _PARTS if place == 0 else _ATTENTION
    # A bias table is a parameter by itself; all others are the parameters of a module.
    found = max((known for known in names if f"{part}.".startswith(f"{known}.")), key=len, default=None)
    renamed = part if found is None else names[found] + part[len(found) :]
    return f"stages.{stage}.layers.{layer}.{place}.{renamed}"


class MaxViT(Backbone):
    """Four stages of mobile convolutions, each followed by the attentions that `axes` names."""

    variants: ClassVar = {
        "maxvit_tiny": dict(widths=(64, 128, 256, 512), depths=(2, 2, 5, 2), stem=64),
        "maxvit_small": dict(widths=(96, 192, 384, 768), depths=(2, 2, 5, 2), stem=64),
        "maxvit_base": dict(widths=(96, 192, 384, 768), depths=(2, 6, 14, 2), stem=64),
        "maxvit_large": dict(widths=(128, 256, 512, 1024), depths=(2, 6, 14, 2), stem=128),
        "maxvit_xlarge": dict(widths=(192, 384, 768, 1536), depths=(2, 6, 14, 2), stem=192),
    }
    small = (
        dict(widths=(8, 16), depths=(1, 1), stem=4, head_dim=4, window=3, classes=3),
        dict(widths=(8, 8, 16), depths=(1, 2, 1), stem=8, head_dim=8, window=2, classes=2, axes="GB",
             image_channels=1),
    )  # fmt: skip
    official = (
        Rule(r"(height|width)_lookup$"),
        Rule(r"^stem\.conv1\.", "stem.0."),
        Rule(r"^stem\.norm1\.", "stem.1."),
        Rule(r"^stem\.conv2\.", "stem.3."),
        Rule(r"^stages\.(\d+)\.blocks\.(\d+)\.(conv|attn_block|attn_grid)\.(.*)$", _layer),
        Rule(r"^head\.(norm|pre_logits\.fc|fc)\.", lambda match: f"head.{_HEAD[match[1]]}."),
    )

    def __init__(
        self, *, widths: Sequence[int], depths: Sequence[int], stem: int, classes: int = 1000,
        window: int = 7, axes: str = "BG", head_dim: int = 32, expansion: int = 4, drop_path: float = 0.2,
        features_only: bool = False, image_channels: int = 3,
    ):  # fmt: skip
        super().__init__(
            strides=[4 * 2**stage for stage in range(len(widths))], channels=widths, classes=classes,
            features_only=features_only, image_channels=image_channels,
        )  # fmt: skip
        for width in widths:
            require(width % head_dim == 0, f"head_dim={head_dim} does not divide a width of {width}")
        self.stem = convolutions(
            (image_channels, stem, stem), (2, 1), norm=Batch, bias=True, activation=TanhGELU,
            last_norm=False, padding="same",
        )  # fmt: skip

        def attention(letter: str, width: int, rate: float) -> Block:
            makers = {
                "B": lambda _: BlockAttention(width, width // head_dim, window=window),
                "G": lambda _: GridAttention(width, width // head_dim, cells=window),
            }
            (mixer,) = make_layers(letter, makers, (rate,))
            feed_forward = FeedForward(width, expansion * width, activation=TanhGELU())
            return Block(width, mixer, feed_forward, drop_path=rate)

        def layer(before: int, width: int, stride: int, rate: float) -> InTurn:
            first = mobile_convolution(before, width, stride=stride, drop_path=rate)
            return InTurn(first, *(attention(letter, width, rate) for letter in axes))

        self.stages = nn.ModuleList(
            Stage([
                layer(before if index == 0 else width, width, 2 if index == 0 else 1, rate)
                for index, rate in enumerate(rates)
            ])
            for before, width, rates in zip((stem, *widths), widths, drop_rates(drop_path, depths))
        )  # fmt: skip
        if not features_only:
            last = widths[-1]
            self.head = PooledHead(last, classes, norm=nn.LayerNorm(last), hidden=last)
            truncated_normal(self.head)
        for block in (part for part in self.stages.modules() if isinstance(part, Block)):
            truncated_normal(block)
