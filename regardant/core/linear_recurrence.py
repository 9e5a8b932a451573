"""The linear recurrence with a matrix state whose decay changes from token to token, in linear time.

    S_t = diag(a_t) S_{t-1} + k_t v_tᵀ        o_t = S_tᵀ q_t        a_t = exp(log_decay_t) ≤ 1

Linear attention (a = 1), gated linear attention, Mamba-2 and its like are this; a_t is a vector over the
key's channels, or one number. (Where it differs from value to value, see `regardant.core.scan`.)

The sequence is cut into blocks of c tokens; between blocks goes the state. Inside a block the score of
r and s ≤ r is Σ_d q_rd k_sd exp(L_rd - L_sd), L being the running sum of log_decay. Taken apart into
exp(L_r) and exp(-L_s) it would be a product of matrices, and overflow. So the block is halved: whatever
goes from the first half to the second passes the middle, and with the sums up to it and from it on,

    P_r = Σ_{middle < u ≤ r} log a_u        R_s = Σ_{s < u ≤ middle} log a_u        both ≤ 0

the scores are (q e^P)(k e^R)ᵀ, safely; and each half is halved again. The sums of one size come from those
of half the size by an addition, never from a difference, so that a decay of 0 costs no precision behind it.
Backward runs the same halves from right to left, and the gradient of log_decay gathers at P and R and flows
back through these additions: it is a sum of what belongs to it, again without a difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from regardant.core.errors import require


def linear_recurrence(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b h n d"],
    v: Float[Tensor, "b h n e"],
    log_decay: Float[Tensor, "b h n #d"],
    *,
    state: Float[Tensor, "b h d e"] | None = None,
    return_state: bool = False,
    block: int = 64,
) -> Float[Tensor, "b h n e"] | tuple[Float[Tensor, "b h n e"], Float[Tensor, "b h d e"]]:
    """o_t = S_tᵀ q_t, and the state behind the last token if asked.

    `log_decay` is log a_t ≤ 0, one for each channel of the key or one for all; -1e4 forgets everything.
    `state` is S before the first token. States are float32 for half-precision inputs; time and memory,
    also of the backward pass, are linear in n.
    """
    _check(q, k, v, log_decay, state)
    require(
        block >= 1 and block & (block - 1) == 0, f"block is {block}, but a block is halved: take a power of 2"
    )
    exact = torch.promote_types(q.dtype, torch.float32)
    if state is None:
        state = q.new_zeros(*q.shape[:2], q.shape[3], v.shape[3], dtype=exact)
    flat = (x.flatten(0, 1) for x in (q, k, v, log_decay, state))
    out, last = _Recurrence.apply(*flat, block)
    out, last = out.unflatten(0, q.shape[:2]), last.unflatten(0, q.shape[:2])
    return (out, last) if return_state else out


def linear_recurrence_reference(q, k, v, log_decay, *, state=None):
    """The equation as it stands, token by token."""
    _check(q, k, v, log_decay, state)
    held = q.new_zeros(*q.shape[:2], q.shape[3], v.shape[3]) if state is None else state.to(q.dtype)
    outs = []
    for q_t, k_t, v_t, log_t in zip(*(x.unbind(2) for x in (q, k, v, log_decay))):
        out, held = linear_recurrence_step(q_t, k_t, v_t, log_t, held)
        outs.append(out)
    return torch.stack(outs, dim=2)


def linear_recurrence_step(
    q: Float[Tensor, "b h d"],
    k: Float[Tensor, "b h d"],
    v: Float[Tensor, "b h e"],
    log_decay: Float[Tensor, "b h #d"],
    state: Float[Tensor, "b h d e"],
) -> tuple[Float[Tensor, "b h e"], Float[Tensor, "b h d e"]]:
    """One token. The given state is left as it was."""
    exact = state.dtype
    kept = torch.exp(log_decay.to(exact))[..., None] * state
    state = kept + k.to(exact)[..., None] * v.to(exact)[..., None, :]
    return (q.to(exact)[..., None, :] @ state)[..., 0, :].to(q.dtype), state


class _Tile(NamedTuple):
    """Neighbouring tokens that are worked at once: `blocks` blocks of `size`, the last one filled up."""

    start: int
    stop: int
    blocks: int
    size: int

    def cut(self, x: Float[Tensor, "b n w"], dtype: torch.dtype) -> Float[Tensor, "b m c w"]:
        """Zeros behind the end change nothing: they send nothing, and keep all of the state."""
        rows = x[:, self.start : self.stop].to(dtype)
        missing = self.blocks * self.size - rows.shape[1]
        return (F.pad(rows, (0, 0, 0, missing)) if missing else rows).unflatten(1, (self.blocks, self.size))

    def paste(self, into: Float[Tensor, "b n w"], x: Float[Tensor, "b m c w"]) -> None:
        into[:, self.start : self.stop] = x.flatten(1, 2)[:, : self.stop - self.start]


def _tiles(n: int, heads: int, block: int, device: torch.device) -> list[_Tile]:
    """The tiles from left to right: as many rows at once as the caches like."""
    rows = 4096 if device.type == "cpu" else 1 << 18
    together = max(1, rows // (heads * block))
    whole = n // block
    tiles = [
        _Tile(at * block, min(at + together, whole) * block, min(together, whole - at), block)
        for at in range(0, whole, together)
    ]
    rest = n - whole * block
    if rest:
        tiles.append(_Tile(whole * block, n, 1, 1 << (rest - 1).bit_length()))
    return tiles


def _halves(x: Float[Tensor, "b m c w"], size: int) -> tuple[Tensor, Tensor]:
    """Views of the first and of the second halves of all parts of 2·size rows, [b, m, parts, size, w]."""
    parts = x.unflatten(2, (-1, 2, size))
    return parts[:, :, :, 0], parts[:, :, :, 1]


def _within(scores: Float[Tensor, "b m c c"], size: int) -> Float[Tensor, "b m parts size size"]:
    """View of the scores of second halves with first halves, in all parts of 2·size rows."""
    return scores.unflatten(3, (-1, 2, size)).unflatten(2, (-1, 2, size))[:, :, :, 1, :, :, 0].diagonal(
        dim1=2, dim2=4
    ).permute(0, 1, 4, 2, 3)  # fmt: skip


class _Sums(NamedTuple):
    """Sums of log_decay inside parts of `size` rows: up to and with a row, and behind it."""

    size: int
    upto: Float[Tensor, "b m c w"]
    behind: Float[Tensor, "b m c w"]


def _sums(log: Float[Tensor, "b m c w"]) -> Iterator[_Sums]:
    """For parts of 1, 2, 4, … c rows, each time in the same memory."""
    size, upto, behind = 1, log.clone(), torch.zeros_like(log)
    yield _Sums(size, upto, behind)
    while size < log.shape[2]:
        first, second = _halves(upto, size)
        _halves(behind, size)[0].add_(second[..., -1:, :])
        second.add_(first[..., -1:, :])
        size *= 2
        yield _Sums(size, upto, behind)


class _Work(NamedTuple):
    """What the way there of a tile leaves to its way back."""

    levels: list[tuple[int, Tensor, Tensor, Tensor, Tensor]]
    """Of parts of so many rows: e^P of second halves, e^R of first ones, and q, k with them."""
    scores: Float[Tensor, "b m c c"]
    since: Float[Tensor, "b m c w"]
    """What a row still sees of the state before its block."""
    until: Float[Tensor, "b m c w"]
    """What is left of a row behind its block."""
    met: Float[Tensor, "b m d e"]
    """The state before each block."""


def _forth(q, k, v, log, state) -> tuple[Tensor, Tensor, _Work]:
    """The outputs of a tile, and the state behind it."""
    levels, scores = [], q.new_zeros(*q.shape[:3], q.shape[2])
    for sums in _sums(log):
        if sums.size == q.shape[2]:
            break
        reach, left = (
            torch.exp(_halves(sums.upto, sums.size)[1]),
            torch.exp(_halves(sums.behind, sums.size)[0]),
        )
        asked, sent = _halves(q, sums.size)[1] * reach, _halves(k, sums.size)[0] * left
        _within(scores, sums.size).copy_(asked @ sent.mT)
        levels.append((sums.size, reach, left, asked, sent))
    scores.diagonal(dim1=2, dim2=3).copy_((q * k).sum(-1))
    since, until = torch.exp(sums.upto), torch.exp(sums.behind)
    met = (k * until).mT @ v  # what each block gains, and then, in its place, what each block meets
    kept = since[:, :, -1, :, None]
    for at in range(q.shape[1]):
        behind = torch.addcmul(met[:, at], kept[:, at], state)
        met[:, at] = state
        state = behind
    out = scores @ v + (q * since) @ met
    return out, state, _Work(levels, scores, since, until, met)


def _back(q, k, v, work: _Work, grad, grad_state) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of q, k, v, log_decay and of the state before a tile."""
    since, until, width = work.since, work.until, work.since.shape[-1]
    sent = (q * since).mT @ grad  # what each block sends to the state before it
    after = torch.empty_like(sent)  # the gradient of the state behind each block
    for at in reversed(range(q.shape[1])):
        after[:, at] = grad_state
        grad_state = torch.addcmul(sent[:, at], since[:, at, -1, :, None], grad_state)
    grad_v = work.scores.mT @ grad + (k * until) @ after
    grad_q, grad_k = since * (grad @ work.met.mT), until * (v @ after.mT)
    upto, behind = _as_wide(q * grad_q, width), _as_wide(k * grad_k, width)
    upto[:, :, -1] += _as_wide(since[:, :, -1] * (work.met * after).sum(-1), width)
    grad_scores = grad @ v.mT
    alone = grad_scores.diagonal(dim1=2, dim2=3)[..., None]
    grad_q, grad_k = grad_q.addcmul_(alone, k), grad_k.addcmul_(alone, q)
    for size, reach, left, asked, sent in reversed(work.levels):
        # Sums over 2·size rows are sums over `size` rows, some with the other half's total added.
        totals = _halves(upto, size)[1].sum(-2), _halves(behind, size)[0].sum(-2)
        for half, total in zip(_halves(upto, size), totals):
            half[..., -1, :] += total
        met = _within(grad_scores, size)
        for held, gained, sums, factor, row in (
            (_halves(grad_q, size)[1], met @ sent, _halves(upto, size)[1], reach, asked),
            (_halves(grad_k, size)[0], met.mT @ asked, _halves(behind, size)[0], left, sent),
        ):
            held.addcmul_(gained, factor)
            sums.add_(_as_wide(gained * row, width))
    return grad_q, grad_k, grad_v, upto, grad_state


