"""InLine-PVT and InLine-Swin (Han et al., "Bridging the Divide: Reconsidering Softmax and Linear Attention",
2024, arXiv 2412.06590): two known hosts with injective linear attention for softmax.

Every layer is x ← x + mixer(LN x), x ← x + MLP(LN x).

`InLinePVT`: four stages of patches, each with learned positions of its own, injective linear attention to the
whole map in all layers (the host's shrunken keys are gone), and the mean of the last map to the head.

`InLineSwin`: layers I (injective linear attention, in windows of 56, which is the whole map at 224 pixels), S
(softmax in windows of 7, with a bias a head and offset) and H (the same, the windows shifted by half of one).
The paper's models are I in the first stages and S and H in turn in the last. Stages begin with the four
neighbours side by side, normed and narrowed.

Learned positions are interpolated bicubically for other sizes (the released code: bilinearly). Windows of I
are not shifted at any size; the released code would, once a map is larger than a window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import ClassVar, Self

from jaxtyping import Float
from torch import Tensor, nn

from regardant.backbone.kit.backbone import Backbone
from regardant.backbone.kit.feed_forward import FeedForward
from regardant.backbone.kit.head import PooledHead
from regardant.backbone.kit.initial import truncated_normal
from regardant.backbone.kit.official import Rule, by_key_minus_query, joined
from regardant.backbone.kit.residual import InTurn
from regardant.backbone.kit.stage import Block, Stage, drop_rates, make_layers
from regardant.backbone.kit.stem import NeighborMerging, patches
from regardant.core.errors import require
from regardant.core.grid_position import LearnedMap, TableBias
from regardant.core.grid_window import WindowAttention
from regardant.grid.inline_attention import InLineAttention

EVERYWHERE = 56
"""The windows of I that released models have: as large as the first map at 224 pixels."""
_LAYER = (
    Rule(r"\.norm1\.", ".mix.norm."),
    Rule(r"\.attn\.qkv\.", ".mix.branch.to_qkv."),
    Rule(r"\.attn\.proj\.", ".mix.branch.to_out."),
    Rule(r"\.attn\.residual\.0\.", ".mix.branch.local.first."),
    Rule(r"\.attn\.residual\.2\.", ".mix.branch.local.second."),
    Rule(r"\.norm2\.", ".feed.norm."),
    Rule(r"\.mlp\.fc1\.", ".feed.branch.widen."),
    Rule(r"\.mlp\.fc2\.", ".feed.branch.narrow."),
    Rule(r"^head\.(weight|bias)$", r"head.classify.\1"),
)


class InLinePVT(Backbone):
    """Stages of injective linear attention to the whole map; `image` is the size positions are learned at."""

    variants: ClassVar = {
        "inline_pvt_tiny": dict(depths=(2, 2, 2, 2)),
        "inline_pvt_small": dict(depths=(3, 4, 6, 3)),
        "inline_pvt_medium": dict(depths=(3, 4, 18, 3), drop_path=0.3),
        "inline_pvt_large": dict(depths=(3, 8, 27, 3), drop_path=0.3),
    }
    small = (
        dict(widths=(8, 12), heads=(2, 3), depths=(1, 2), expansions=(2, 1), image=32, classes=3),
        dict(widths=(8,), heads=(1,), depths=(1,), expansions=(2,), image=16, classes=2, local=False,
             features="relu", image_channels=1),
    )  # fmt: skip
    official = (
        Rule(r"^pos_embed(\d)$", lambda match: f"stages.{int(match[1]) - 1}.entry.2.table",
             change=lambda table: _as_map(table)),
        Rule(r"^patch_embed(\d)\.proj\.", lambda match: f"stages.{int(match[1]) - 1}.entry.0."),
        Rule(r"^patch_embed(\d)\.norm\.", lambda match: f"stages.{int(match[1]) - 1}.entry.1."),
        Rule(r"^block(\d)\.(\d+)\.", lambda match: f"stages.{int(match[1]) - 1}.layers.{match[2]}."),
        *_LAYER,
    )  # fmt: skip

    def __init__(
        self, *, depths: Sequence[int], widths: Sequence[int] = (64, 128, 320, 512),
        heads: Sequence[int] = (2, 4, 10, 16), expansions: Sequence[int] = (8, 8, 4, 4),
        classes: int = 1000, image: int = 224, features: str = "identity", local: bool = True,
        drop_path: float = 0.1, features_only: bool = False, image_channels: int = 3,
    ):  # fmt: skip
        strides = [4 * 2**stage for stage in range(len(widths))]
        super().__init__(
            strides=strides, channels=widths, classes=classes, features_only=features_only,
            image_channels=image_channels,
        )  # fmt: skip
        entries = (
            InTurn(*patches(before, after, size=size), LearnedMap(-(-image // stride), after))
            for (before, after), size, stride in zip(
                pairwise((image_channels, *widths)), (4, *(2 for _ in widths[1:])), strides, strict=True
            )
        )

        def block(width: int, count: int, expansion: int, rate: float) -> Block:
            mixer = InLineAttention(width, count, features=features, local=local)
            feed = FeedForward(width, expansion * width)
            return Block(width, mixer, feed, norm=partial(nn.LayerNorm, eps=1e-6), drop_path=rate)

        self.stages = nn.ModuleList(
            Stage([block(*of_stage, rate) for rate in rates], entry=entry)
            for *of_stage, rates, entry in zip(
                widths, heads, expansions, drop_rates(drop_path, depths), entries, strict=True
            )
        )
        if not features_only:
            self.head = PooledHead(widths[-1], classes)
        truncated_normal(self)

    def load_official(self, state: Mapping[str, Tensor]) -> Self:
        """Released layers have their queries apart from keys and values."""
        return super().load_official(joined(state, r"^block", parts=("q", "kv"), whole="qkv"))


class InLineSwin(Backbone):
    """Stages of layers I, S and H, a string of letters each."""

    variants: ClassVar = {
        "inline_swin_tiny": dict(width=96, heads=(3, 6, 12, 24), layers=("II", "II", "I" * 6, "SH")),
        "inline_swin_small": dict(
            width=96, heads=(3, 6, 12, 24), layers=("II", "II", "SH" * 9, "SH"), drop_path=0.3
        ),
        "inline_swin_base": dict(
            width=128, heads=(4, 8, 16, 32), layers=("II", "II", "II" + "SH" * 8, "SH"), drop_path=0.5
        ),
    }
    small = (
        dict(width=8, heads=(2, 4), layers=("IS", "SH"), window=3, everywhere=4, classes=3),
        dict(width=4, heads=(1, 2, 2), layers=("H", "I", "SI"), window=2, classes=2, expansion=2,
             image_channels=1),
    )  # fmt: skip
    official = (
        Rule(r"\.relative_position_index$"),
        Rule(r"\.attn_mask$"),
        Rule(r"\.attn\.relative_position_bias_table$", ".mix.branch.positions.0.table",
             change=by_key_minus_query),
        Rule(r"^patch_embed\.proj\.", "stem.0."),
        Rule(r"^patch_embed\.norm\.", "stem.1."),
        Rule(r"^layers\.(\d)\.blocks\.", r"stages.\1.layers."),
        Rule(r"^layers\.(\d)\.downsample\.", lambda match: f"stages.{int(match[1]) + 1}.entry."),
        Rule(r"\.entry\.reduction\.", ".entry.narrow."),
        *_LAYER,
        Rule(r"^norm\.", "head.norm."),
    )  # fmt: skip

    def __init__(
        self, *, width: int, heads: Sequence[int], layers: Sequence[str], classes: int = 1000,
        window: int = 7, everywhere: int = EVERYWHERE, expansion: int = 4, drop_path: float = 0.2,
        features_only: bool = False, image_channels: int = 3,
    ):  # fmt: skip
        widths = [width * 2**stage for stage in range(len(layers))]
        super().__init__(
            strides=[4 * 2**stage for stage in range(len(layers))], channels=widths, classes=classes,
            features_only=features_only, image_channels=image_channels,
        )  # fmt: skip
        require(
            len(heads) == len(layers),
            f"there are {len(layers)} strings of layers, but {len(heads)} numbers of heads",
        )
        self.stem = patches(image_channels, width, size=4)
        entries = [None, *(NeighborMerging(before, after) for before, after in pairwise(widths))]

        def stage(width: int, count: int, letters: str, rates: Sequence[float]) -> list[nn.Module]:
            def block(mixer: nn.Module, rate: float) -> Block:
                return Block(width, mixer, FeedForward(width, expansion * width), drop_path=rate)

            def softmax(shift: int, rate: float) -> Block:
                position = TableBias(count, window)
                mixer = WindowAttention(width, count, window=window, shift=shift, position=position)
                return block(mixer, rate)

            makers = {
                "I": lambda rate: block(InLineAttention(width, count, window=everywhere), rate),
                "S": partial(softmax, 0),
                "H": partial(softmax, window // 2),
            }
            return make_layers(letters, makers, rates)

        rates = drop_rates(drop_path, [len(letters) for letters in layers])
        self.stages = nn.ModuleList(
            Stage(stage(*of_stage), entry=entry)
            for *of_stage, entry in zip(widths, heads, layers, rates, entries, strict=True)
        )
        if not features_only:
            self.head = PooledHead(widths[-1], classes, norm=nn.LayerNorm(widths[-1]), normed="before")
        truncated_normal(self)


def _as_map(table: Float[Tensor, "1 n c"]) -> Float[Tensor, "h w c"]:
    """Positions of a square map, in rows."""
    side = round(table.shape[1] ** 0.5)
    return table[0].unflatten(0, (side, side))
