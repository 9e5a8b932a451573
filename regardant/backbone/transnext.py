"""TransNeXt (Shi, 2023, arXiv 2311.17132): foveal attention, and feed-forwards gated by their neighbours.

Every layer is

    x ← x + attention(LN x)      x ← x + W₂ (GELU(DW₃ a) ∘ b),  (a, b) = W₁ LN x

with aggregated attention, whose pooled map is as large as the last stage's, and in the last stage attention
to the whole map. Patches overlap: a strided convolution and a norm begin a stage, and a norm ends it. Four
stages, strides 4 to 32.

The released code is made for one size of image; here lengths and offsets follow the map, and `trained` is the
side of the images that set their scale.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import ClassVar

import torch
from torch import nn

from regardant.backbone.kit.backbone import Backbone
from regardant.backbone.kit.feed_forward import GatedConvolution
from regardant.backbone.kit.head import PooledHead
from regardant.backbone.kit.initial import fan_out_normal, truncated_normal
from regardant.backbone.kit.official import Rule
from regardant.backbone.kit.stage import Block, Stage, drop_rates
from regardant.backbone.kit.stem import patches
from regardant.core.errors import require
from regardant.core.grid_position import Pair
from regardant.grid.transnext import AggregatedAttention, LengthScaledAttention

EXACT = partial(nn.LayerNorm, eps=1e-6)
"""The norm of blocks and stages; those of patches and of pooled maps have the usual ε."""


def _stage(match: re.Match) -> str:
    """Stages are counted from 1 there."""
    return f"stages.{int(match[1]) - 1}.{'layers.' if match[0].startswith('block') else 'entry.'}"


class TransNeXt(Backbone):
    """Stages of aggregated attention; of attention to the whole map where the reduction is 1."""

    variants: ClassVar = {
        "transnext_micro": dict(widths=(48, 96, 192, 384), depths=(2, 2, 15, 2), drop_path=0.15),
        "transnext_tiny": dict(widths=(72, 144, 288, 576), depths=(2, 2, 15, 2), drop_path=0.25),
        "transnext_small": dict(widths=(72, 144, 288, 576), depths=(5, 5, 22, 5), drop_path=0.45),
        "transnext_base": dict(widths=(96, 192, 384, 768), depths=(5, 5, 23, 5), drop_path=0.6),
        # Aggregated attention in the last stage, too.
        "transnext_micro_aaaa": dict(
            widths=(48, 96, 192, 384), depths=(2, 2, 15, 2), reductions=(16, 8, 4, 2), trained=256,
            drop_path=0.15,
        ),
    }  # fmt: skip
    small = (
        dict(widths=(8, 12), depths=(1, 1), reductions=(2, 1), expansions=(3, 2), head_dim=4, classes=3,
             trained=32),
        dict(widths=(4, 8, 8), depths=(1, 2, 1), reductions=(4, 2, 2), expansions=(2, 2, 2), head_dim=4,
             classes=2, window=5, pool=2, image_channels=1),
    )  # fmt: skip
    official = (
        Rule(r"^patch_embed1\.proj\.", "stem.0."),
        Rule(r"^patch_embed1\.norm\.", "stem.1."),
        Rule(r"^(?:patch_embed|block)(\d+)\.", _stage),
        Rule(r"\.entry\.proj\.", ".entry.0."),
        Rule(r"\.entry\.norm\.", ".entry.1."),
        Rule(r"^norm(\d+)\.", lambda match: f"stages.{int(match[1]) - 1}.ending."),
        Rule(r"\.norm1\.", ".mix.norm."),
        Rule(r"\.attn\.(q|kv|qkv)\.", r".mix.branch.to_\1."),
        Rule(r"\.attn\.proj\.", ".mix.branch.to_out."),
        Rule(r"\.attn\.sr\.", ".mix.branch.to_pool."),
        Rule(r"\.attn\.norm\.", ".mix.branch.pool_norm."),
        Rule(r"\.attn\.query_embedding$", ".mix.branch.scale.embedding"),
        Rule(r"\.attn\.temperature$", ".mix.branch.scale.temperature"),
        # Offsets there are query minus key.
        Rule(r"\.attn\.cpb_fc1\.weight$", ".mix.branch.position.mlp.0.weight", change=torch.neg),
        Rule(r"\.attn\.cpb_fc1\.bias$", ".mix.branch.position.mlp.0.bias"),
        Rule(r"\.attn\.cpb_fc2\.", ".mix.branch.position.mlp.2."),
        Rule(r"\.attn\.relative_pos_bias_local$", ".mix.branch.near_bias"),
        Rule(r"\.attn\.learnable_tokens$", ".mix.branch.tokens"),
        Rule(r"\.attn\.learnable_bias$", ".mix.branch.token_bias"),
        Rule(r"\.norm2\.", ".feed.norm."),
        Rule(r"\.mlp\.fc1\.", ".feed.branch.widen."),
        Rule(r"\.mlp\.dwconv\.dwconv\.", ".feed.branch.convolution."),
        Rule(r"\.mlp\.fc2\.", ".feed.branch.narrow."),
        Rule(r"^head\.", "head.classify."),
    )

    def __init__(
        self, *, widths: Sequence[int], depths: Sequence[int], classes: int = 1000, head_dim: int = 24,
        window: int = 3, reductions: Sequence[int] = (8, 4, 2, 1), pool: Pair | None = None,
        trained: int = 224, expansions: Sequence[int] = (8, 8, 4, 4), drop_path: float = 0.15,
        features_only: bool = False, image_channels: int = 3,
    ):  # fmt: skip
        strides = [4 * 2**stage for stage in range(len(widths))]
        super().__init__(
            strides=strides, channels=widths, classes=classes, features_only=features_only,
            image_channels=image_channels,
        )  # fmt: skip
        require(
            len(widths) == len(depths) == len(reductions) == len(expansions),
            f"there are {len(widths)} widths, {len(depths)} depths, {len(reductions)} reductions and "
            f"{len(expansions)} expansions, but each stage has one of each",
        )
        self.stem = patches(image_channels, widths[0], size=4, kernel=7)
        entries = [None, *(patches(before, after, size=2, kernel=3) for before, after in pairwise(widths))]

        def block(width: int, reduction: int, expansion: int, side: int, rate: float) -> Block:
            require(width % head_dim == 0, f"head_dim is {head_dim}, which does not divide width={width}")
            heads = width // head_dim
            if reduction == 1:
                mixer: nn.Module = LengthScaledAttention(width, heads, trained=side)
            else:
                mixer = AggregatedAttention(
                    width, heads, window=window, trained=side, pool=pool,
                    reduction=reduction if pool is None else None,
                )  # fmt: skip
            # Two thirds: a gated layer of three matrices is then as large as a plain one of two.
            gated = GatedConvolution(width, 2 * expansion * width // 3)
            return Block(width, mixer, gated, norm=EXACT, drop_path=rate)

        sides = [trained // stride for stride in strides]
        self.stages = nn.ModuleList(
            Stage([block(*of_stage, rate) for rate in rates], entry=entry, ending=EXACT(of_stage[0]))
            for *of_stage, rates, entry in zip(
                widths, reductions, expansions, sides, drop_rates(drop_path, depths), entries
            )
        )
        if not features_only:
            self.head = PooledHead(widths[-1], classes)
        truncated_normal(self)
        fan_out_normal(self)