def _as_wide(x: Tensor, width: int) -> Tensor:
    """A decay that all channels share has the gradient of all of them."""
    return x.sum(-1, keepdim=True) if width < x.shape[-1] else x


class _Recurrence(torch.autograd.Function):
    """Tiles from left to right, and back from the inputs and the states between the tiles alone."""

    @staticmethod
    def forward(ctx, q, k, v, log_decay, state, block):
        exact, tiles = (
            torch.promote_types(q.dtype, torch.float32),
            _tiles(q.shape[1], len(q), block, q.device),
        )
        out, carried, before = torch.empty_like(v), state.to(exact), []
        with torch.autocast(q.device.type, enabled=False):
            for tile in tiles:
                before.append(carried)
                rows, carried, _ = _forth(*(tile.cut(x, exact) for x in (q, k, v, log_decay)), carried)
                tile.paste(out, rows)
        ctx.tiles, ctx.exact, ctx.dtypes = tiles, exact, (log_decay.dtype, state.dtype)
        ctx.save_for_backward(q, k, v, log_decay, *(before if any(ctx.needs_input_grad) else ()))
        ctx.set_materialize_grads(False)
        return out, carried

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out, grad_last):
        q, k, v, log_decay, *before = ctx.saved_tensors
        if grad_out is None:
            grad_out = torch.zeros_like(v)
        carried = torch.zeros_like(before[0]) if grad_last is None else grad_last.to(ctx.exact)
        grads = [torch.empty_like(x) for x in (q, k, v, log_decay)]
        with torch.autocast(q.device.type, enabled=False):
            for tile, state in zip(reversed(ctx.tiles), reversed(before)):
                rows = [tile.cut(x, ctx.exact) for x in (q, k, v)]
                *_, work = _forth(*rows, tile.cut(log_decay, ctx.exact), state)
                *found, carried = _back(*rows, work, tile.cut(grad_out, ctx.exact), carried)
                for grad, part in zip(grads, found):
                    tile.paste(grad, part)
        return *grads, carried.to(ctx.dtypes[1]), None


def _check(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None) -> None:
    for name, x in (("q", q), ("k", k), ("v", v), ("log_decay", log_decay)):
        require(x.ndim == 4, f"{name} has shape {tuple(x.shape)}, but it must be [b, heads, n, width]")
    (b, h, n, d), e = q.shape, v.shape[3]
    require(n >= 1, "the length is 0, but a recurrence has at least one token")
    require(q.dtype == k.dtype == v.dtype, f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}; they must be alike")
    require(k.shape == q.shape, f"k has shape {tuple(k.shape)}, but q takes {tuple(q.shape)}")
    require(v.shape == (b, h, n, e), f"v has shape {tuple(v.shape)}, but q takes [{b}, {h}, {n}, e]")
    require(
        log_decay.shape in ((b, h, n, d), (b, h, n, 1)),
        f"log_decay has shape {tuple(log_decay.shape)}, but q takes [{b}, {h}, {n}, {d} or 1]",
    )
    if state is not None:
        require(
            state.shape == (b, h, d, e),
            f"state has shape {tuple(state.shape)}, but q and v take [{b}, {h}, {d}, {e}]",
        )
