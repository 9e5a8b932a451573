"""Plans: how to run softmax under a pattern.

    attend(q, k, v, Causal() & Window(256))      # runs it the fastest sound way
    explain(Causal() & Window(256), 16_384)      # says which way that is, and why

Every plan equals `attend_dense`, and all but `dense` need memory in proportion to the length times the
pattern's width, on the way back too:

fused      the whole sequence in one kernel: no pattern, causal, key padding
partition  groups of positions that only see each other, or a union of such (rows and columns)
banded     keys near the query: tiles down the diagonal, tiles with halos on grids, and the first keys
gather     each query with its own short list of keys
flex       FlexAttention: a kernel compiled for the pattern
dense      rows in blocks against all keys
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from regardant.core.banded import band_tiles, beyond_first, causal_rows, causal_tiles, row_tiles
from regardant.core.checks import check_attention
from regardant.core.errors import require, unknown
from regardant.core.gathered import candidate_tiles, candidates_per_query, partition_tiles
from regardant.core.halo import grid_of, halo_tiles
from regardant.core.partial_softmax import PIECE_ROWS, Source, attend_parts
from regardant.core.pattern import Causal, Pattern, split_padding
from regardant.core.relative_causal import relative_causal
from regardant.core.relative_logits import RelativeLogits
from regardant.core.visibility import Bias, Visibility, without_idle_windows
from regardant.core.written import Normaliser, attend_dense, attend_rows, attend_written

__all__ = ["PLANS", "Plan", "attend", "attend_dense", "attend_rows", "explain"]

PLANS = ("fused", "partition", "banded", "gather", "flex", "dense")

SHORT = 2**20
"""Up to this many pairs in all, one masked kernel call costs less than cutting tiles."""

DENSE_PAIRS = 2**20
"""Pairs a head that the dense plan looks at at once."""


@dataclass(frozen=True)
class Plan:
    """How a pattern will be run, and why."""

    name: str
    reason: str
    pairs: int
    """Query-key pairs computed, one head of one sample."""
    total: int
    """Query-key pairs there are."""
    memory: str

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.reason}\n"
            f"  computes {self.pairs:,} of {self.total:,} query-key pairs ({self.pairs / self.total:.1%})\n"
            f"  memory {self.memory}"
        )


@dataclass(frozen=True)
class _Way:
    """A plan that can be walked. Without `tiles` it is one call of the kernel (or FlexAttention)."""

    name: str
    reason: str
    tiles: Sequence[Source] | None = None
    backward: Callable[[], Sequence[Source]] | None = None

    @property
    def pairs(self) -> int:
        return sum(part.pairs for source in self.tiles for part in source)


@dataclass(frozen=True)
class _Asked:
    """What is to be run."""

    sees: Visibility
    kind: str
    """The type of the device that it will run on."""
    device: torch.device
    """Where the tiles' indices and masks go."""
    dtype: torch.dtype
    gradients: bool
    written: bool
    """Whether the weights must be written out: another normaliser, or a bias that learns."""

    @property
    def like(self) -> Tensor:
        return torch.empty(0, dtype=torch.promote_types(self.dtype, torch.float32), device=self.device)

    @property
    def total(self) -> int:
        return self.sees.queries * self.sees.keys


def attend(
    q: Float[Tensor, "b h m d"], k: Float[Tensor, "b g n d"], v: Float[Tensor, "b g n e"],
    pattern: Pattern | None = None, *, scale: float | None = None, bias: Bias | None = None,
    normaliser: Normaliser | None = None, plan: str | None = None, offset: int = 0,
) -> Float[Tensor, "b h m e"]:  # fmt: skip
    """softmax(q kᵀ · scale + bias) v over the pairs that `pattern` allows, the fastest sound way.

    `g` divides `h`: heads share keys in consecutive groups. `scale` is 1/√d unless given. `normaliser`
    (logits, mask) → weights replaces the softmax over the last axis; the logits are -inf where the mask
    is False. Query row r stands at position `offset + r`. `plan` forces one, and raises where that plan
    is unsound. A row that sees no key gives zeros.
    """
    if bias is normaliser is plan is None and (pattern is None or type(pattern) is Causal) and not offset:
        shape, causal = q.shape, pattern is not None
        tiled = causal and q.device.type == "cpu" and causal_rows(shape[-2]) < shape[-2]
        if shape == k.shape == v.shape and len(shape) == 4 and not tiled:
            # What asks for no more than the kernel does should not pay for more.
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)
    check_attention(q, k, v)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    looks_back = type(pattern) is Causal and isinstance(bias, RelativeLogits) and bias.serves(q, k)
    if looks_back and bias.scale == scale and normaliser is plan is None and not offset:
        return relative_causal(q, None if bias.asked is q else bias.asked, k, v, bias.table, scale=scale)
    sees = _visibility(pattern, bias, q.shape[0], q.shape[1], q.shape[2], k.shape[2], offset)
    if plan is None:
        sees = without_idle_windows(sees)
    gradients = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    written = normaliser is not None or _learns(bias, q.device)
    way = _choose(_Asked(sees, q.device.type, q.device, q.dtype, gradients, written), plan)
    if written:
        return attend_written(
            q, k, v, way.tiles[0], sees, scale=scale, normaliser=normaliser, piece_rows=PIECE_ROWS
        )
    width = v.shape[-1]
    q, k, v = _same_width(q, k, v)
    if way.name == "flex":
        from regardant.core.flexed import attend_flex  # its import alone takes half a second

        out = attend_flex(q, k, v, sees, scale=scale)
    elif way.tiles is None:
        out = _one_kernel(q, k, v, sees, scale)
    else:
        backward = way.backward() if gradients and way.backward is not None else None
        out = attend_parts(q, k, v, way.tiles, scale=scale, backward=backward)
    return out if out.shape[-1] == width else out[..., :width]


