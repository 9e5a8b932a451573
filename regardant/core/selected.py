"""Attention to what was selected: scores of candidates → the best few of them → the keys that they stand for.

    scores of candidates (`strongest`, or a system's own) → `best` → spans of keys → `attend_spans`

What is scored differs from system to system: anchors, landmarks, means of blocks. The rest is the same.
Each query names spans of consecutive positions, and a span is one softmax, whose logsumexp comes along, so
that `regardant.core.partial_softmax.merge` or a gate of the system's own can put spans together.

Keys are not gathered query by query, which would move n·s·width vectors. The keys are cut into tiles, the
spans into visits to tiles, and visits sorted by tile: a tile then meets all its visitors in one product.
Nothing of the size queries × keys is kept, on the way back neither; with tiles about as wide as the spans,
memory is linear in the number of spans.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from regardant.core.errors import require

PAIRS = 2**21
"""Pairs of visitors and keys that are worked on at once."""

VISITS = 2**17
"""Visits that are sorted at once."""


def best(
    scores: Float[Tensor, "*rows c"], count: int
) -> tuple[Int[Tensor, "*rows s"], Bool[Tensor, "*rows s"]]:
    """The `count` largest scores of each row, largest first, and which of them are there at all (not -inf).

    Of equal ones the first is taken, whatever stands behind it: a choice among the past must not change
    with the number of candidates.
    """
    left, at, there = scores.detach().clone(), [], []
    for _ in range(min(count, scores.shape[-1])):
        value, index = left.max(dim=-1, keepdim=True)
        left.scatter_(-1, index, -inf)
        at.append(index)
        there.append(value > -inf)
    if not at:
        none = scores.new_zeros(*scores.shape[:-1], 0, dtype=torch.long)
        return none, none.bool()
    return torch.cat(at, dim=-1), torch.cat(there, dim=-1)


@torch.no_grad()
def strongest(
    score: Callable[[slice], Float[Tensor, "b h r c"]], rows: int, count: int, *, pairs_a_row: int
) -> tuple[Int[Tensor, "b h m s"], Bool[Tensor, "b h m s"]]:
    """The `count` candidates with the largest scores for each query, and which of them are there.

    `score` is asked for some rows at a time (`pairs_a_row` scores each, all samples and heads together) and
    says -inf where a query may not choose: so memory is linear in the rows.
    """
    step = max(1, PAIRS // max(pairs_a_row, 1))
    found = [best(score(slice(row, min(row + step, rows))), count) for row in range(0, rows, step)]
    return tuple(torch.cat(parts, dim=2) for parts in zip(*found))


def rows_at(x: Float[Tensor, "b g n d"], at: Int[Tensor, "b h *s"]) -> Float[Tensor, "b h *s d"]:
    """Rows of x by position, where consecutive heads share one of x's; nothing else of x is read."""
    shared, heads = x.shape[1], at.shape[1]
    lead = (-1, 1) + (1,) * (at.ndim - 2)
    sample = torch.arange(x.shape[0], device=x.device).view(lead)
    head = torch.arange(heads, device=x.device).view((1, *lead[:1], *lead[2:])) // (heads // shared)
    return x[sample, head, at]


def attend_spans(
    q: Float[Tensor, "b h m d"], k: Float[Tensor, "b g n d"], v: Float[Tensor, "b g n e"],
    first: Int[Tensor, "b h m s"], last: Int[Tensor, "b h m s"],
    *, tile: int, scale: float, real: Bool[Tensor, "b n"] | None = None,
) -> tuple[Float[Tensor, "b h m s e"], Float[Tensor, "b h m s"]]:  # fmt: skip
    """For each query and span, softmax attention to the keys `first` … `last`, and its logsumexp.

    `g` divides `h`: heads share keys in consecutive groups. A span whose `last` stands before its `first`,
    or in which no key is `real`, gives zeros and -inf. `tile` is the number of keys in a tile: about the
    width of the spans, and whatever it is, the result is the same. Differentiable once, through both.
    """
    require(first.shape == last.shape, f"first is {list(first.shape)}, but last is {list(last.shape)}")
    require(
        first.shape[:3] == q.shape[:3],
        f"first is {list(first.shape)}, but there are {list(q.shape[:3])} queries to have spans",
    )
    require(tile >= 1, f"tile is {tile}, but a tile holds at least 1 key")
    n = k.shape[2]
    first, last = first.clamp(min=0), last.clamp(max=n - 1)
    if first.shape[-1] == 0 or first.numel() == 0:
        return v.new_zeros(*first.shape, v.shape[-1]), exact(v).new_zeros(first.shape)
    return _Spans.apply(q, k, v, first, last, real, scale, min(tile, n))


