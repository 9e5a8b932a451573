"""What a pattern is, and its algebra: the base class, `&`, `|` and `~`.

The members live in `regardant.core.pattern` (sequences) and `regardant.core.grid_pattern` (grids).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from regardant.core.errors import require


class Reach(NamedTuple):
    """A bound on a pattern: `allows(i, j)` implies `-ahead <= i - j <= back` or `j < first`.

    `back=-1` says that there is no band at all, only the `first` keys.
    """

    back: float
    ahead: float
    first: int = 0

    @property
    def bounded(self) -> bool:
        return self.back < inf and self.ahead < inf


class Partition(NamedTuple):
    """A pattern that is full attention inside groups: gather by `order`, attend, scatter back.

    `order` [groups, size] lists positions; `valid` says which entries are real (None: all of them).
    Where the groups are runs of equal length, `order` is None and `size` tells the length.
    """

    size: int
    order: Int[Tensor, "groups size"] | None = None
    valid: Bool[Tensor, "groups size"] | None = None


class Pattern:
    """Base of all patterns. A subclass writes `allows`; the rest has sound defaults."""

    def allows(
        self, i: Tensor, j: Tensor, *, batch: Tensor | None = None, head: Tensor | None = None
    ) -> Tensor:
        """Whether query position `i` may look at key position `j`, elementwise with broadcasting."""
        raise TypeError(f"{type(self).__name__} must say what it allows")

    @property
    def by_batch(self) -> bool:
        """Whether samples differ (then `allows` wants `batch`)."""
        return False

    @property
    def by_head(self) -> bool:
        """Whether heads differ (then `allows` wants `head`)."""
        return False

    @property
    def head_count(self) -> int | None:
        """How many query heads this pattern tells apart; None: it is the same for any number."""
        return None

    @property
    def causal(self) -> bool:
        """Whether no query ever sees a later key."""
        reach = self.reach()
        return reach.ahead <= 0 and reach.first == 0

    def reach(self) -> Reach:
        return Reach(inf, inf)

    def stationary(self) -> int | None:
        """The key position from which on `allows` depends on `i - j` alone (then one mask serves all the
        tiles of a band); None: nowhere, or unknown."""
        return None

    def candidates(self, i: Int[Tensor, "m"], keys: int) -> Int[Tensor, "m w"] | None:
        """Every key that each query might see, each at most once, or None when that may be all of them.

        Entries outside [0, keys) mean nothing; `allows` has the last word on the others.
        """
        reach = self.reach()
        if not reach.bounded or reach.back + reach.ahead + 1 + reach.first >= keys:
            return None
        span = torch.arange(-int(reach.ahead), int(reach.back) + 1, device=i.device)
        band = i[:, None] - span
        if not reach.first:
            return band
        head = torch.arange(reach.first, device=i.device).expand(len(i), -1)
        return torch.cat([head, band.masked_fill(band < reach.first, -1)], dim=1)

    def partition(self, n: int, device: torch.device) -> Partition | None:
        """The groups, if this pattern is exactly full attention inside groups of positions."""
        return None

    @property
    def union(self) -> tuple[Pattern, ...]:
        """Patterns that together allow what this one allows; a plan may run each by itself."""
        return (self,)

    def on(self, *size: int) -> Pattern:
        """This pattern on a grid of `size` (height, width, …). Sequence patterns are what they are."""
        return self

    @property
    def mask_mod(self) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """What FlexAttention's `create_block_mask` wants: a function (batch, head, i, j) → allowed.

        A plain function, not a method: it counts the arguments, and would count `self`.
        """

        def mask_mod(batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return self.allows(i, j, batch=batch, head=head)

        return mask_mod

    def block(self, i: Int[Tensor, "*m"], j: Int[Tensor, "*n"], *, batch: int = 1, heads: int = 1) -> Tensor:
        """The mask between index tensors `i` [..., m] and `j` [..., n]: [..., m, n].

        In front stand one axis for the batch and one for the heads, of length 1 where nothing differs.
        """
        told = self.head_count
        require(told in (None, heads), f"PerHead has {told} patterns, but there are {heads} heads")
        device = i.device
        lead = (1,) * max(i.ndim, j.ndim)
        samples = torch.arange(batch if self.by_batch else 1, device=device).view(-1, 1, *lead, 1)
        which = torch.arange(heads if self.by_head else 1, device=device).view(1, -1, *lead, 1)
        mask = self.allows(i[..., :, None], j[..., None, :], batch=samples, head=which)
        shape = (len(samples), which.shape[1]) + (1,) * (len(lead) - 1) + (i.shape[-1], j.shape[-1])
        return torch.broadcast_tensors(mask, mask.new_empty(()).expand(shape))[0]

    def dense(
        self, queries: int, keys: int | None = None, *, offset: int = 0, batch: int = 1, heads: int = 1,
        device: torch.device | str | None = None,
    ) -> Bool[Tensor, "*lead m n"]:  # fmt: skip
        """The whole mask: [m, n], with a head axis in front where heads differ and a batch axis before it
        where samples differ. Queries stand at `offset`, `offset + 1`, …"""
        keys = queries if keys is None else keys
        i = torch.arange(offset, offset + queries, device=device)
        mask = self.block(i, torch.arange(keys, device=device), batch=batch, heads=heads)
        if self.by_batch:
            return mask
        return mask[0] if self.by_head else mask[0, 0]

    def __and__(self, other: Pattern) -> Pattern:
        return And.of(self, other)

    def __or__(self, other: Pattern) -> Pattern:
        return Or.of(self, other)

    def __invert__(self) -> Pattern:
        return self.pattern if isinstance(self, Not) else Not(self)


def widest(reaches: Sequence[Reach]) -> Reach:
    """The smallest reach that covers them all."""
    return Reach(
        max(reach.back for reach in reaches),
        max(reach.ahead for reach in reaches),
        max(reach.first for reach in reaches),
    )


def narrowest(reaches: Sequence[Reach]) -> Reach:
    """The band that lies in all of theirs."""
    return Reach(
        min((reach.back for reach in reaches), default=inf),
        min((reach.ahead for reach in reaches), default=inf),
    )


def latest(starts: Sequence[int | None]) -> int | None:
    """From where on all of them are stationary; None where one never is."""
    return None if None in starts else max(starts)


@dataclass(frozen=True)
class _Several(Pattern):
    patterns: tuple[Pattern, ...]

    @classmethod
    def of(cls, *patterns: Pattern) -> Pattern:
        flat = [
            inner
            for pattern in patterns
            for inner in (pattern.patterns if type(pattern) is cls else (pattern,))
        ]
        return cls(tuple(flat))

    @property
    def by_batch(self):
        return any(pattern.by_batch for pattern in self.patterns)

    @property
    def by_head(self):
        return any(pattern.by_head for pattern in self.patterns)

    @property
    def head_count(self):
        return next((pattern.head_count for pattern in self.patterns if pattern.head_count is not None), None)

    def stationary(self):
        return latest([pattern.stationary() for pattern in self.patterns])

    def on(self, *size):
        return type(self)(tuple(pattern.on(*size) for pattern in self.patterns))


class And(_Several):
    """What all of the patterns allow."""

    @property
    def causal(self):
        return any(pattern.causal for pattern in self.patterns)

    def allows(self, i, j, *, batch=None, head=None):
        result = self.patterns[0].allows(i, j, batch=batch, head=head)
        for pattern in self.patterns[1:]:
            result = result & pattern.allows(i, j, batch=batch, head=head)
        return result

    def reach(self):
        reaches = [pattern.reach() for pattern in self.patterns]
        # Keys that are seen for being among the first need not lie in the bands of those who say so: either
        # the others bound the band by themselves, or the first keys stay.
        banded = narrowest([reach for reach in reaches if reach.first == 0])
        if banded.bounded:
            return banded
        return narrowest(reaches)._replace(first=max(reach.first for reach in reaches))

    def candidates(self, i, keys):
        known = [found for p in self.patterns if (found := p.candidates(i, keys)) is not None]
        banded = super().candidates(i, keys)
        known += [] if banded is None else [banded]
        return min(known, key=lambda found: found.shape[1], default=None)


class Or(_Several):
    """What any of the patterns allows."""

    @property
    def causal(self):
        return all(pattern.causal for pattern in self.patterns)

    @property
    def union(self):
        return self.patterns

    def allows(self, i, j, *, batch=None, head=None):
        result = self.patterns[0].allows(i, j, batch=batch, head=head)
        for pattern in self.patterns[1:]:
            result = result | pattern.allows(i, j, batch=batch, head=head)
        return result

    def reach(self):
        return widest([pattern.reach() for pattern in self.patterns])

    def candidates(self, i, keys):
        if any(pattern.by_batch or pattern.by_head for pattern in self.patterns):
            return super().candidates(i, keys)
        gathered: list[Tensor] = []
        for which, pattern in enumerate(self.patterns):
            found = pattern.candidates(i, keys)
            if found is None:
                return None
            for earlier in self.patterns[:which]:  # each key once: the first pattern that allows it keeps it
                found = found.masked_fill(earlier.allows(i[:, None], found), -1)
            if which < len(self.patterns) - 1:
                found = found.masked_fill(~pattern.allows(i[:, None], found), -1)
            gathered.append(found)
        width = sum(found.shape[1] for found in gathered)
        return None if width >= keys else torch.cat(gathered, dim=1)


@dataclass(frozen=True)
class Not(Pattern):
    """What the pattern does not allow."""

    pattern: Pattern

    @property
    def by_batch(self):
        return self.pattern.by_batch

    @property
    def by_head(self):
        return self.pattern.by_head

    def allows(self, i, j, *, batch=None, head=None):
        return ~self.pattern.allows(i, j, batch=batch, head=head)

    @property
    def head_count(self):
        return self.pattern.head_count

    def stationary(self):
        return self.pattern.stationary()

    def on(self, *size):
        return Not(self.pattern.on(*size))
