"""SpectFormer (Patro et al., 2023, arXiv 2304.06446): layers of spectral gating first, then of attention.

`SpectFormer` has one size throughout, patches of 16, learned positions, the mean of all positions for a head;
its layers are a string, S (spectral gate) and A (attention). Of the released models the first four are S:

    S:  x ← x + MLP(LN(gate(LN x)))                        one residual around both (`residual="joint"`)
    A:  x ← x + attention(LN x)     x ← x + MLP(LN x)

`HierarchicalSpectFormer` has four stages, spectral the first two, attention the others, with two residuals in
either kind, a depthwise convolution in every feed-forward, and a layer of class attention before the head.
Its head is that of token labelling, as released: half of every class's largest logit over positions is added.
The mixing of tokens in training and the dense labels are no part of the model.

The gates belong to maps of a size (`image` is that of the images), and are interpolated for others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import ClassVar, Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regardant.backbone.kit.backbone import Backbone
from regardant.backbone.kit.convolution import BatchNorm, Convolution
from regardant.backbone.kit.feed_forward import DepthwiseFeedForward, FeedForward
from regardant.backbone.kit.head import PooledHead
from regardant.backbone.kit.initial import truncated_normal
from regardant.backbone.kit.official import Rule, joined
from regardant.backbone.kit.residual import InTurn, Residual
from regardant.backbone.kit.stage import Block, Stage, drop_rates, make_layers
from regardant.backbone.kit.stem import patches
from regardant.backbone.kit.tokens import TokenBackbone
from regardant.core.errors import require, unknown
from regardant.core.few_queries import hear
from regardant.core.grid_attention import WholeMapAttention
from regardant.core.grid_position import LearnedMap
from regardant.grid.spectformer import SpectralGate

RESIDUALS = ("joint", "split")


def norm(dim: int) -> nn.LayerNorm:
    return nn.LayerNorm(dim, eps=1e-6)


class SpectFormer(TokenBackbone):
    """Layers S and A at one size; `residual` is the layout of the spectral ones."""

    variants: ClassVar = {
        "spectformer_tiny": dict(dim=256, heads=4, layers="S" * 4 + "A" * 8),
        "spectformer_xs": dict(dim=384, heads=6, layers="S" * 4 + "A" * 8),
        "spectformer_small": dict(dim=384, heads=6, layers="S" * 4 + "A" * 15, drop_path=0.15),
        "spectformer_base": dict(dim=512, heads=8, layers="S" * 4 + "A" * 15, drop_path=0.25),
    }
    small = (
        dict(dim=8, heads=2, layers="SA", image=32, patch=8, classes=3),
        dict(dim=12, heads=3, layers="ASS", image=16, patch=4, classes=2, residual="split", image_channels=1),
    )
    official = (
        Rule(r"^patch_embed\.proj\.", "stem.0."),
        Rule(r"^pos_embed$", "positions.table", change=lambda table: _as_map(table)),
        Rule(r"^blocks\.([0-3])\.norm1\.", r"layers.\1.norm."),
        Rule(r"^blocks\.([0-3])\.filter\.complex_weight", r"layers.\1.branch.0.weight"),
        Rule(r"^blocks\.([0-3])\.norm2\.", r"layers.\1.branch.1."),
        Rule(r"^blocks\.([0-3])\.mlp\.", r"layers.\1.branch.2."),
        Rule(r"^blocks\.(\d+)\.norm1\.", r"layers.\1.mix.norm."),
        Rule(r"^blocks\.(\d+)\.attn\.qkv\.", r"layers.\1.mix.branch.to_qkv."),
        Rule(r"^blocks\.(\d+)\.attn\.proj\.", r"layers.\1.mix.branch.to_out."),
        Rule(r"^blocks\.(\d+)\.norm2\.", r"layers.\1.feed.norm."),
        Rule(r"^blocks\.(\d+)\.mlp\.", r"layers.\1.feed.branch."),
        Rule(r"\.fc1\.", ".widen."),
        Rule(r"\.fc2\.", ".narrow."),
        Rule(r"^head\.", "head.classify."),
    )

    def __init__(
        self, *, dim: int, heads: int, layers: str, classes: int = 1000, image: int = 224, patch: int = 16,
        expansion: int = 4, residual: Literal["joint", "split"] = "joint", drop_path: float = 0.0,
        features_only: bool = False, image_channels: int = 3,
    ):  # fmt: skip
        super().__init__(
            dim=dim, patch=patch, class_at=None, classes=classes, features_only=features_only,
            image_channels=image_channels,
        )  # fmt: skip
        require(len(layers) >= 1, "layers is empty, but a backbone has at least one")
        require(image >= patch, f"image is {image}, but it holds at least one patch of {patch}")
        if residual not in RESIDUALS:
            raise unknown("residual", residual, RESIDUALS)
        size = -(-image // patch)

        def spectral(rate: float) -> nn.Module:
            gate, feed = SpectralGate(dim, size=size), FeedForward(dim, expansion * dim)
            if residual == "split":
                return Block(dim, gate, feed, norm=norm, drop_path=rate)
            return Residual(InTurn(gate, norm(dim), feed), dim, norm=norm(dim), drop_path=rate)

        def attention(rate: float) -> nn.Module:
            mixer, feed = WholeMapAttention(dim, heads), FeedForward(dim, expansion * dim)
            return Block(dim, mixer, feed, norm=norm, drop_path=rate)

        self.stem = patches(image_channels, dim, size=patch, norm=None)
        self.positions = LearnedMap(size, dim)
        rates = drop_rates(drop_path, [len(layers)])[0]
        self.layers = InTurn(*make_layers(layers, {"S": spectral, "A": attention}, rates))
        self.norm = norm(dim)
        if not features_only:
            self.head = PooledHead(dim, classes)
        truncated_normal(self)


class HierarchicalSpectFormer(Backbone):
    """Stages of S or A, one letter a stage."""

    variants: ClassVar = {
        "spectformer_h_small": dict(
            widths=(64, 128, 320, 448), heads=(2, 4, 10, 14), depths=(3, 4, 6, 3), stem=32
        ),
        "spectformer_h_base": dict(
            widths=(64, 128, 320, 512), heads=(2, 4, 10, 16), depths=(3, 4, 12, 3), stem=64
        ),
        "spectformer_h_large": dict(
            widths=(96, 192, 384, 512), heads=(3, 6, 12, 16), depths=(3, 6, 18, 3), stem=64
        ),
    }
    small = (
        dict(widths=(8, 12), heads=(2, 3), depths=(1, 1), kinds="SA", expansions=(2, 2), stem=4, image=32,
             classes=3),
        dict(widths=(6, 8), heads=(1, 2), depths=(2, 1), kinds="AS", expansions=(2, 3), stem=4, image=24,
             classes=2, dense=False, image_channels=1),
    )  # fmt: skip
    official = (
        Rule(r"^patch_embed1\.conv\.", "stem."),
        Rule(r"^patch_embed1\.proj\.", "stem.9."),
        Rule(r"^patch_embed1\.norm\.", "stem.10."),
        Rule(r"^(patch_embed|block)(\d+)\.", lambda match: f"stages.{int(match[2]) - 1}.{match[1]}."),
        Rule(r"\.patch_embed\.proj\.", ".entry.0."),
        Rule(r"\.patch_embed\.norm\.", ".entry.1."),
        Rule(r"\.block\.", ".layers."),
        Rule(r"^(stages.*)\.norm1\.", r"\1.mix.norm."),
        Rule(r"^(stages.*)\.attn\.complex_weight", r"\1.mix.branch.weight"),
        Rule(r"^(stages.*)\.attn\.qkv\.", r"\1.mix.branch.to_qkv."),
        Rule(r"^(stages.*)\.attn\.proj\.", r"\1.mix.branch.to_out."),
        Rule(r"^(stages.*)\.norm2\.", r"\1.feed.norm."),
        Rule(r"^(stages.*)\.mlp\.dwconv\.dwconv\.", r"\1.feed.branch.convolution."),
        Rule(r"^(stages.*)\.mlp\.", r"\1.feed.branch."),
        Rule(r"^norm([123])\.", lambda match: f"stages.{int(match[1]) - 1}.ending."),
        Rule(r"^norm4\.", "head.norm."),
        Rule(r"^post_network\.0\.norm1\.", "head.attend_norm."),
        Rule(r"^post_network\.0\.norm2\.", "head.feed_norm."),
        Rule(r"^post_network\.0\.attn\.q\.", "head.to_q."),
        Rule(r"^post_network\.0\.attn\.kv\.", "head.to_kv."),
        Rule(r"^post_network\.0\.attn\.proj\.", "head.to_out."),
        Rule(r"^post_network\.0\.mlp\.", "head.feed."),
        Rule(r"\.fc1\.", ".widen."),
        Rule(r"\.fc2\.", ".narrow."),
        Rule(r"^aux_head\.", "head.classify_each."),
        Rule(r"^head\.(weight|bias)$", r"head.classify.\1"),
    )

    def __init__(
        self, *, widths: Sequence[int], heads: Sequence[int], depths: Sequence[int], stem: int,
        kinds: str = "SSAA", expansions: Sequence[int] = (8, 8, 4, 4), dense: bool = True,
        classes: int = 1000, image: int = 224, drop_path: float = 0.0, features_only: bool = False,
        image_channels: int = 3,
    ):  # fmt: skip
        strides = [4 * 2**stage for stage in range(len(widths))]
        super().__init__(
            strides=strides, channels=widths, classes=classes, features_only=features_only,
            image_channels=image_channels,
        )  # fmt: skip
        require(
            len(kinds) == len(widths),
            f"kinds is {kinds!r}, but it has a letter for each of {len(widths)} stages",
        )
        self.stem = InTurn(
            Convolution(image_channels, stem, 7, stride=2, bias=False), BatchNorm(stem), nn.ReLU(),
            Convolution(stem, stem, 3, bias=False), BatchNorm(stem), nn.ReLU(),
            Convolution(stem, stem, 3, bias=False), BatchNorm(stem), nn.ReLU(),
            Convolution(stem, widths[0], 3, stride=2), nn.LayerNorm(widths[0]),
        )  # fmt: skip
        entries = [
            None,
            *(patches(before, after, size=2, kernel=3, padding=1) for before, after in pairwise(widths)),
        ]
        rates = drop_rates(drop_path, depths)

        def layers(at: int) -> list[nn.Module]:
            dim, size = widths[at], -(-image // strides[at])

            def block(mixer: nn.Module, rate: float) -> Block:
                return Block(
                    dim, mixer, DepthwiseFeedForward(dim, expansions[at] * dim), norm=norm, drop_path=rate
                )

            makers = {
                "S": lambda rate: block(SpectralGate(dim, size=size), rate),
                "A": lambda rate: block(WholeMapAttention(dim, heads[at]), rate),
            }
            return make_layers(kinds[at] * depths[at], makers, rates[at])

        last = len(widths) - 1
        self.stages = nn.ModuleList(
            Stage(layers(at), entry=entry, ending=norm(widths[at]) if at < last else None)
            for at, entry in enumerate(entries)
        )
        if not features_only:
            self.head = ClassAttentionHead(
                widths[-1], heads[-1], expansions[-1] * widths[-1], classes, dense=dense
            )
        truncated_normal(self)

    def load_official(self, state: Mapping[str, Tensor]) -> Self:
        """Released attention layers of the stages have their queries apart from keys and values."""
        return super().load_official(joined(state, r"^block.*\.attn\.", parts=("q", "kv"), whole="qkv"))


class ClassAttentionHead(nn.Module):
    """A token that begins as the mean of all positions asks them all once, and is classified.

    With `dense`, every position is classified as well, and half of each class's largest logit is added.
    """

    def __init__(self, dim: int, heads: int, hidden: int, classes: int, *, dense: bool):
        super().__init__()
        self.heads = heads
        self.attend_norm, self.feed_norm, self.norm = norm(dim), norm(dim), norm(dim)
        self.to_q, self.to_kv, self.to_out = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.feed = FeedForward(dim, hidden)
        self.classify = nn.Linear(dim, classes)
        self.classify_each = nn.Linear(dim, classes) if dense else None

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b classes"]:
        tokens = x.flatten(1, 2)
        asking = tokens.mean(dim=1, keepdim=True)
        seen = self.attend_norm(torch.cat([asking, tokens], dim=1))
        q = self.to_q(seen[:, :1]).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        heard = hear(q, seen, self.to_kv)
        asking = asking + self.to_out(heard)
        asking = asking + self.feed(self.feed_norm(asking))
        logits = self.classify(self.norm(asking[:, 0]))
        if self.classify_each is None:
            return logits
        return logits + 0.5 * self.classify_each(self.norm(tokens)).amax(dim=1)


def _as_map(table: Float[Tensor, "1 n c"]) -> Float[Tensor, "h w c"]:
    """Positions of a square grid, in rows."""
    side = round(table.shape[1] ** 0.5)
    return table[0].unflatten(0, (side, side))
