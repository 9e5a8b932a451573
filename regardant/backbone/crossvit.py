"""CrossViT (Chen et al., 2021, arXiv 2103.14899): two branches, of small and of large patches, that meet in
their class tokens alone.

Each branch is a plain pre-norm transformer with its own patches, class token and positions. After some layers
each class token visits the other branch, all at once, from the tokens before any visit:

    c' = P(cls_i)                           P = linear · GELU · LN into the other branch's width
    y  = c' + attention(LN z)₀              z = [c', patches_j]; only c' asks, and hears itself as well
    cls_i ← R(y)                            R = linear · GELU · LN back; nothing goes around it

so that a visit costs as much as there are patches. The patches of a branch learn of the other in its next
layers. At the end each branch's class token is normed and classified, and the logits are averaged.

An image is resized for each branch (bicubic) so that its patches fill it: 240 for patches of 12, 224 for 16,
and in that proportion at other sizes, where positions are interpolated, too (the released models take their
one size only). `features_only` gives the map of the last branch. The dagger models' patches are made by three
convolutions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from regardant.backbone.kit.backbone import Backbone
from regardant.backbone.kit.convolution import Convolution
from regardant.backbone.kit.feed_forward import FeedForward
from regardant.backbone.kit.field import Field
from regardant.backbone.kit.initial import truncated_normal
from regardant.backbone.kit.official import Rule
from regardant.backbone.kit.residual import DropPath, InTurn, call
from regardant.backbone.kit.stage import Block, drop_rates
from regardant.backbone.kit.stem import patches as plain_patches
from regardant.backbone.kit.tokens import TokenAttention
from regardant.core.errors import require, unknown
from regardant.core.few_queries import hear
from regardant.core.grid_position import LearnedMap
from regardant.core.record import Record

FUSIONS = ("cross", "none")
STEMS = ("patches", "convolutions")
CONVOLVED = {12: ((7, 4, 3), (3, 3, 0), (3, 1, 1)), 16: ((7, 4, 3), (3, 2, 1), (3, 2, 1))}
"""Kernel, stride and padding of the dagger models' three convolutions, by the size of their patches."""


def norm(dim: int) -> nn.LayerNorm:
    return nn.LayerNorm(dim, eps=1e-6)


def _variant(width: int, heads: int, depth: int, expansion: int, **own) -> dict:
    return dict(
        widths=(width, 2 * width), heads=(heads, heads), depths=(1, depth), expansion=expansion, **own
    )


