"""HAT (Chen et al., 2023, "Hybrid Attention Transformer for Image Restoration", arXiv 2309.05239).

A block of its groups hears its window and, beside it, its channels:

    n = LN x      x ← x + window attention(n) + α CAB(n)      x ← x + MLP(LN x)
    CAB(n) = C ∘ σ(W₂ relu(W₁ mean C)),   C = conv₃ gelu(conv₃ n)

Windows of 16 are shifted by 8 in every second block; CAB sees the map unshifted, and α is 0.01. A group is
several blocks, one overlapping cross-attention with its MLP, and a convolution, with a residual around all.
The network is a convolution, a norm, the groups, a norm and a convolution with a residual around them, and
convolutions that enlarge the image by shuffling channels into pixels.

Official weights give the official outputs at sizes that the window divides. At others the released
evaluation reflects the image up to such a size; here windows are masked at the border.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from math import log2
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regardant.backbone.kit.convolution import Convolution, SqueezeExcite
from regardant.backbone.kit.feed_forward import FeedForward
from regardant.backbone.kit.initial import truncated_normal
from regardant.backbone.kit.named import NamedNetwork
from regardant.backbone.kit.official import Rule
from regardant.backbone.kit.residual import DropPath, InTurn, Residual, call
from regardant.backbone.kit.stage import Block, drop_rates
from regardant.core.errors import require
from regardant.core.grid_position import TableBias
from regardant.core.grid_window import WindowAttention
from regardant.core.network import Example
from regardant.grid.hat import OverlappingAttention

MEAN_OF_COLOURS = (0.4488, 0.4371, 0.4040)
WEIGHT_OF_CHANNELS = 0.01


class HybridBlock(nn.Module):
    """Windows and channels side by side, then the MLP."""

    def __init__(
        self, dim: int, heads: int, *, window: int, shift: int, compress: int, squeeze: int, expansion: int,
        drop_path: float, channels: bool,
    ):  # fmt: skip
        super().__init__()
        require(dim >= max(compress, squeeze), f"dim={dim} cannot be {max(compress, squeeze)} times narrower")
        self.norm = nn.LayerNorm(dim)
        self.attention = WindowAttention(
            dim, heads, window=window, shift=shift, position=TableBias(heads, window)
        )
        self.channels = InTurn(
            Convolution(dim, dim // compress, 3), nn.GELU(), Convolution(dim // compress, dim, 3),
            SqueezeExcite(dim, dim // squeeze, nn.ReLU),
        ) if channels else None  # fmt: skip
        self.drop_path = DropPath(drop_path)
        self.feed = Residual(
            FeedForward(dim, expansion * dim), dim, norm=nn.LayerNorm(dim), drop_path=drop_path
        )

    def forward(self, x: Float[Tensor, "b h w c"], *, record=None, plainly: bool = False):
        normed = self.norm(x)
        x = x + self.drop_path(call(self.attention, normed, record=record, plainly=plainly))
        if self.channels is not None:
            x = x + WEIGHT_OF_CHANNELS * self.channels(normed)
        return self.feed(x)


class Group(nn.Module):
    """Blocks, an overlapping attention where there is one, and a convolution."""

    def __init__(self, dim: int, blocks: Sequence[HybridBlock], overlap: Block | None):
        super().__init__()
        self.blocks, self.overlap = InTurn(*blocks), nn.Identity() if overlap is None else overlap
        self.convolution = Convolution(dim, dim, 3)

    def forward(self, x: Float[Tensor, "b h w c"], *, record=None, plainly: bool = False):
        for part in (self.blocks, self.overlap):
            x = call(part, x, record=record, plainly=plainly)
        return self.convolution(x)


class Shuffled(nn.Module):
    """A convolution to `scale`² times the channels, which become pixels."""

    def __init__(self, dim: int, scale: int):
        super().__init__()
        self.convolution, self.shuffle = Convolution(dim, scale**2 * dim, 3), nn.PixelShuffle(scale)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b i j c"]:
        return self.shuffle(self.convolution(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def _turned(table: Tensor) -> Tensor:
    """A released table of windows: one axis of offsets, heads last, and offsets by query minus key."""
    side = round(len(table) ** 0.5)
    return table.unflatten(0, (side, side)).flip(0, 1).permute(2, 0, 1)


def _overlapping(table: Tensor) -> Tensor:
    """One of overlapping windows, half as wide again: there an offset δ has the index δ - h + 1 along each
    axis, and what is below zero wraps around."""
    side = round(len(table) ** 0.5)  # 2 (M - 1 + h) + 1, with M = 4 h
    halo, far = (side + 1) // 10, (side - 1) // 2
    at = torch.arange(-far, far + 1) - halo + 1
    return table[(at[:, None] * side + at) % len(table)].permute(2, 0, 1)


_BLOCK = {
    "norm1": "norm", "attn.relative_position_bias_table": "attention.positions.0.table",
    "attn.qkv": "attention.to_qkv", "attn.proj": "attention.to_out", "conv_block.cab.0": "channels.0",
    "conv_block.cab.2": "channels.2", "conv_block.cab.3.attention.1": "channels.3.squeeze",
    "conv_block.cab.3.attention.3": "channels.3.excite", "norm2": "feed.norm",
    "mlp.fc1": "feed.branch.widen", "mlp.fc2": "feed.branch.narrow",
}  # fmt: skip
_OVERLAP = {
    "norm1": "mix.norm", "qkv": "mix.branch.to_qkv", "proj": "mix.branch.to_out",
    "relative_position_bias_table": "mix.branch.position.table", "norm2": "feed.norm",
    "mlp.fc1": "feed.branch.widen", "mlp.fc2": "feed.branch.narrow",
}  # fmt: skip


def _part(match: re.Match) -> str:
    """A part of block 1 of group 0, or of the overlapping attention behind the blocks."""
    group, block, rest = match.groups()
    known = _OVERLAP if block is None else _BLOCK
    name = max((name for name in known if f"{rest}.".startswith(f"{name}.")), key=len)
    place = "overlap" if block is None else f"blocks.{block}"
    return f"groups.{group}.branch.{place}.{known[name]}{rest[len(name) :]}"


class HAT(NamedNetwork):
    """Images [b, c, h, w] → images [b, c, scale · h, scale · w]; with `scale=1`, cleaned ones.

    `channels` and `overlap` leave out the branch of channels and the overlapping attention.
    """

    variants: ClassVar = {
        "hat_small": dict(dim=144, groups=6, compress=24, squeeze=24),
        "hat_base": dict(dim=180, groups=6),
        "hat_large": dict(dim=180, groups=12),
    }
    official = (
        Rule(r"^relative_position_index_"),
        Rule(r"blocks\.\d+\.attn\.relative_position_bias_table$", r"\g<0>", change=_turned),
        Rule(r"overlap_attn\.relative_position_bias_table$", r"\g<0>", change=_overlapping),
        Rule(r"^layers\.(\d+)\.residual_group\.(?:blocks\.(\d+)|overlap_attn)\.(.*)$", _part),
        Rule(r"^layers\.(\d+)\.conv\.", r"groups.\1.branch.convolution."),
        Rule(r"^conv_first\.", "stem."),
        Rule(r"^patch_embed\.norm\.", "stem_norm."),
        Rule(r"^conv_after_body\.", "gather."),
        Rule(r"^conv_before_upsample\.0\.", "narrow.0."),
        Rule(r"^upsample\.(\d+)\.", lambda match: f"enlarge.{int(match[1]) // 2}.convolution."),
        Rule(r"^conv_last\.", "last."),
    )

    def __init__(
        self, *, dim: int, groups: int, blocks: int = 6, heads: int = 6, scale: int = 4, window: int = 16,
        overlap: float = 0.5, compress: int = 3, squeeze: int = 30, expansion: int = 2, features: int = 64,
        channels: bool = True, drop_path: float = 0.1, image_channels: int = 3,
    ):  # fmt: skip
        super().__init__()
        require(
            scale == 3 or (scale >= 1 and log2(scale).is_integer()),
            f"scale is {scale}, but an image is enlarged by a power of two, or by 3",
        )
        require(image_channels >= 1, f"image_channels is {image_channels}, but an image has at least 1")
        self.scale, self.image_channels = scale, image_channels
        mean = MEAN_OF_COLOURS if image_channels == 3 else (0.0,) * image_channels
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.stem, self.stem_norm = Convolution(image_channels, dim, 3), nn.LayerNorm(dim)

        def block(at: int, rate: float) -> HybridBlock:
            return HybridBlock(
                dim, heads, window=window, shift=0 if at % 2 == 0 else window // 2, compress=compress,
                squeeze=squeeze, expansion=expansion, drop_path=rate, channels=channels,
            )  # fmt: skip

        def group(rates: Sequence[float]) -> Residual:
            around = None
            if overlap:
                mixer = OverlappingAttention(dim, heads, window=window, overlap=overlap)
                around = Block(dim, mixer, FeedForward(dim, expansion * dim))
            return Residual(Group(dim, [block(at, rate) for at, rate in enumerate(rates)], around), dim)

        self.groups = InTurn(*(group(rates) for rates in drop_rates(drop_path, [blocks] * groups)))
        self.norm, self.gather = nn.LayerNorm(dim), Convolution(dim, dim, 3)
        steps = [3] if scale == 3 else [2] * int(log2(scale))
        self.narrow = InTurn(Convolution(dim, features, 3), nn.LeakyReLU())
        self.enlarge = InTurn(*(Shuffled(features, step) for step in steps))
        self.last = Convolution(features, image_channels, 3)
        truncated_normal(self)

    def forward(
        self, images: Float[Tensor, "b k h w"], *, record=None
    ) -> Float[Tensor, "b k scale*h scale*w"]:
        return self._run(images, record, plainly=False)

    def reference(self, images):
        return self._run(images, None, plainly=True)

    def _run(self, images: Tensor, record, *, plainly: bool) -> Tensor:
        self.check_images(images)
        mean = self.mean.to(images.dtype)
        x = self.stem(images.permute(0, 2, 3, 1) - mean)
        deep = self.norm(call(self.groups, self.stem_norm(x), record=record, plainly=plainly))
        return (self.last(self.enlarge(self.narrow(self.gather(deep) + x))) + mean).permute(0, 3, 1, 2)

    def check_images(self, images: Tensor) -> None:
        require(
            images.ndim == 4, f"images have shape {tuple(images.shape)}, but they are [b, channels, h, w]"
        )
        require(
            images.shape[1] == self.image_channels,
            f"images have {images.shape[1]} channels, but this network was made for {self.image_channels}",
        )

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Example]:
        small = dict(dim=8, groups=1, blocks=2, heads=2, window=4, compress=2, squeeze=4, features=4)
        options: tuple[dict[str, Any], ...] = (
            dict(scale=2), dict(scale=3, groups=2), dict(scale=1, channels=False),
            dict(scale=4, overlap=0.0, image_channels=1), dict(scale=2, overlap=1.0, window=3),
        )  # fmt: skip
        for given in options:
            for height, width in ((8, 12), (7, 13), (1, 1)):
                size = (2, given.get("image_channels", 3), height, width)
                images = torch.rand(size, generator=generator, dtype=torch.float64)
                yield Example(small | given, (images,))