def exact(x: Tensor) -> Tensor:
    """Half precision is worked on in single."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@dataclass(frozen=True)
class _Visits:
    """Which spans (rows) visit which tiles, in chunks of one tile and `rows.shape[1]` visitors each."""

    rows: Int[Tensor, "c r"]
    """-1 where a chunk has room to spare."""
    tiles: Int[Tensor, "c"]
    places: Int[Tensor, "rows t"]
    """Where in the chunks the visits of a row stand; -1: nowhere."""

    @staticmethod
    def of(
        first: Int[Tensor, "rows"],
        last: Int[Tensor, "rows"],
        base: Int[Tensor, "rows"],
        tile: int,
        tiles: int,
    ):
        """`base` is the first tile of the keys that a row reads."""
        lowest = first // tile
        count = (last // tile - lowest + 1).masked_fill(last < first, 0)
        most = int(count.max())
        steps = torch.arange(most, device=first.device)
        row, step = (steps < count[:, None]).nonzero(as_tuple=True)
        where, order = (base[row] + lowest[row] + step).sort(stable=True)
        visitors = torch.bincount(where, minlength=tiles)
        mean = max(len(row) // max(int((visitors > 0).sum()), 1), 1)
        size = min(128, 1 << (mean - 1).bit_length())
        chunks = -(-visitors // size)
        before = chunks.cumsum(0) - chunks
        rank = torch.arange(len(where), device=first.device) - (visitors.cumsum(0) - visitors)[where]
        place = before[where] * size + rank
        total = int(chunks.sum())
        table = torch.full((total * size,), -1, device=first.device)
        table[place] = row[order]
        places = torch.full((len(first), most), -1, device=first.device)
        places[row[order], step[order]] = place
        each = torch.arange(tiles, device=first.device).repeat_interleave(chunks)
        return _Visits(table.view(total, size), each, places)

    def pieces(self, tile: int) -> Iterator[slice]:
        size = max(1, PAIRS // (self.rows.shape[1] * tile))
        for start in range(0, len(self.rows), size):
            yield slice(start, min(start + size, len(self.rows)))


@dataclass(frozen=True)
class _Part:
    """Some of the key heads with all that reads them, laid out for the products."""

    queries: Float[Tensor, "q d"]
    keys: Float[Tensor, "tiles t d"]
    values: Float[Tensor, "tiles t e"]
    first: Int[Tensor, "rows"]
    last: Int[Tensor, "rows"]
    hidden: Bool[Tensor, "tiles t"] | None
    visits: _Visits
    scale: float
    tiles: int
    """Tiles of one key head."""

    @property
    def spans(self) -> int:
        return len(self.first) // len(self.queries)

    def logits(self, piece: slice) -> tuple[Tensor, Tensor, Tensor]:
        """The logits of a piece [c r t], -inf where a span does not reach, its rows, its queries."""
        rows, tiles = self.visits.rows[piece], self.visits.tiles[piece]
        void, rows = rows < 0, rows.clamp(min=0)
        at = (rows // self.spans).flatten()
        q = self.queries.index_select(0, at).view(*rows.shape, -1)
        logits = (q * self.scale) @ self.keys.index_select(0, tiles).mT
        size = logits.shape[-1]
        low = (tiles % self.tiles)[:, None] * size
        begin, end = self.first[rows] - low, self.last[rows] - low
        step = torch.arange(size, device=rows.device, dtype=torch.int32)
        begin, end = begin.to(torch.int32), end.masked_fill(void, -1).to(torch.int32)
        hidden = (step < begin[..., None]).logical_or_(step > end[..., None])
        if self.hidden is not None:
            hidden.logical_or_(self.hidden[tiles][:, None])
        return logits.masked_fill_(hidden, -inf), rows, q


class _Spans(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, first, last, real, scale, tile):
        shape, width = first.shape, v.shape[-1]
        out = v.new_empty(*shape, width)
        lse = torch.empty(shape, dtype=exact(v).dtype, device=v.device)
        flat_out, flat_lse = out.view(-1, width), lse.view(-1)
        for part, _, span in _parts(q, k, v, first, last, real, scale, tile):
            flat_out[span], flat_lse[span] = _read(part)
        ctx.save_for_backward(q, k, v, first, last, real, out, lse)
        ctx.scale, ctx.tile = scale, tile
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out, grad_lse):
        q, k, v, first, last, real, out, lse = ctx.saved_tensors
        width = v.shape[-1]
        grads = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v)]
        flat = [grad.view(-1, *grad.shape[2:]) for grad in grads]
        rows = [x.reshape(-1, width) for x in (grad_out, out)] + [x.reshape(-1) for x in (grad_lse, lse)]
        for part, heads, span in _parts(q, k, v, first, last, real, ctx.scale, ctx.tile):
            found = _back(part, *(x[span] for x in rows))
            share = q.shape[1] // k.shape[1]
            flat[0][heads.start * share : heads.stop * share] = found[0].view(-1, *q.shape[2:])
            for target, grad in zip(flat[1:], found[1:]):
                target[heads] = grad.view(len(target[heads]), -1, grad.shape[-1])[:, : k.shape[2]]
        return *grads, None, None, None, None, None


def _parts(q, k, v, first, last, real, scale, tile) -> Iterator[tuple[_Part, slice, slice]]:
    """The work in parts of some key heads each: the part, its key heads, its rows among all spans."""
    (b, h, m, d), (g, n), s = q.shape, k.shape[1:3], first.shape[-1]
    share, tiles = h // g, -(-n // tile)
    step = max(1, VISITS // (share * m * s))
    flat_q, flat_k, flat_v = (x.reshape(-1, *x.shape[2:]) for x in (q, k, v))
    first, last = first.reshape(b * g, -1), last.reshape(b * g, -1)
    hidden = None if real is None else F.pad(~real.expand(b, n), (0, tiles * tile - n), value=True)
    for start in range(0, b * g, step):
        heads = slice(start, min(start + step, b * g))
        count = heads.stop - heads.start
        keys, values = (
            F.pad(exact(x[heads]), (0, 0, 0, tiles * tile - n)).reshape(count * tiles, tile, -1)
            for x in (flat_k, flat_v)
        )
        base = (torch.arange(count, device=q.device) * tiles).repeat_interleave(share * m * s)
        low, high = first[heads].flatten(), last[heads].flatten()
        sample = torch.arange(heads.start, heads.stop, device=q.device) // g
        part = _Part(
            exact(flat_q[start * share : heads.stop * share]).reshape(-1, d), keys, values, low, high,
            None if hidden is None else hidden[sample].reshape(-1, tile),
            _Visits.of(low, high, base, tile, count * tiles), scale, tiles,
        )  # fmt: skip
        yield part, heads, slice(start * share * m * s, heads.stop * share * m * s)


def _read(part: _Part) -> tuple[Float[Tensor, "rows e"], Float[Tensor, "rows"]]:
    """Each visit's softmax by itself; then those of a row under one."""
    visits, width = part.visits, part.values.shape[-1]
    seen = part.values.new_empty(*visits.rows.shape, width)
    sums = part.values.new_empty(visits.rows.shape)
    for piece in visits.pieces(part.keys.shape[1]):
        weights, _, _ = part.logits(piece)
        top = weights.amax(-1, keepdim=True)
        weights.sub_(top.masked_fill(top == -inf, 0)).exp_()
        total = weights.sum(-1, keepdim=True)
        sums[piece] = (top + total.log())[..., 0]
        torch.matmul(weights, part.values.index_select(0, visits.tiles[piece]), out=seen[piece])
        seen[piece] /= total.clamp(min=torch.finfo(total.dtype).tiny)
    seen, sums = seen.view(-1, width), sums.flatten()
    nowhere = visits.places < 0
    if visits.places.shape[1] == 0 or not len(seen):
        return seen.new_zeros(len(part.first), width), sums.new_full((len(part.first),), -inf)
    places = visits.places.clamp(min=0)
    each = sums[places].masked_fill_(nowhere, -inf)
    total = each.logsumexp(-1)
    each = each.sub_(total.masked_fill(total == -inf, 0)[:, None]).exp_()
    out = seen.index_select(0, places[:, 0]).mul_(each[:, :1])
    for step in range(1, places.shape[1]):
        out.addcmul_(seen.index_select(0, places[:, step]), each[:, step, None])
    return out, total


