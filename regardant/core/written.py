"""The masked equation written out: weights that can be asked for, normalised by anything.

    out_i = Σ_j normaliser(q_i·k_j · scale + bias_ij | j visible to i)_j v_j

The oracle of all plans (`attend_dense`), and the way to run whatever no fused kernel knows: another
normaliser than softmax, or a bias that learns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from regardant.core.pattern import Pattern
from regardant.core.tiles import Run, RunPiece, Scattered
from regardant.core.visibility import Bias, Visibility

KEPT = 2**20
"""Weights that are kept for the way back, in all heads together."""

Normaliser = Callable[[Float[Tensor, "*rows n"], Bool[Tensor, "*rows n"]], Float[Tensor, "*rows n"]]


def softmax(logits: Float[Tensor, "*rows n"], mask: Bool[Tensor, "*rows n"]) -> Float[Tensor, "*rows n"]:
    """The default normaliser."""
    return logits.softmax(dim=-1)


def row_weights(
    q: Float[Tensor, "b h m d"], k: Float[Tensor, "b g n d"], mask: Bool[Tensor, "#b #h m n"] | None = None,
    *, scale: float | None = None, bias: Float[Tensor, "#h m n"] | Float[Tensor, "#b #h m n"] | None = None,
    normaliser: Normaliser | None = None,
) -> Float[Tensor, "b h m n"]:  # fmt: skip
    """What these rows take of these keys, in float32 at least; nothing where a row sees no key."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    exact = torch.promote_types(q.dtype, torch.float32)
    if q.device.type == "cpu":  # few CPUs multiply halves fast
        q, k, scale = q.to(exact) * scale, k.to(exact), 1
    batch, heads, rows, _ = q.shape
    shared, keys = k.shape[1], k.shape[2]
    # Query heads that share a key head are stacked into rows, so that keys are not copied.
    logits = (q.reshape(batch, shared, -1, q.shape[-1]) @ k.transpose(-1, -2)).to(exact)
    logits = logits.view(batch, heads, rows, keys)
    logits = logits if scale == 1 else logits * scale
    if bias is not None:
        logits = logits + bias.to(exact)
    if mask is None:
        seen = torch.ones((), dtype=torch.bool, device=q.device).expand(logits.shape)
        return (normaliser or softmax)(logits, seen)
    # A row without keys is normalised as if it saw all of them and emptied after, so that no NaN
    # ever comes up, in the gradients neither.
    empty = ~mask.any(dim=-1, keepdim=True)
    logits = logits.masked_fill(~(mask | empty), -inf)
    weights = (normaliser or softmax)(logits, (mask | empty).expand(logits.shape))
    return weights.masked_fill(~mask, 0)


def weighted_values(
    weights: Float[Tensor, "b h m n"], v: Float[Tensor, "b g n e"]
) -> Float[Tensor, "b h m e"]:  # fmt: skip
    """Weights times values, which heads may share."""
    batch, heads, rows, keys = weights.shape
    dtype, exact = v.dtype, torch.promote_types(v.dtype, torch.float32)
    if v.device.type == "cpu":
        v = v.to(exact)
    out = weights.to(v.dtype).view(batch, v.shape[1], -1, keys) @ v
    return out.view(batch, heads, rows, v.shape[-1]).to(dtype)


def attend_rows(
    q: Float[Tensor, "b h m d"], k: Float[Tensor, "b g n d"], v: Float[Tensor, "b g n e"],
    mask: Bool[Tensor, "#b #h m n"] | None = None, *, scale: float | None = None,
    bias: Float[Tensor, "#h m n"] | Float[Tensor, "#b #h m n"] | None = None,
    normaliser: Normaliser | None = None,
) -> Float[Tensor, "b h m e"]:  # fmt: skip
    """These rows against these keys, all pairs written out. A row that sees no key gives zeros."""
    return weighted_values(row_weights(q, k, mask, scale=scale, bias=bias, normaliser=normaliser), v)


def attend_dense(
    q: Float[Tensor, "b h m d"], k: Float[Tensor, "b g n d"], v: Float[Tensor, "b g n e"],
    pattern: Pattern | None = None, *, scale: float | None = None, bias: Bias | None = None,
    normaliser: Normaliser | None = None, offset: int = 0,
) -> Float[Tensor, "b h m e"]:  # fmt: skip
    """The plain masked equation over all pairs at once, in any dtype: the oracle of the tests."""
    i = torch.arange(offset, offset + q.shape[2], device=q.device)
    j = torch.arange(k.shape[2], device=q.device)
    mask = None if pattern is None else pattern.block(i, j, batch=q.shape[0], heads=q.shape[1])
    added = None if bias is None else bias.block(i, j)
    return attend_rows(q, k, v, mask, scale=scale, bias=added, normaliser=normaliser)


def attend_written(
    q: Float[Tensor, "b h m d"], k: Float[Tensor, "b g n d"], v: Float[Tensor, "b g n e"],
    tiles: Iterable[Run | Scattered], sees: Visibility, *, scale: float, normaliser: Normaliser | None,
    piece_rows: int,
) -> Float[Tensor, "b h m e"]:  # fmt: skip
    """The equation tile by tile. Each row's keys must all be in one tile, or lie before it (sinks).

    With gradients, a tile's weights are computed again on the way back instead of being kept, unless they
    are few.
    """
    tiles = list(tiles)
    pieces = [piece for part in tiles for piece in part.pieces(len(q), piece_rows)]
    few = sum(part.pairs for part in tiles) * q.shape[0] * q.shape[1] <= KEPT
    keep = few or len(pieces) == 1 or not torch.is_grad_enabled()
    places, rows = [], []
    for piece in pieces:

        def run(q, k, v, piece=piece):
            return _tile(q, k, v, piece, sees, scale=scale, normaliser=normaliser)

        part = run(q, k, v) if keep else checkpoint(run, q, k, v, use_reentrant=False)
        if piece.is_whole(q):
            return part
        place, flat = piece.by_position(part, len(q))
        places.append(place)
        rows.append(flat)
    out = q.new_zeros(q.shape[0], q.shape[2], q.shape[1], v.shape[-1])
    if rows:
        out = out.index_copy(1, torch.cat(places), torch.cat(rows, dim=1))
    return out.transpose(1, 2)


def _tile(q, k, v, piece, sees, *, scale, normaliser):
    rows, columns = piece.positions(q.device)
    keys, values = piece.keys(k), piece.keys(v)
    if isinstance(piece, RunPiece) and (first := min(sees.reach.first, piece.run.key)) > 0:
        columns = torch.cat([torch.arange(first, device=q.device)[None], columns], dim=1)
        keys, values = (torch.cat([x[:, :, :first], part], dim=2) for x, part in ((k, keys), (v, values)))
    mask, bias = sees.mask(rows, columns), sees.biases(rows, columns)
    if len(rows) > 1:
        mask, bias = (None if x is None else x.expand(len(q), *x.shape[1:]) for x in (mask, bias))
    mask, bias = (None if x is None else x.flatten(0, 1) for x in (mask, bias))
    return attend_rows(piece.queries(q), keys, values, mask, scale=scale, bias=bias, normaliser=normaliser)
