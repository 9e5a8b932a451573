"""Softmax attention inside the groups of a map, with any position: windows, grids, stripes, lines, halos.

`attend_groups` is the arithmetic; `GroupedAttention` the layer, which wants to be told its patterns only.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from regardant.core.checks import check_heads
from regardant.core.grid_geometry import GridPattern
from regardant.core.grid_groups import Groups, groups_of
from regardant.core.grid_mixer import GridMixer
from regardant.core.grid_position import GridPosition
from regardant.core.pattern import Or
from regardant.core.product import Linear
from regardant.core.supports import Supports

CACHED = 2**21
"""So many logits still fit the cache that the cores of a CPU share."""
WIDER = 7
"""So many times the memory of the queries may be taken for them, which grows as the map does."""
FEW, MATRICES = 200, 8
"""Where nothing learns the fused kernel is slower up to so many keys, if there are so many matrices for the
cores to share."""


def attend_groups(
    q: Float[Tensor, "bg h m d"], k: Float[Tensor, "bg h n d"], v: Float[Tensor, "bg h n e"],
    *, mask: Bool[Tensor, "g #m n"] | None = None, added: Float[Tensor, "#bg h m n"] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "bg h m e"]:  # fmt: skip
    """softmax(q kᵀ · scale + added) v inside each group; `mask` differs by group and not by sample.

    The groups of a sample stand together. Every query must see some key.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    hidden = None
    if mask is not None:
        hidden = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(~mask, -inf)[:, None]
    if better_written(q, k, v, changed=not (mask is None and added is None)):
        return written_weights(q, k, hidden=hidden, added=added, scale=scale) @ v
    if hidden is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=added, scale=scale)
    if added is not None and len(added) > 1:  # by the query
        hidden = (added.unflatten(0, (-1, len(hidden))) + hidden).flatten(0, 1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=hidden, scale=scale)
    hidden = hidden.expand(-1, -1, q.shape[2], -1) if added is None else hidden + added
    # Sample by sample, so that what is added need not be held once for each.
    parts = zip(*(part.split(len(hidden)) for part in (q, k, v)))
    outs = [F.scaled_dot_product_attention(*part, attn_mask=hidden, scale=scale) for part in parts]
    return outs[0] if len(outs) == 1 else torch.cat(outs)


def _fits_cache(q: Tensor, k: Tensor) -> bool:
    """Whether all logits may be written out on a CPU before they leave its cache."""
    fits = q.shape[:3].numel() * k.shape[2] <= CACHED
    return fits and q.device.type == "cpu" and q.dtype in (torch.float32, torch.float64)


def better_written(q: Tensor, k: Tensor, v: Tensor, *, changed: bool = False) -> bool:
    """Whether writing the logits out beats the fused kernel on a CPU: of small groups, and where something
    changed them that must get its gradient."""
    learns = torch.is_grad_enabled() and any(each.requires_grad for each in (q, k, v))
    if learns and changed:
        return q.device.type == "cpu" and q.dtype in (torch.float32, torch.float64)
    keys = k.shape[2]
    better = learns or (keys <= FEW and q.shape[:2].numel() >= MATRICES)
    return better and keys <= WIDER * q.shape[3] and _fits_cache(q, k)


def written_weights(
    q: Float[Tensor, "bg h m d"], k: Float[Tensor, "bg h n d"],
    *, hidden: Float[Tensor, "g 1 _ n"] | None = None, added: Float[Tensor, "#bg h m n"] | None = None,
    scale: float,
) -> Float[Tensor, "bg h m n"]:  # fmt: skip
    """The softmax with its logits written out: what is added then gets its gradient for the least."""
    if 1 not in q.shape[:2]:  # or the product would copy them, and turn the keys in memory
        q, k = q.contiguous(), k.contiguous()
    logits = (q * scale) @ k.mT
    if added is not None:
        logits = logits.add_(added)
    if hidden is not None and len(hidden) == len(logits):
        logits = logits.add_(hidden)
    elif hidden is not None:  # not in place: of a view that would cost a copy on the way back
        logits = (logits.unflatten(0, (-1, len(hidden))) + hidden).flatten(0, 1)
    return logits.softmax(dim=-1)


