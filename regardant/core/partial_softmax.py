"""Softmax over keys that come in parts: each part with its logsumexp, merged under one softmax.

    L = log Σ_parts exp(L_part),    out = Σ_parts exp(L_part - L) · out_part

The gradient needs no parts of its own: with the whole row's `out` and `L`, P = exp(s - L) and
δ = Σ(grad ∘ out) are those of the whole softmax, whichever keys are at hand, and so a flash backward
kernel fed with the whole row's `out` and `L` gives exactly a part's share of the gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from regardant.core.errors import require
from regardant.core.tiles import Piece, Tiles

Source = Sequence[Tiles]
"""Tiles whose query rows are disjoint. Rows that occur in several sources share one softmax."""

PIECE_ROWS = 4096
"""Query rows that are worked on at once, in few calls whose threads wait for each other."""

BACKWARD_ROWS = 1024
"""The same on the way back, where the keys' gradients of a piece must fit a CPU's cache."""


def partial_attention(
    q: Float[Tensor, "b h m d"], k: Float[Tensor, "b g n d"], v: Float[Tensor, "b g n d"],
    addend: Float[Tensor, "#b #h m n"] | Float[Tensor, "m n"] | None = None,
    *, scale: float, causal: bool = False,
) -> tuple[Float[Tensor, "b h m d"], Float[Tensor, "b h m"]]:  # fmt: skip
    """Attention over these keys alone, and the logsumexp of each row's logits.

    `addend` is added to the logits: a bias, -inf where a row does not see a key. A row that sees none
    gives zeros and -inf. Not differentiable by itself: see `attend_parts`.
    """
    out, lse = _forward(q, k, v, addend, scale=scale, causal=causal)
    return out, lse if addend is None else lse.masked_fill(addend.amax(dim=-1) == -inf, -inf)


def partial_gradients(
    grad_out: Float[Tensor, "b h m d"],
    q: Float[Tensor, "b h m d"], k: Float[Tensor, "b g n d"], v: Float[Tensor, "b g n d"],
    out: Float[Tensor, "b h m d"], lse: Float[Tensor, "b h m"],
    addend: Float[Tensor, "#b #h m n"] | Float[Tensor, "m n"] | None = None,
    *, scale: float, causal: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """These keys' share of the gradients for q, k and v. `out` and `lse` are those of the whole rows;
    `lse` must be finite, whatever it is, for rows that see no key."""
    if _flash(q):
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad_out, q, k, v, out, lse, 0.0, causal, attn_mask=_mask(addend), scale=scale
        )
    weights = (_logits(q, k, addend, scale, causal) - lse[..., None]).exp()
    shared = k.shape[1]
    delta = (grad_out * out).sum(dim=-1, keepdim=True)
    grad_weights = _by_key_head(grad_out, shared) @ v.transpose(-1, -2)
    grad_logits = weights * (grad_weights.view_as(weights) - delta) * scale
    grouped, weights = _by_key_head(grad_logits, shared).to(k.dtype), weights.to(k.dtype)
    grad_q = (grouped @ k).view(q.shape)
    grad_k = grouped.transpose(-1, -2) @ _by_key_head(q, shared)
    grad_v = _by_key_head(weights, shared).transpose(-1, -2) @ _by_key_head(grad_out, shared)
    return grad_q, grad_k, grad_v


def merge(
    parts: Sequence[tuple[Float[Tensor, "*rows d"], Float[Tensor, "*rows"]]],
) -> tuple[Float[Tensor, "*rows d"], Float[Tensor, "*rows"]]:
    """Several parts' outputs and logsumexps → those of the softmax over all their keys."""
    require(len(parts) > 0, "parts is empty, but merge wants at least one (out, lse)")
    sums = torch.stack([lse for _, lse in parts])
    total = sums.logsumexp(dim=0)
    shares = (sums - total.masked_fill(total == -inf, 0)).exp()
    out = sum(share[..., None].to(out.dtype) * out for share, (out, _) in zip(shares, parts))
    return out, total


def attend_parts(
    q: Float[Tensor, "b h m d"], k: Float[Tensor, "b g n d"], v: Float[Tensor, "b g n d"],
    sources: Sequence[Source], *, scale: float, backward: Sequence[Source] | None = None,
) -> Float[Tensor, "b h m d"]:  # fmt: skip
    """Softmax attention over the pairs of all sources together; differentiable once, in memory that is
    linear in the rows. `backward` may cut the same pairs into other tiles for the way back."""
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        return _Parts.apply(q, k, v, sources, backward or sources, scale)
    return _attend(q, k, v, sources, scale, keep=False)[0]


