"""What decoding remembers: explicit, passed in and handed back, never kept on a module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from regardant.core.errors import require


@dataclass
class State:
    """Base of every decoding state: `length` tokens seen so far, and tensors with the batch first.

    A step returns a new state and leaves the old one usable, so that a beam may fork.
    """

    length: int

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same state with `change` applied to every tensor in it, nested states included."""

        def through(value):
            if isinstance(value, Tensor):
                return change(value)
            if isinstance(value, State | Cache):
                return value.map(change)
            if isinstance(value, tuple):
                return tuple(through(item) for item in value)
            return value

        return replace(self, **{item.name: through(getattr(self, item.name)) for item in fields(self)})

    def detach(self) -> Self:
        return self.map(torch.Tensor.detach)

    def to(self, *args, **kwargs) -> Self:
        return self.map(lambda tensor: tensor.to(*args, **kwargs))

    def select(self, samples: Tensor) -> Self:
        """The states of the chosen samples, in that order (beam search)."""
        return self.map(lambda tensor: tensor.index_select(0, samples))

    @property
    def nbytes(self) -> int:
        """Bytes in the tensors of this state (of a cache: its rows, not the room behind them)."""
        total = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.numel() * tensor.element_size()
            return tensor

        self.map(count)
        return total


class Cache:
    """Rows appended one by one along the second-last axis, at amortised constant cost.

    With `keep`, only the last `keep` rows stay, in storage of twice that size. Two caches may share
    storage: an append writes in place only when nobody has written behind this cache's end, and copies
    otherwise, so a fork never sees its sibling's rows. With gradients on, rows are concatenated.

    With `upright`, each channel's rows lie side by side in memory: what a product of weights and rows reads
    fastest, where a product of a query and rows wants each row's channels side by side.
    """

    def __init__(
        self,
        storage: Tensor,
        *,
        end: int | None = None,
        keep: int | None = None,
        written: list[int] | None = None,
        upright: bool = False,
    ):
        self.storage, self.keep, self.upright = storage, keep, upright
        self.end = storage.shape[-2] if end is None else end
        self._written = [self.end] if written is None else written

    @property
    def rows(self) -> Tensor:
        held = self.end if self.keep is None else min(self.end, self.keep)
        return self.storage.narrow(-2, self.end - held, held)

    def append(self, row: Tensor) -> Cache:
        """A cache with `row` [..., r, d] behind the rows of this one."""
        require(
            row.shape[:-2] == self.storage.shape[:-2],
            f"the new row is {list(row.shape)}, but this state holds {list(self.rows.shape)}: another batch",
        )
        more = row.shape[-2]
        if torch.is_grad_enabled():  # an earlier step may have kept these rows for its way back
            return Cache(torch.cat([self.rows, row], dim=-2), keep=self.keep, upright=self.upright)
        storage, end, written = self.storage, self.end, self._written
        if end + more > storage.shape[-2] or written[0] != end:
            rows = self.rows
            end = rows.shape[-2]
            room = 2 * self.keep + more if self.keep is not None else max(16, 2 * (end + more))
            storage = self._room(room)
            storage.narrow(-2, 0, end).copy_(rows)
            written = [end]
        storage.narrow(-2, end, more).copy_(row)
        written[0] = end + more
        return Cache(storage, end=end + more, keep=self.keep, written=written, upright=self.upright)

    def map(self, change: Callable[[Tensor], Tensor]) -> Cache:
        return Cache(change(self.rows), keep=self.keep, upright=self.upright)

    def _room(self, rows: int) -> Tensor:
        *lead, _, channels = self.storage.shape
        if self.upright:
            return self.storage.new_empty(*lead, channels, rows).mT
        return self.storage.new_empty(*lead, rows, channels)