class CrossViT(Backbone):
    """Branches in a ring: each class token visits the next; with `fusion="none"` only their logits meet."""

    variants: ClassVar = {
        "crossvit_tiny": _variant(96, 3, 4, 4),
        "crossvit_small": _variant(192, 6, 4, 4),
        "crossvit_base": _variant(384, 12, 4, 4),
        "crossvit_9": _variant(128, 4, 3, 3),
        "crossvit_15": _variant(192, 6, 5, 3),
        "crossvit_18": _variant(224, 7, 6, 3),
        "crossvit_9_dagger": _variant(128, 4, 3, 3, stem="convolutions"),
        "crossvit_15_dagger": _variant(192, 6, 5, 3, stem="convolutions"),
        "crossvit_18_dagger": _variant(224, 7, 6, 3, stem="convolutions"),
        "crossvit_15_dagger_384": _variant(192, 6, 5, 3, stem="convolutions", images=(408, 384)),
        "crossvit_18_dagger_384": _variant(224, 7, 6, 3, stem="convolutions", images=(408, 384)),
    }
    small = (
        dict(widths=(8, 12), heads=(2, 3), depths=(1, 2), rounds=2, images=(20, 16), patches=(4, 8),
             classes=3),
        dict(widths=(8, 16), heads=(1, 2), depths=(1, 1), rounds=1, images=(32, 32), patches=(4, 8),
             classes=5, fusion="none", image_channels=1),
        dict(widths=(8, 8), heads=(2, 2), depths=(1, 1), rounds=1, images=(24, 32), stem="convolutions",
             classes=2),
    )  # fmt: skip
    official = (
        Rule(r"^patch_embed\.(\d+)\.proj\.(\d+)\.", r"branches.\1.stem.\2."),
        Rule(r"^patch_embed\.(\d+)\.proj\.", r"branches.\1.stem.0."),
        Rule(r"^cls_token\.(\d+)$", r"branches.\1.class_token"),
        Rule(r"^blocks\.(\d+)\.blocks\.(\d+)\.(\d+)\.", r"rounds.\1.layers.\2.\3."),
        Rule(r"^blocks\.(\d+)\.projs\.(\d+)\.", r"rounds.\1.visits.\2.leave."),
        Rule(r"^blocks\.(\d+)\.revert_projs\.(\d+)\.", r"rounds.\1.visits.\2.come_back."),
        Rule(r"^blocks\.(\d+)\.fusion\.(\d+)\.norm1\.", r"rounds.\1.visits.\2.norm."),
        Rule(r"^blocks\.(\d+)\.fusion\.(\d+)\.attn\.w([qkv])\.", r"rounds.\1.visits.\2.to_\3."),
        Rule(r"^blocks\.(\d+)\.fusion\.(\d+)\.attn\.proj\.", r"rounds.\1.visits.\2.to_out."),
        Rule(r"(layers.*)\.norm1\.", r"\1.mix.norm."),
        Rule(r"(layers.*)\.attn\.qkv\.", r"\1.mix.branch.to_qkv."),
        Rule(r"(layers.*)\.attn\.proj\.", r"\1.mix.branch.to_out."),
        Rule(r"(layers.*)\.norm2\.", r"\1.feed.norm."),
        Rule(r"(layers.*)\.mlp\.fc1\.", r"\1.feed.branch.widen."),
        Rule(r"(layers.*)\.mlp\.fc2\.", r"\1.feed.branch.narrow."),
        Rule(r"^norm\.", "norms."),
        Rule(r"^head\.", "heads."),
    )

    def __init__(
        self, *, widths: Sequence[int], heads: Sequence[int], depths: Sequence[int], expansion: int = 4,
        rounds: int = 3, patches: Sequence[int] = (12, 16), images: Sequence[int] = (240, 224),
        stem: Literal["patches", "convolutions"] = "patches", fusion: Literal["cross", "none"] = "cross",
        classes: int = 1000, drop_path: float = 0.0, features_only: bool = False, image_channels: int = 3,
    ):  # fmt: skip
        super().__init__(
            strides=(patches[-1],), channels=(widths[-1],), classes=classes, features_only=features_only,
            image_channels=image_channels,
        )  # fmt: skip
        counts = {len(each) for each in (widths, heads, depths, patches, images)}
        require(
            len(counts) == 1, f"widths, heads, depths, patches and images are of lengths {sorted(counts)}"
        )
        if fusion not in FUSIONS:
            raise unknown("fusion", fusion, FUSIONS)
        if stem not in STEMS:
            raise unknown("stem", stem, STEMS)
        require(
            fusion == "none" or len(widths) >= 2,
            "fusion is 'cross', but a single branch has no other to visit",
        )
        for image, patch in zip(images, patches):
            require(image % patch == 0, f"images holds {image}, which patches of {patch} do not fill")
        self.proportions = [image / images[-1] for image in images]
        self.branches = nn.ModuleList(
            Branch(image_channels, dim, patch=patch, grid=image // patch, convolved=stem == "convolutions")
            for dim, patch, image in zip(widths, patches, images)
        )
        deepest = max(depths)
        rates = drop_rates(drop_path, [deepest] * rounds)
        self.rounds = nn.ModuleList(
            Round(widths, heads, depths, expansion=expansion, fuse=fusion == "cross", rates=each)
            for each in rates
        )
        self.norms = nn.ModuleList(norm(dim) for dim in widths)
        if not features_only:
            self.heads = nn.ModuleList(nn.Linear(dim, classes) for dim in widths)
        truncated_normal(self)

    def tokens(
        self, images: Float[Tensor, "b k h w"], *, record: Record, plainly: bool
    ) -> tuple[list[Float[Tensor, "b _ _"]], tuple[int, int]]:
        """Every branch's tokens, normed, the class token first; and the size of the last one's map."""
        given = [branch(images, proportion) for branch, proportion in zip(self.branches, self.proportions)]
        tokens, sizes = [each for each, _ in given], [size for _, size in given]
        for each in self.rounds:
            tokens = each(tokens, record=record, plainly=plainly)
        return [norm(x) for norm, x in zip(self.norms, tokens)], sizes[-1]

    def maps(self, images, *, record, plainly):
        tokens, size = self.tokens(images, record=record, plainly=plainly)
        yield tokens[-1][:, 1:].unflatten(1, size)

    def _run(self, images, record, *, plainly):
        if self.features_only:
            return super()._run(images, record, plainly=plainly)
        self.check_images(images)
        tokens, _ = self.tokens(images, record=record, plainly=plainly)
        logits = [head(x[:, 0]) for head, x in zip(self.heads, tokens)]
        return torch.stack(logits).mean(dim=0)

    def fields(self, height, width):
        stride = self.strides[0]
        return [Field.everything((height, width), (-(-height // stride), -(-width // stride)))]

    def load_official(self, state: Mapping[str, Tensor]) -> Self:
        """Released positions hold the class token's first; they belong to square grids."""
        parted = dict(state)
        for name, value in state.items():
            if found := re.fullmatch(r"pos_embed\.(\d+)", name):
                first, others = parted.pop(name)[0].tensor_split([1])
                side = round(len(others) ** 0.5)
                branch = f"branches.{found[1]}"
                parted[f"{branch}.class_position"] = first
                fits = side**2 == len(others)
                parted[f"{branch}.positions.table"] = others.unflatten(0, (side, side)) if fits else value
        return super().load_official(parted)


class Branch(nn.Module):
    """Images → tokens [b, 1 + n, c], the class token first, with positions."""

    def __init__(self, channels: int, dim: int, *, patch: int, grid: int, convolved: bool):
        super().__init__()
        self.patch = patch
        self.stem = (
            _convolved(channels, dim, patch)
            if convolved
            else plain_patches(channels, dim, size=patch, norm=None)
        )
        self.positions = LearnedMap(grid, dim)
        self.class_token, self.class_position = (nn.Parameter(torch.empty(1, dim)) for _ in range(2))
        for each in (self.class_token, self.class_position):
            nn.init.trunc_normal_(each, std=0.02)

    def forward(
        self, images: Float[Tensor, "b k h w"], proportion: float
    ) -> tuple[Float[Tensor, "b n c"], tuple[int, int]]:
        """The image is resized to about `proportion` times its sides, up to whole patches."""
        size = tuple(-(-round(side * proportion) // self.patch) * self.patch for side in images.shape[2:])
        if size != tuple(images.shape[2:]):
            images = _resized(images, size)
        x = images.permute(0, 2, 3, 1)
        x = self.positions(self.stem(x))
        first = (self.class_token + self.class_position).expand(len(x), 1, -1)
        return torch.cat([first, x.flatten(1, 2)], dim=1), x.shape[1:3]


class Round(nn.Module):
    """Layers in each branch, then the class tokens' visits."""

    def __init__(
        self, widths: Sequence[int], heads: Sequence[int], depths: Sequence[int], *, expansion: int,
        fuse: bool, rates: Sequence[float],
    ):  # fmt: skip
        super().__init__()

        def layer(dim: int, count: int, rate: float) -> Block:
            feed = FeedForward(dim, expansion * dim)
            return Block(dim, TokenAttention(dim, count), feed, norm=norm, drop_path=rate)

        self.layers = nn.ModuleList(
            InTurn(*(layer(dim, count, rate) for rate in rates[:depth]))
            for dim, count, depth in zip(widths, heads, depths)
        )
        ring = [*range(1, len(widths)), 0]
        self.visits = nn.ModuleList(
            Visit(widths[at], widths[other], heads[other], drop_path=rates[-1])
            for at, other in enumerate(ring if fuse else [])
        )

    def forward(
        self, tokens: Sequence[Float[Tensor, "b _ _"]], *, record: Record, plainly: bool
    ) -> list[Float[Tensor, "b _ _"]]:
        tokens = [call(layers, x, record=record, plainly=plainly) for layers, x in zip(self.layers, tokens)]
        if not len(self.visits):
            return tokens
        patches = [x[:, 1:] for x in tokens]
        hosts = [*patches[1:], patches[0]]
        back = [visit(x[:, :1], host) for visit, x, host in zip(self.visits, tokens, hosts)]
        return [torch.cat(pair, dim=1) for pair in zip(back, patches)]


class Visit(nn.Module):
    """A class token goes into another branch's width, asks its patches and itself, and comes back."""

    def __init__(self, dim: int, other: int, heads: int, *, drop_path: float = 0.0):
        super().__init__()
        self.heads = heads
        self.leave = nn.Sequential(norm(dim), nn.GELU(), nn.Linear(dim, other))
        self.norm = norm(other)
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(other, other) for _ in range(4))
        self.drop_path = DropPath(drop_path)
        self.come_back = nn.Sequential(norm(other), nn.GELU(), nn.Linear(other, dim))

    def forward(
        self, visitor: Float[Tensor, "b 1 c"], patches: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b 1 c"]:
        visitor = self.leave(visitor)
        seen = self.norm(torch.cat([visitor, patches], dim=1))
        q = self.to_q(seen[:, :1]).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        heard = hear(q, seen, self.to_k, self.to_v)
        return self.come_back(visitor + self.drop_path(self.to_out(heard)))


def _convolved(channels: int, dim: int, patch: int) -> InTurn:
    require(
        patch in CONVOLVED,
        f"patches holds {patch}, but convolutions are known for {', '.join(map(str, CONVOLVED))}",
    )
    widths = (channels, dim // 4, dim // 2, dim)
    first, second, third = (
        Convolution(before, after, kernel, stride=stride, padding=padding)
        for before, after, (kernel, stride, padding) in zip(widths, widths[1:], CONVOLVED[patch])
    )
    return InTurn(first, nn.ReLU(), second, nn.ReLU(), third)


def _resized(images: Float[Tensor, "b k h w"], size: tuple[int, int]) -> Float[Tensor, "b k i j"]:
    exact = images.to(torch.promote_types(images.dtype, torch.float32))
    return F.interpolate(exact, size=size, mode="bicubic", align_corners=False).to(images.dtype)