def attend_plainly(
    q: Float[Tensor, "b h n d"], k: Float[Tensor, "b h n d"], v: Float[Tensor, "b h n e"],
    pattern: GridPattern | None, size: tuple[int, int],
    *, position: GridPosition | None = None, step: tuple[int, int] = (1, 1), scale: float | None = None,
) -> Float[Tensor, "b h n e"]:  # fmt: skip
    """The same over the whole map, every pair written out; `step` is how far neighbours of a group stand
    apart."""
    at = torch.arange(size[0] * size[1], device=q.device)
    logits = (q @ k.mT) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if position is not None and position.biases:
        rows, columns = at // size[1], at % size[1]
        apart = [(along[None, :] - along[:, None]) // by for along, by in zip((rows, columns), step)]
        logits = logits + position.added(q, *apart)
    if pattern is not None:
        logits = logits.masked_fill(~pattern.allows(at[:, None], at[None, :]), -inf)
    return logits.softmax(dim=-1) @ v


class GroupedAttention(GridMixer):
    """Multi-head attention inside groups of positions; heads may have different groups.

    A subclass says `patterns`: what the heads see on a map of given size, one for all of them or one for
    each of as many equal groups of heads, the first heads first. `position` is one `GridPosition` or one
    for each group of heads. Queries, keys and values come from one projection.
    """

    supports = Supports(
        causal=False, cross=False, causal_cross=False, step=False, pattern=False, padding=False,
        grouped=False, time=1.0, memory=1.0, state=0.0,
    )  # fmt: skip

    def __init__(
        self, dim: int, heads: int, *, head_dim: int | None = None,
        position: GridPosition | Sequence[GridPosition] | None = None, bias: bool = True,
        scale: float | None = None,
    ):  # fmt: skip
        super().__init__()
        check_heads(dim, heads, None, head_dim)
        self.dim, self.heads, self.scale = dim, heads, scale
        self.head_dim = dim // heads if head_dim is None else head_dim
        given = (position,) if isinstance(position, nn.Module) or position is None else position
        self.positions = nn.ModuleList(GridPosition() if each is None else each for each in given)
        self.to_qkv = Linear(dim, 3 * heads * self.head_dim, bias=bias)
        self.to_out = Linear(heads * self.head_dim, dim, bias=bias)

    def patterns(self, *size: int) -> Sequence[GridPattern | None]:
        """What each group of heads may see on a map of this size; None: everything."""
        raise TypeError(f"{type(self).__name__} must say what its heads see")

    def _parts(self, *size: int) -> list[tuple[GridPattern | None, GridPosition, slice]]:
        """Pattern, position and heads of each group of heads."""
        patterns, places = self.patterns(*size), list(self.positions)
        count = len(patterns)
        if count == 1 == len(places):
            return [(patterns[0], places[0], slice(0, self.heads))]
        if self.heads % count:
            raise ValueError(f"heads is {self.heads}, but they look in {count} different ways")
        if len(places) not in (1, count):
            raise ValueError(f"position holds {len(places)}, but the heads look in {count} different ways")
        each = self.heads // count
        places *= count // len(places)
        return [
            (pattern, place, slice(which * each, (which + 1) * each))
            for which, (pattern, place) in enumerate(zip(patterns, places))
        ]

    def receptive_field(self, *size):
        patterns = self.patterns(*size)
        if any(pattern is None for pattern in patterns):
            return None
        for place in self.positions:
            patterns = [place.widen(pattern) for pattern in patterns]
        return patterns[0] if len(set(patterns)) == 1 else Or.of(*patterns)

    def forward(self, x, *, record=None):
        self.check_map(x, self.to_qkv.weight)
        for place in self.positions:
            x = place.embed(x)
        size = x.shape[1:3]
        parts = self._parts(*size)
        if len(parts) == 1:
            ((pattern, place, _),) = parts
            groups = groups_of(pattern, size)
            # Cut before the projection: a third of what would be moved after it.
            cut = groups.cut(x)
            each = self.to_qkv(cut).view(*cut.shape[:2], 3, self.heads, self.head_dim)
            return groups.join(self.to_out(self._inside(each, groups, place)))
        each = self.to_qkv(x).unflatten(-1, (3, self.heads, -1))
        outs = []
        for pattern, place, heads in parts:
            groups = groups_of(pattern, size)
            outs.append(groups.join(self._inside(groups.cut(each[..., heads, :]), groups, place)))
        return self.to_out(torch.cat(outs, dim=-1))

    def _inside(
        self, qkv: Float[Tensor, "bg n 3 e d"], groups: Groups, place: GridPosition
    ) -> Float[Tensor, "bg n c"]:
        """What the heads hear inside the groups, side by side."""
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        added = place.between(q, groups.cell, groups.cell) if place.biases else None
        heard = attend_groups(q, k, v, mask=groups.mask(q.device), added=added, scale=self.scale)
        heard = heard.transpose(1, 2).flatten(2)
        if not place.mixes_values:
            return heard
        return heard + self._of_values(v, groups, place)

    @staticmethod
    def _of_values(v: Tensor, groups: Groups, place: GridPosition) -> Float[Tensor, "bg n c"]:
        if any(groups.shift):
            raise ValueError(
                f"the windows are shifted by {groups.shift}, but a convolution of the values would look "
                "across the border that a shift makes inside a window"
            )
        values = v.transpose(1, 2).flatten(2)
        if groups.padded != groups.size:
            # What fills the map up is a projection of zeros, which a convolution must not take for values.
            real = groups.cut(torch.ones(1, *groups.size, 1, dtype=v.dtype, device=v.device))
            values = (values.unflatten(0, (-1, len(real))) * real).flatten(0, 1)
        return place.values(values.unflatten(1, groups.cell)).flatten(1, 2)

    def mixing_matrix(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b e n n"]:
        """How much each position takes of each position's values, head by head, positions row by row.

        All of it is written out: to look at, not to run.
        """
        q, k, v, size = self._written_out(x)
        each = torch.eye(v.shape[2], dtype=v.dtype, device=v.device).expand(*v.shape[:2], -1, -1)
        found = [
            attend_plainly(
                q[:, heads], k[:, heads], each[:, heads], pattern, size, position=place,
                step=groups_of(pattern, size).step, scale=self.scale,
            )
            for pattern, place, heads in self._parts(*size)
        ]  # fmt: skip
        return torch.cat(found, dim=1)

    def _written_out(self, x: Float[Tensor, "b h w c"]) -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
        """Queries, keys and values [b, e, n, d] of the whole map, and its size."""
        self.check_map(x, self.to_qkv.weight)
        for place in self.positions:
            x = place.embed(x)
        q, k, v = self.to_qkv(x.flatten(1, 2)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v, (x.shape[1], x.shape[2])

    def reference(self, x):
        q, k, v, size = self._written_out(x)
        outs = []
        for pattern, place, heads in self._parts(*size):
            own = (part[:, heads] for part in (q, k, v))
            step = groups_of(pattern, size).step
            heard = attend_plainly(*own, pattern, size, position=place, step=step, scale=self.scale)
            heard = heard.transpose(1, 2).flatten(2)
            if place.mixes_values:
                values = v[:, heads].transpose(1, 2).flatten(2).unflatten(1, size)
                heard = heard + place.values_plainly(values, pattern, step).flatten(1, 2)
            outs.append(heard)
        return self.to_out(torch.cat(outs, dim=-1)).unflatten(1, size)


class WholeMapAttention(GroupedAttention):
    """Every position sees every other: plain attention on a map."""

    supports = Supports(
        causal=False, cross=False, causal_cross=False, step=False, pattern=False, padding=False,
        grouped=False, time=2.0, memory=1.0, state=0.0,
    )  # fmt: skip

    def patterns(self, *size):
        return (None,)


def joint_softmax(logits: Sequence[Float[Tensor, "*rows _"]]) -> tuple[Tensor, ...]:
    """One softmax over keys that come from several sources; the weights of each.

    For parts that are not written out, `regardant.core.partial_softmax.merge` does the same to outputs.
    """
    weights = torch.cat(list(logits), dim=-1).softmax(dim=-1)
    return weights.split([part.shape[-1] for part in logits], dim=-1)
