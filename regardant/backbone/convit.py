"""ConViT (d'Ascoli et al., 2021, arXiv 2103.10697): a vision transformer whose first layers begin as
convolutions and learn how far to leave that.

    images → patches + positions → `gated` layers on the map → [class, patches] → plain layers → norm → class

Every layer is x ← x + mixer(LN x), x ← x + MLP(LN x). The mixer of the first is gated positional attention
(`regardant.grid.convit`), which has no place for a class token: it joins behind them. Ten of twelve in the
paper; with `gated=0` this is DeiT. Queries, keys and values have no biases.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regardant.backbone.kit.feed_forward import FeedForward
from regardant.backbone.kit.initial import truncated_normal
from regardant.backbone.kit.official import Rule, joined
from regardant.backbone.kit.residual import InTurn
from regardant.backbone.kit.stage import Block, drop_rates, make_layers
from regardant.backbone.kit.stem import patches
from regardant.backbone.kit.tokens import DEIT, TokenAttention, TokenBackbone
from regardant.core.errors import require
from regardant.core.grid_position import LearnedMap
from regardant.core.record import Record
from regardant.grid.convit import GatedPositionalAttention


def norm(dim: int) -> nn.LayerNorm:
    return nn.LayerNorm(dim, eps=1e-6)


class ConViT(TokenBackbone):
    """`depth` layers, the first `gated` of them with gated positional attention."""

    variants: ClassVar = {
        "convit_tiny": dict(dim=192, heads=4),
        "convit_tiny_plus": dict(dim=256, heads=4),
        "convit_small": dict(dim=432, heads=9),
        "convit_small_plus": dict(dim=576, heads=9),
        "convit_base": dict(dim=768, heads=16),
        "convit_base_plus": dict(dim=1024, heads=16),
    }
    small = (
        dict(dim=8, heads=4, depth=3, gated=2, image=32, patch=8, classes=3),
        dict(dim=12, heads=2, depth=2, gated=0, image=16, patch=4, classes=2, image_channels=1),
        dict(dim=10, heads=5, depth=2, gated=1, image=16, patch=8, classes=2, locality=None),
    )
    official = (
        Rule(r"\.attn\.pos_proj\.bias$"),
        Rule(r"\.attn\.pos_proj\.weight$", ".mix.branch.position"),
        Rule(r"\.attn\.gating_param$", ".mix.branch.gate"),
        *DEIT,
    )

    def __init__(
        self, *, dim: int, heads: int, depth: int = 12, gated: int = 10, locality: float | None = 1.0,
        classes: int = 1000, image: int = 224, patch: int = 16, expansion: int = 4, drop_path: float = 0.0,
        features_only: bool = False, image_channels: int = 3,
    ):  # fmt: skip
        super().__init__(
            dim=dim, patch=patch, class_at=gated, classes=classes, features_only=features_only,
            image_channels=image_channels,
        )  # fmt: skip
        require(
            0 <= gated < depth,
            f"gated is {gated} of depth={depth} layers, but at least the last is to hear of the class token",
        )
        require(image >= patch, f"image is {image}, but it holds at least one patch of {patch}")

        def block(mixer: nn.Module, rate: float) -> Block:
            return Block(dim, mixer, FeedForward(dim, expansion * dim), norm=norm, drop_path=rate)

        makers = {
            "G": lambda rate: block(GatedPositionalAttention(dim, heads, locality=locality), rate),
            "A": lambda rate: block(TokenAttention(dim, heads, qkv_bias=False), rate),
        }
        self.stem = patches(image_channels, dim, size=patch, norm=None)
        self.positions = LearnedMap(-(-image // patch), dim)
        rates = drop_rates(drop_path, [depth])[0]
        self.layers = InTurn(*make_layers("G" * gated + "A" * (depth - gated), makers, rates))
        self.norm = norm(dim)
        if not features_only:
            self.head = nn.Linear(dim, classes)
        truncated_normal(self)
        for layer in self.gated_layers:
            layer.mix.branch.begin()

    def load_official(self, state: Mapping[str, Tensor]) -> Self:
        """Released gated layers have their queries and keys apart from their values."""
        return super().load_official(joined(state, r"\.attn\.", parts=("qk", "v"), whole="qkv"))

    @property
    def gated_layers(self) -> InTurn:
        return self.layers[: self.class_at]

    def gates(self) -> Float[Tensor, "layers heads"]:
        """σ(λ) of every gated head: 1 goes by place alone, 0 by content alone."""
        require(self.class_at > 0, "gated is 0, so there is no gate")
        return torch.stack([layer.mix.branch.gates for layer in self.gated_layers])

    def distances(self, images: Float[Tensor, "b k h w"]) -> Float[Tensor, "layers heads"]:
        """How far every gated head looks on these images, in patches, in the mean over patches."""
        require(self.class_at > 0, "gated is 0, so no head's distance is known")
        self.check_images(images)
        x, found = self.positions(self.stem(images.permute(0, 2, 3, 1))), []
        for layer in self.gated_layers:
            found.append(layer.mix.branch.distances(layer.mix.norm(x)))
            x = layer(x, record=Record())
        return torch.stack(found)