def _back(part: _Part, grad_out: Tensor, out: Tensor, grad_lse: Tensor, lse: Tensor) -> list[Tensor]:
    """With P = exp(s - L) of the whole span: ds = P ∘ (grad·v - Σ grad ∘ out + grad_L)."""
    grads = [torch.zeros_like(x) for x in (part.queries, part.keys, part.values)]
    grad_out = exact(grad_out)
    shift = grad_lse.masked_fill(lse == -inf, 0) - (grad_out * exact(out)).sum(-1)
    lse = lse.masked_fill(lse == -inf, 0)
    for piece in part.visits.pieces(part.keys.shape[1]):
        weights, rows, q = part.logits(piece)
        weights.sub_(lse[rows][..., None]).exp_()
        tiles, grad = part.visits.tiles[piece], grad_out[rows.flatten()].view(*rows.shape, -1)
        grads[2].index_add_(0, tiles, weights.mT @ grad)
        inner = grad @ part.values.index_select(0, tiles).mT
        inner.add_(shift[rows][..., None]).mul_(weights).mul_(part.scale)
        back = inner @ part.keys.index_select(0, tiles)
        grads[0].index_add_(0, (rows // part.spans).flatten(), back.flatten(0, 1))
        grads[1].index_add_(0, tiles, inner.mT @ q)
    return grads