def explain(
    pattern: Pattern | None, queries: int, keys: int | None = None, *, heads: int = 1, head_dim: int = 64,
    device: torch.device | str = "cpu", gradients: bool = False, bias: bool = False,
    normaliser: bool = False, offset: int = 0,
) -> Plan:  # fmt: skip
    """The plan that `attend` will choose. `bias`: one that learns (one that does not changes little)."""
    keys = queries if keys is None else keys
    require(queries > 0 and keys > 0, f"queries is {queries} and keys {keys}, but both are at least 1")
    sees = without_idle_windows(_visibility(pattern, None, 1, heads, queries, keys, offset))
    kind, here = torch.device(device).type, torch.device("cpu")
    asked = _Asked(sees, kind, here, torch.float32, gradients, bias or normaliser)
    way = _choose(asked, None)
    causal = isinstance(sees.pattern, Causal) and sees.real is None
    pairs = asked.total if not causal else sum(min(row + 1, keys) for row in range(queries))
    if way.tiles is not None:
        pairs = way.pairs
    memory = {
        "fused": "linear in the length",
        "dense": "linear in the length at a time: blocks of rows against all keys",
    }.get(way.name, "linear in the length times the pattern's width")
    return Plan(way.name, way.reason, pairs, asked.total, memory)


def _choose(asked: _Asked, forced: str | None) -> _Way:
    ways = {
        "fused": _fused, "partition": _partition, "banded": _banded,
        "gather": _gather, "flex": _flex, "dense": _dense,
    }  # fmt: skip
    if forced is not None:
        if forced not in ways:
            raise unknown("plan", forced, PLANS)
        way = ways[forced](asked)
        require(isinstance(way, _Way), f"plan is {forced!r}, but that cannot be here: {way}")
        return way
    if isinstance(way := _fused(asked), _Way):
        return way
    if asked.total * asked.sees.batch * asked.sees.heads > SHORT:
        # What a pair costs in each plan, in pairs of the dense one; the first good one will do.
        best, least = None, asked.total
        for name, cost in (("partition", 1.2), ("banded", 1.5), ("gather", 12.0)):
            if least * 4 <= asked.total:
                break
            if name == "gather" and not _pays_to_gather(asked, least / cost):
                break
            if isinstance(way := ways[name](asked), _Way):
                best, least = (way, way.pairs * cost) if way.pairs * cost < least else (best, least)
        if best is not None:
            return best
        if asked.kind == "cuda" and isinstance(way := _flex(asked), _Way):
            return way
    return _dense(asked)


def _fused(asked: _Asked) -> _Way | str:
    sees, n = asked.sees, asked.sees.keys
    if asked.written:
        return "the weights are normalised by something else, or their bias learns"
    if not (sees.pattern is None or isinstance(sees.pattern, Causal)):
        return f"{sees.pattern} is neither causal alone nor everything"
    if sees.bias is not None:
        return _Way("fused", "the bias is added block by block", [_row_blocks(sees)])
    if sees.pattern is None:
        return _Way("fused", "every key is visible" + (" that is real" if sees.real is not None else ""))
    if sees.real is not None or sees.offset:
        return _Way("fused", "causal in blocks of rows, masked for what is not real", [_row_blocks(sees)])
    if asked.kind == "cpu" and sees.queries == n and (rows := causal_rows(n)) < n:
        tiles = causal_tiles(n, rows, like=asked.like)
        return _Way("fused", "causal in blocks of rows, each with just its keys", [tiles])
    return _Way("fused", "the kernel knows causal")


def _partition(asked: _Asked) -> _Way | str:
    sources = partition_tiles(asked.sees, asked.device, in_place=not asked.written)
    if sources is None:
        return f"{asked.sees.pattern} is not made of groups of positions, or queries are not the keys"
    if len(sources) == 1:
        return _Way("partition", "positions see each other inside groups only", sources)
    if asked.written:
        return f"{asked.sees.pattern} is a union of groups: only a softmax can be merged from parts"
    return _Way("partition", "a union of groups, merged under one softmax", sources)


