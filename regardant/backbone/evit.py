"""EViT (Liang et al., "Not All Patches are What You Need: Expediting Vision Transformers via Token
Reorganizations", 2022, arXiv 2202.07800): DeiT whose deeper layers see fewer tokens.

In the chosen layers (the fourth, seventh and tenth of twelve), between attention and feed-forward:

    x ← x + attention(LN x)
    a = how much the class token attends to each patch, in the mean over heads, in this very attention
    x ← [class, the ⌈keep · n⌉ patches with the largest a, Σ a_i x_i over the others]
    x ← x + MLP(LN x)

What was fused counts as a patch from there on; with `fuse=False` the others are left out. No parameter is
added, and a model may be run at another `keep` than it was trained at.

`features_only` gives the whole map: a patch that left has the state in which it did, and what was fused
stands nowhere. `record.seen["kept"]` has, layer by layer, which places of the image go on (-1: what was
fused). Where attention runs fused, the class token's row is computed again. The released models add a
position to the class token, which here is part of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import cos, pi
from typing import ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from regardant.backbone.kit.feed_forward import FeedForward
from regardant.backbone.kit.initial import truncated_normal
from regardant.backbone.kit.residual import InTurn
from regardant.backbone.kit.stage import Block, drop_rates
from regardant.backbone.kit.stem import patches
from regardant.backbone.kit.tokens import DEIT, TokenAttention, TokenBackbone
from regardant.core.errors import require
from regardant.core.grid_attention import better_written, written_weights
from regardant.core.grid_position import LearnedMap
from regardant.core.record import Record
from regardant.core.token_choice import FUSED, at, attention_of_class, check_rate, fused, parted

ATTENTION, PLACES, WHOLE = "attention of the class token", "places", "whole map"
"""What is handed on in the record: to the reorganisation; from one to the next; for the features."""


def norm(dim: int) -> nn.LayerNorm:
    return nn.LayerNorm(dim, eps=1e-6)


class GuidingAttention(TokenAttention):
    """Plain attention that tells whom the class token attends to."""

    def forward(
        self, x: Float[Tensor, "b n c"], *, record: Record, plainly: bool = False
    ) -> Float[Tensor, "b n c"]:
        q, k, v = self.project(x)
        if not plainly and not better_written(q, k, v):
            record.handed[ATTENTION] = attention_of_class(q, k, scale=self.scale)
            return self.attend(q, k, v)
        scale = q.shape[-1] ** -0.5 if self.scale is None else self.scale
        weights = (q @ k.mT * scale).softmax(dim=-1) if plainly else written_weights(q, k, scale=scale)
        record.handed[ATTENTION] = weights[:, :, 0, 1:].mean(dim=1)
        return self.to_out((weights @ v).transpose(1, 2).flatten(2))


class Reorganization(nn.Module):
    """Tokens [b, 1 + n, c] → the class token, ⌈keep · n⌉ of the others, and what was fused."""

    def __init__(self, keep: float, *, fuse: bool = True):
        super().__init__()
        self.keep, self.fuse = keep, fuse

    @property
    def keep(self) -> float:
        return self._keep

    @keep.setter
    def keep(self, rate: float) -> None:
        check_rate("keep", rate)
        self._keep = rate

    def scores(self, attention: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
        """What tokens are kept by."""
        return attention

    def forward(self, x: Float[Tensor, "b n c"], *, record: Record) -> Float[Tensor, "b k c"]:
        attention, places = record.handed.pop(ATTENTION), record.handed[PLACES]
        kept, others = parted(self.scores(attention), self.keep)
        if others.shape[1] == 0:
            record.note("kept", places)
            return x
        rest = x[:, 1:]
        if WHOLE in record.handed:
            record.handed[WHOLE] = put_back(record.handed[WHOLE], rest, places)
        x, places = at(x, F.pad(kept + 1, (1, 0))), places.gather(1, kept)
        if self.fuse:
            x = torch.cat([x, fused(rest, attention, kept)], dim=1)
            places = F.pad(places, (0, 1), value=FUSED)
        record.handed[PLACES] = places
        record.note("kept", places)
        return x


class EViT(TokenBackbone):
    """`depth` layers, of which those in `reorganise` hand on a share `keep` of the patches."""

    variants: ClassVar = {
        "evit_tiny": dict(dim=192, heads=3),
        "evit_small_90": dict(dim=384, heads=6, keep=0.9),
        "evit_small_80": dict(dim=384, heads=6, keep=0.8),
        "evit_small": dict(dim=384, heads=6),
        "evit_small_60": dict(dim=384, heads=6, keep=0.6),
        "evit_small_50": dict(dim=384, heads=6, keep=0.5),
        "evit_base": dict(dim=768, heads=12),
    }
    small = (
        dict(dim=8, heads=2, depth=3, reorganise=(0, 1), image=32, patch=8, classes=3),
        dict(dim=12, heads=3, depth=2, reorganise=(1,), keep=0.4, fuse=False, image=16, patch=4, classes=2,
             image_channels=1),
        dict(dim=8, heads=1, depth=1, reorganise=(), image=16, patch=8, classes=2),
    )  # fmt: skip
    exempt: ClassVar = {
        "half precision": "of two patches with almost the same attention half precision may keep the other, "
        "and only what is kept goes through the deeper layers"
    }
    official = DEIT

    def __init__(
        self, *, dim: int, heads: int, depth: int = 12, reorganise: Sequence[int] = (3, 6, 9),
        keep: float = 0.7, fuse: bool = True, classes: int = 1000, image: int = 224, patch: int = 16,
        expansion: int = 4, drop_path: float = 0.0, features_only: bool = False, image_channels: int = 3,
    ):  # fmt: skip
        super().__init__(
            dim=dim, patch=patch, class_at=0, classes=classes, features_only=features_only,
            image_channels=image_channels,
        )  # fmt: skip
        require(depth >= 1, f"depth is {depth}, but a backbone has at least 1 layer")
        strange = sorted(set(reorganise) - set(range(depth)))
        require(not strange, f"reorganise holds {strange[:1]}, but the layers are 0 to {depth - 1}")
        require(image >= patch, f"image is {image}, but it holds at least one patch of {patch}")
        check_rate("keep", keep)

        def layer(number: int, rate: float) -> Block:
            reorganised = number in reorganise
            mixer = GuidingAttention if reorganised else TokenAttention
            return Block(
                dim, mixer(dim, heads), FeedForward(dim, expansion * dim), norm=norm, drop_path=rate,
                between=Reorganization(keep, fuse=fuse) if reorganised else None,
            )  # fmt: skip

        self.stem = patches(image_channels, dim, size=patch, norm=None)
        self.positions = LearnedMap(-(-image // patch), dim)
        rates = drop_rates(drop_path, [depth])[0]
        self.layers = InTurn(*(layer(number, rate) for number, rate in enumerate(rates)))
        self.norm = norm(dim)
        if not features_only:
            self.head = nn.Linear(dim, classes)
        truncated_normal(self)

    def set_keep(self, rate: float) -> None:
        """The share of patches that goes on, from now on: of a schedule, or another than was trained at."""
        for part in self.modules():
            if isinstance(part, Reorganization):
                part.keep = rate

    def tokens(self, images, *, record, plainly, class_only=False):
        height, width = (-(-side // self.strides[0]) for side in images.shape[2:])
        places = torch.arange(height * width, device=images.device)
        record.handed[PLACES] = places.expand(len(images), -1)
        if self.features_only:
            record.handed[WHOLE] = self.class_token.new_zeros(len(images), height * width, self.channels[0])
        return super().tokens(images, record=record, plainly=plainly, class_only=class_only)

    def maps(self, images, *, record, plainly):
        x, size = self.tokens(images, record=record, plainly=plainly)
        whole = self.norm(record.handed.pop(WHOLE))
        yield put_back(whole, x[:, 1:], record.handed[PLACES]).unflatten(1, size)

    def load_official(self, state: Mapping[str, Tensor]) -> Self:
        """Released positions hold the class token's first."""
        split = dict(state)
        if "pos_embed" in split and "cls_token" in split:
            first, split["pos_embed"] = split["pos_embed"].tensor_split([1], dim=1)
            split["cls_token"] = split["cls_token"] + first
        return super().load_official(split)


def put_back(
    whole: Float[Tensor, "b n c"], x: Float[Tensor, "b k c"], places: Tensor
) -> Float[Tensor, "b n c"]:
    """The map with these tokens at their places; those that have none are left out."""
    count = whole.shape[1]
    room = torch.cat([whole, whole[:, :1]], dim=1)
    index = (places % (count + 1))[..., None].expand(-1, -1, x.shape[-1])
    return room.scatter(1, index, x.to(room.dtype))[:, :count]


def keep_at(done: float, keep: float, *, begin: float = 1 / 30, end: float = 11 / 30) -> float:
    """The share of patches that goes on when a training from scratch is `done` (0 to 1): all of them until
    `begin`, `keep` from `end` on (10 and 110 of 300 epochs), along half a cosine in between."""
    check_rate("keep", keep)
    require(0 <= begin < end, f"begin is {begin} and end is {end}, but what begins ends later")
    way = min(max((done - begin) / (end - begin), 0.0), 1.0)
    return keep + (1 - keep) * (1 + cos(pi * way)) / 2
