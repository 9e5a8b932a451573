"""Patterns: who may look at whom.

A pattern is a boolean relation over query positions `i` and key positions `j`, written in index
arithmetic, so that the same three lines serve a dense mask, FlexAttention's `mask_mod` and the plans
of `regardant.core.plan`. Patterns compose with `&`, `|` and `~`:

    Causal() & (Window(256) | Sink(4))

Besides `allows`, a pattern may tell what it knows about its own shape (`reach`, `candidates`,
`partition`); the plans live off that. Saying nothing is always correct, only slower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from regardant.core.errors import require
from regardant.core.pattern_algebra import And, Not, Or, Partition, Pattern, Reach, latest, widest

__all__ = [
    "And", "Blocks", "Causal", "Dilated", "Document", "Everything", "Not", "Or", "Padding", "Partition",
    "Pattern", "PerHead", "Prefix", "Reach", "Sink", "Window", "both", "split_padding",
]  # fmt: skip


@dataclass(frozen=True)
class Everything(Pattern):
    """All pairs. What `pattern=None` means."""

    def allows(self, i, j, *, batch=None, head=None):
        return torch.ones_like(i + j, dtype=torch.bool)

    def stationary(self):
        return 0


@dataclass(frozen=True)
class Causal(Pattern):
    """A query sees itself and what came before."""

    def allows(self, i, j, *, batch=None, head=None):
        return j <= i

    def reach(self):
        return Reach(inf, 0)

    def stationary(self):
        return 0


@dataclass(frozen=True)
class Window(Pattern):
    """`|i - j| < width`: under `Causal`, the last `width` positions, the query's own included."""

    width: int

    def __post_init__(self):
        require(self.width >= 1, f"width is {self.width}, but a window holds at least its own position")

    def allows(self, i, j, *, batch=None, head=None):
        return (i - j).abs() < self.width

    def reach(self):
        return Reach(self.width - 1, self.width - 1)

    def stationary(self):
        return 0


@dataclass(frozen=True)
class Dilated(Pattern):
    """Every `dilation`-th position, `width` of them to each side counting the query's own."""

    width: int
    dilation: int

    def __post_init__(self):
        require(self.width >= 1, f"width is {self.width}, but a window holds at least its own position")
        require(self.dilation >= 1, f"dilation is {self.dilation}, but steps are at least 1")

    def allows(self, i, j, *, batch=None, head=None):
        apart = (i - j).abs()
        return (apart < self.width * self.dilation) & (apart % self.dilation == 0)

    def reach(self):
        return Reach((self.width - 1) * self.dilation, (self.width - 1) * self.dilation)

    def candidates(self, i, keys):
        steps = torch.arange(-(self.width - 1), self.width, device=i.device)
        return None if len(steps) >= keys else i[:, None] - steps * self.dilation

    def stationary(self):
        return 0


@dataclass(frozen=True)
class Sink(Pattern):
    """The first `count` keys, for every query."""

    count: int

    def __post_init__(self):
        require(self.count >= 0, f"count is {self.count}, but keys are counted from 0")

    def allows(self, i, j, *, batch=None, head=None):
        return (j < self.count) & (i == i)

    def reach(self):
        return Reach(-1, 0, self.count)

    def stationary(self):
        return self.count


class _Ids(Pattern):
    """Positions with a value each, the same for all samples [n] or one row a sample [b, n]."""

    values: Tensor

    def at(self, positions: Tensor, batch: Tensor | None) -> Tensor:
        inside = positions.clamp(0, self.values.shape[-1] - 1)
        if self.values.ndim == 1:
            return self.values.to(positions.device)[inside]
        require(batch is not None, f"{type(self).__name__} differs by sample: allows needs batch=")
        return self.values.to(positions.device)[batch, inside]

    @property
    def by_batch(self):
        return self.values.ndim == 2