def _banded(asked: _Asked) -> _Way | str:
    sees = asked.sees
    if (tiles := halo_tiles(sees, asked.device)) is not None:
        return _Way("banded", "keys lie near the query on the grid: boxes with halos", tiles)
    reach = sees.reach
    if not reach.bounded:
        return f"{sees.pattern} says no bound on how far a query looks"
    width = int(reach.back + reach.ahead) + 1
    reason = f"keys lie within {width} positions" + (
        f" or among the first {reach.first}" if reach.first else ""
    )
    if asked.written:
        return _Way("banded", reason, [beyond_first(sees, min(max(width, 64), 256))])
    forward, backward = 32, 192 if width >= 768 else 64

    def cut(rows: int) -> Sequence[Source]:
        return band_tiles(sees, rows, like=asked.like)

    return _Way("banded", reason, cut(forward), lambda: cut(backward))


def _pays_to_gather(asked: _Asked, pairs: float) -> bool:
    """Whether fewer than so many pairs are left, so that the lists of keys are worth writing out."""
    width = candidates_per_query(asked.sees, asked.device)
    return width is not None and width * asked.sees.queries < pairs


def _gather(asked: _Asked) -> _Way | str:
    tiles = candidate_tiles(asked.sees, asked.device)
    if tiles is None:
        return f"{asked.sees.pattern} lists no keys that a query might see, or nearly all"
    return _Way("gather", f"each query has its own list of {tiles[0][0].keys.shape[1]} keys at most", tiles)


def _flex(asked: _Asked) -> _Way | str:
    if asked.written or asked.sees.bias is not None:
        return "FlexAttention is used here with masks alone"
    if asked.kind == "cpu" and asked.gradients:
        return "FlexAttention has no gradients on a CPU"
    return _Way("flex", "no plan knows this pattern's shape, but FlexAttention skips its empty blocks")


def _dense(asked: _Asked) -> _Way:
    sees = asked.sees
    if asked.total <= DENSE_PAIRS and not asked.written:
        return _Way("dense", "so short that one masked kernel call costs least")
    if asked.total * sees.batch * sees.heads <= SHORT:
        return _Way("dense", "so short that writing all pairs out costs least", [_row_blocks(sees)])
    return _Way("dense", "nothing that the pattern tells of its shape saves enough", [_row_blocks(sees)])


def _row_blocks(sees: Visibility) -> Source:
    return row_tiles(sees, max(1, min(256, DENSE_PAIRS // max(sees.keys, 1))))


def _one_kernel(q: Tensor, k: Tensor, v: Tensor, sees: Visibility, scale: float) -> Tensor:
    grouped = q.shape[1] != k.shape[1]
    if sees.real is None and sees.bias is None and (sees.pattern is None or isinstance(sees.pattern, Causal)):
        causal = sees.pattern is not None
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale, enable_gqa=grouped)
    if sees.pattern is None and sees.bias is None:
        mask = sees.real.to(q.device)[:, None, None, :]
    else:
        i = torch.arange(sees.queries, device=q.device)[None]
        j = torch.arange(sees.keys, device=q.device)[None]
        mask = sees.mask(i, j)
        mask = torch.ones((), dtype=torch.bool, device=q.device) if mask is None else mask[:, 0]
    # Not every backend gives zeros to a row that sees nothing: let it see all, and empty it after.
    empty = ~mask.any(dim=-1, keepdim=True)
    mask = mask | empty
    if sees.bias is not None:
        added = sees.biases(i, j)[:, 0].to(q.dtype)
        mask = added.masked_fill(~mask, -torch.inf)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=grouped)
    return out.masked_fill(empty, 0)


def _same_width(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The kernels want keys and values of one width: the narrower is filled up with zeros."""
    extra = v.shape[-1] - q.shape[-1]
    if extra > 0:
        return F.pad(q, (0, extra)), F.pad(k, (0, extra)), v
    return q, k, v if extra == 0 else F.pad(v, (0, -extra))


def _visibility(pattern, bias, batch, heads, queries, keys, offset) -> Visibility:
    pattern, real = split_padding(pattern)
    if real is not None:
        real = real if real.ndim == 2 else real[None]
        require(
            real.shape[0] in (1, batch) and real.shape[1] >= keys,
            f"the padding is {list(real.shape)}, but there are {batch} samples of {keys} keys",
        )
        real = real[:, :keys]
    grid = grid_of(pattern)
    require(
        grid is None or prod(grid.size) == keys,
        f"the pattern is bound to a grid of {grid and grid.size}, but there are {keys} keys",
    )
    if isinstance(pattern, Causal) and offset >= keys - 1:
        pattern = None
    return Visibility(pattern, real, bias, batch, heads, queries, keys, offset)


def _learns(bias: Bias | None, device: torch.device) -> bool:
    if bias is None or not torch.is_grad_enabled():
        return False
    origin = torch.zeros(1, dtype=torch.long, device=device)
    return bias.block(origin, origin).requires_grad
