"""Backbones of one size throughout: patches, then layers, and a token for the class where there is one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isqrt

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from regardant.backbone.kit.backbone import Backbone
from regardant.backbone.kit.field import Field, field_of, in_turn
from regardant.backbone.kit.official import Rule
from regardant.backbone.kit.residual import call
from regardant.backbone.kit.stage import Block
from regardant.core.checks import check_heads
from regardant.core.few_queries import hear_unmade
from regardant.core.grid_attention import attend_groups
from regardant.core.product import Linear
from regardant.core.record import Record


def square_map(table: Float[Tensor, "1 n c"]) -> Float[Tensor, "h w c"]:
    """Released positions of a square grid as a map; what is no square stays, and will not fit."""
    side = isqrt(table.shape[1])
    return table[0].unflatten(0, (side, side)) if side**2 == table.shape[1] else table


DEIT = (
    Rule(r"^patch_embed\.proj\.", "stem.0."),
    Rule(r"^pos_embed$", "positions.table", change=square_map),
    Rule(r"^cls_token$", "class_token"),
    Rule(r"^blocks\.", "layers."),
    Rule(r"\.norm1\.", ".mix.norm."),
    Rule(r"\.norm2\.", ".feed.norm."),
    Rule(r"\.attn\.proj\.", ".mix.branch.to_out."),
    Rule(r"\.attn\.qkv\.", ".mix.branch.to_qkv."),
    Rule(r"\.mlp\.fc1\.", ".feed.branch.widen."),
    Rule(r"\.mlp\.fc2\.", ".feed.branch.narrow."),
)
"""Names of DeiT's released weights, and of those built on its code, for common blocks of TokenAttention."""


class TokenAttention(nn.Module):
    """Plain multi-head attention among all tokens [b, n, c], one projection for queries, keys and values."""

    def __init__(self, dim: int, heads: int, *, qkv_bias: bool = True, scale: float | None = None):
        super().__init__()
        check_heads(dim, heads, None, None)
        self.heads, self.scale = heads, scale
        self.to_qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.to_out = Linear(dim, dim)

    def project(self, x: Float[Tensor, "b n c"]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [b, heads, n, d]."""
        q, k, v = self.to_qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Float[Tensor, "b n c"]:
        heard = attend_groups(q, k, v, scale=self.scale)
        return self.to_out(heard.transpose(1, 2).flatten(2))

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        return self.attend(*self.project(x))

    def first(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b 1 c"]:
        """What the first token hears."""
        biases = (None,) * 3 if self.to_qkv.bias is None else self.to_qkv.bias.chunk(3)
        asking, keys, values = zip(self.to_qkv.weight.chunk(3), biases)
        q = F.linear(x[:, :1], *asking).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return self.to_out(hear_unmade(q, x, keys, values, scale=self.scale))

    def reference(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        q, k, v = self.project(x)
        scale = q.shape[-1] ** -0.5 if self.scale is None else self.scale
        weights = (q @ k.mT * scale).softmax(dim=-1)
        return self.to_out((weights @ v).transpose(1, 2).flatten(2))


class TokenBackbone(Backbone):
    """Patches, positions, layers at one size, a norm.

    Set `stem` (images → map), `positions` (map → map), `layers`, `norm` and `head`. Layers see the map
    [b, h, w, c] until the class token comes in (before layer `class_at`), and tokens [b, 1 + n, c] from there
    on; without a class token they see the map throughout. The head reads the class token [b, c] where there
    is one, and the map where there is none.
    """

    def __init__(self, *, dim: int, patch: int, class_at: int | None = 0, **shared):
        super().__init__(strides=(patch,), channels=(dim,), **shared)
        self.class_at = class_at
        self.class_token = None if class_at is None else nn.Parameter(torch.empty(dim))
        if self.class_token is not None:
            nn.init.trunc_normal_(self.class_token, std=0.02)
        self.positions: nn.Module = nn.Identity()
        self.layers: Sequence[nn.Module] = nn.ModuleList()
        self.norm: nn.Module = nn.Identity()

    def tokens(
        self, images: Float[Tensor, "b k h w"], *, record: Record, plainly: bool, class_only: bool = False
    ) -> tuple[Float[Tensor, "b *n c"], tuple[int, int]]:
        """What the last layer gives, normed, and the size of the map of patches. With `class_only` the last
        layer may leave out all tokens but that of the class, which comes first."""
        x = images.permute(0, 2, 3, 1)
        x = self.positions(call(self.stem, x, record=record, plainly=plainly))
        size = x.shape[1:3]
        for index, layer in enumerate(self.layers):
            if index == self.class_at:
                x = torch.cat([self.class_token.expand(len(x), 1, -1), x.flatten(1, 2)], dim=1)
            last = class_only and index == len(self.layers) - 1
            if last and not plainly and isinstance(layer, Block) and layer.knows_first(x):
                x = layer.first(x)
            else:
                x = call(layer, x, record=record, plainly=plainly)
        return self.norm(x), size

    def maps(self, images, *, record, plainly) -> Iterator[Tensor]:
        x, size = self.tokens(images, record=record, plainly=plainly)
        yield x if self.class_at is None else x[:, 1:].unflatten(1, size)

    def _run(self, images, record, *, plainly):
        if self.features_only or self.class_at is None:
            return super()._run(images, record, plainly=plainly)
        self.check_images(images)
        x, _ = self.tokens(images, record=record, plainly=plainly, class_only=True)
        return call(self.head, x[:, 0], record=record, plainly=plainly)

    def fields(self, height, width):
        found = field_of(self.stem, height, width)
        if self.class_at is not None:
            return [Field.everything(found.before, found.after)]
        return [found.then(in_turn((self.positions, *self.layers, self.norm), *found.after))]