@dataclass(frozen=True, eq=False)
class Prefix(Pattern):
    """Causal, but the first `length` positions (one number, or one a sample [b]) are seen by all."""

    length: int | Int[Tensor, "b"]

    def __post_init__(self):
        require(
            isinstance(self.length, Tensor) or self.length >= 0,
            f"length is {self.length}, but positions are counted from 0",
        )

    @property
    def by_batch(self):
        return isinstance(self.length, Tensor)

    def allows(self, i, j, *, batch=None, head=None):
        length = self.length
        if isinstance(length, Tensor):
            require(batch is not None, "Prefix differs by sample: allows needs batch=")
            length = length.to(j.device)[batch]
        return (j <= i) | (j < length)

    def reach(self):
        longest = int(self.length.max()) if isinstance(self.length, Tensor) else self.length
        return Reach(inf, 0, longest)

    def stationary(self):
        return self.reach().first


@dataclass(frozen=True, eq=False)
class Document(_Ids):
    """Only inside the same document: `values` holds an id a position, [n] or [b, n]."""

    values: Int[Tensor, "*b n"]

    def allows(self, i, j, *, batch=None, head=None):
        return self.at(i, batch) == self.at(j, batch)


@dataclass(frozen=True, eq=False)
class Padding(_Ids):
    """Only keys that are real: `values` is True where a token is real, [n] or [b, n]."""

    values: Bool[Tensor, "*b n"]

    def allows(self, i, j, *, batch=None, head=None):
        return self.at(j, batch) & (i == i)


@dataclass(frozen=True)
class Blocks(Pattern):
    """Full attention inside consecutive blocks of `size`."""

    size: int

    def __post_init__(self):
        require(self.size >= 1, f"size is {self.size}, but a block holds at least one position")

    def allows(self, i, j, *, batch=None, head=None):
        return i // self.size == j // self.size

    def reach(self):
        return Reach(self.size - 1, self.size - 1)

    def candidates(self, i, keys):
        first = i // self.size * self.size
        return None if self.size >= keys else first[:, None] + torch.arange(self.size, device=i.device)

    def partition(self, n, device):
        return Partition(self.size)


@dataclass(frozen=True)
class PerHead(Pattern):
    """Pattern k for query head k."""

    patterns: tuple[Pattern, ...]

    def __init__(self, patterns: Sequence[Pattern]):
        require(len(patterns) > 0, "patterns is empty, but PerHead wants one pattern a head")
        object.__setattr__(self, "patterns", tuple(patterns))

    @property
    def by_batch(self):
        return any(pattern.by_batch for pattern in self.patterns)

    @property
    def by_head(self):
        return True

    @property
    def head_count(self):
        return len(self.patterns)

    @property
    def causal(self):
        return all(pattern.causal for pattern in self.patterns)

    def allows(self, i, j, *, batch=None, head=None):
        require(head is not None, "PerHead differs by head: allows needs head=")
        result = torch.zeros_like(i + j, dtype=torch.bool)
        for which, pattern in enumerate(self.patterns):
            result = torch.where(head == which, pattern.allows(i, j, batch=batch, head=head), result)
        return result

    def reach(self):
        return widest([pattern.reach() for pattern in self.patterns])

    def on(self, *size):
        return PerHead([pattern.on(*size) for pattern in self.patterns])

    def stationary(self):
        return latest([pattern.stationary() for pattern in self.patterns])


def split_padding(pattern: Pattern | None) -> tuple[Pattern | None, Bool[Tensor, "*b n"] | None]:
    """Take the padding out of a conjunction: the pattern without it (None: everything), and the mask."""
    if pattern is None:
        return None, None
    parts = pattern.patterns if isinstance(pattern, And) else (pattern,)
    rest = [part for part in parts if not isinstance(part, Padding | Everything)]
    mask: Tensor | None = None
    for part in parts:
        if isinstance(part, Padding):
            mask = part.values if mask is None else mask & part.values
    return (None if not rest else rest[0] if len(rest) == 1 else And(tuple(rest))), mask


def both(*patterns: Pattern | None) -> Pattern | None:
    """The conjunction of those patterns that are not None."""
    some = [pattern for pattern in patterns if pattern is not None]
    return None if not some else some[0] if len(some) == 1 else And.of(*some)