class _Parts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, sources, backward, scale):
        out, lse = _attend(q, k, v, sources, scale, keep=True)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.sources, ctx.scale = backward, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        q, k, v, out, lse = ctx.saved_tensors
        q, k, v, grad_out = (_by_rows(x) for x in (q, k, v, grad_out))
        exact, complete = _exact(q), _complete(ctx.sources[0], q)
        grad_q = _by_position(q, exact, fill=None if complete else 0)
        grad_k, grad_v = _by_position(k, exact, fill=0), _by_position(v, exact, fill=0)
        for which, source in enumerate(ctx.sources):
            for piece in _pieces(source, len(q), BACKWARD_ROWS):
                tile = [piece.queries(x, exact) for x in (grad_out, q)]
                tile += [piece.keys(x, exact) for x in (k, v)]
                tile += [piece.queries(out, exact), piece.queries(lse[..., None])[..., 0]]
                parts = partial_gradients(*tile, piece.addend(tile[0]), scale=ctx.scale, causal=piece.causal)
                (piece.add if which > 0 else piece.put)(grad_q, parts[0])
                piece.add_to_keys(grad_k, parts[1])
                piece.add_to_keys(grad_v, parts[2])
                del tile, parts
        return grad_q.to(q.dtype), grad_k.to(k.dtype), grad_v.to(v.dtype), None, None, None


def _attend(q, k, v, sources, scale, *, keep):
    q, k, v = (_by_rows(x) for x in (q, k, v))
    exact, whole = _exact(q), len(sources) == 1
    out = _by_position(q, q.dtype if whole else exact, fill=None if _complete(sources[0], q) else 0)
    lse = _by_position(q[..., 0], exact, fill=-inf) if keep or not whole else None
    for which, source in enumerate(sources):
        for piece in _pieces(source, len(q), PIECE_ROWS):
            tile = (piece.queries(q, exact), piece.keys(k, exact), piece.keys(v, exact))
            addend = piece.addend(tile[0])
            if whole:
                part, sums = _forward(*tile, addend, scale=scale, causal=piece.causal)
            else:
                part, sums = partial_attention(*tile, addend, scale=scale, causal=piece.causal)
            if which > 0:
                before = piece.queries(out), piece.queries(lse[..., None])[..., 0]
                part, sums = merge([before, (part, sums)])
            piece.put(out, part)
            if lse is not None:
                piece.put(lse[..., None], sums[..., None])
            del part, sums  # so that the next piece is written to the same, mapped and cached, memory
    if keep:
        lse.masked_fill_(lse == -inf, 0)
    return out.to(q.dtype), lse


def _complete(source: Source, q: Tensor) -> bool:
    """Whether the tiles of a source write every row."""
    return sum(tiles.covered for tiles in source) == q.shape[2]


def _pieces(source: Source, batch: int, rows: int) -> list[Piece]:
    return [piece for tiles in source for piece in tiles.pieces(batch, rows)]


def _by_position(x: Tensor, dtype: torch.dtype, *, fill: float | None) -> Tensor:
    """A tensor of the shape of `x` [b, h, n, …], in memory position by position: as the kernels write."""
    shape = (x.shape[0], x.shape[2], x.shape[1], *x.shape[3:])
    made = torch.empty(shape, dtype=dtype, device=x.device) if fill is None else None
    made = torch.full(shape, fill, dtype=dtype, device=x.device) if made is None else made
    return made.transpose(1, 2)


def _by_rows(x: Tensor) -> Tensor:
    """The kernels read any strides, but the channels of a row must stand side by side."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _exact(x: Tensor) -> torch.dtype:
    """Half precision is worked on in single: few CPUs multiply halves fast, and none sums them well."""
    return torch.promote_types(x.dtype, torch.float32) if x.device.type == "cpu" else x.dtype


def _flash(q: Tensor) -> bool:
    return q.device.type == "cpu" and hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu")


def _mask(addend: Tensor | None) -> Tensor | None:
    """The kernel takes two or four axes."""
    return addend[None] if addend is not None and addend.ndim == 3 else addend


def _forward(q, k, v, addend, *, scale, causal):
    if _flash(q):
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, causal, attn_mask=_mask(addend), scale=scale
        )
    logits = _logits(q, k, addend, scale, causal)
    lse = logits.logsumexp(dim=-1)
    lse = lse.masked_fill(lse == -inf, 0)
    weights = (logits - lse[..., None]).exp()
    return (_by_key_head(weights.to(v.dtype), k.shape[1]) @ v).view(*q.shape[:3], v.shape[-1]), lse


def _logits(q, k, addend, scale, causal):
    logits = (_by_key_head(q, k.shape[1]) @ k.transpose(-1, -2)).view(*q.shape[:3], k.shape[2])
    logits = logits.to(torch.promote_types(q.dtype, torch.float32)) * scale
    if addend is not None:
        logits = logits + _mask(addend)
    if causal:
        later = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        logits = logits.masked_fill(later, -inf)
    return logits


def _by_key_head(x: Float[Tensor, "b h m n"], shared: int) -> Float[Tensor, "b g r*m n"]:
    """The query heads that share a key head, stacked into rows: no copy of the keys is needed."""
    return x.reshape(x.shape[0], shared, -1, x.shape[-1])
