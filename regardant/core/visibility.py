"""What stands on a logit besides q·k: who may look at whom, which keys are real, and a bias.

A `Visibility` answers for any block of query rows and keys, so that no plan ever needs a whole mask.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regardant.core.pattern import And, Pattern, Reach, Window, both


class Bias(Protocol):
    """Adds to the logits, the same for all samples [h, m, n] or not [b, h, m, n].

    `stationary = True` says that it depends on `i - j` alone.
    """

    def block(
        self, i: Int[Tensor, "m"], j: Int[Tensor, "n"]
    ) -> Float[Tensor, "h m n"] | Float[Tensor, "b h m n"]: ...


@dataclass(frozen=True)
class Visibility:
    """The pattern (None: everything), the real keys [b, n] (None: all) and the bias (None: zero).

    Query row r stands at position `offset + r`. Blocks are asked for by rows [t, r] and keys [t, s] of
    `t` tiles; rows and keys outside the sequences neither see nor are seen.
    """

    pattern: Pattern | None
    real: Bool[Tensor, "b n"] | None
    bias: Bias | None
    batch: int
    heads: int
    queries: int
    keys: int
    offset: int = 0

    @property
    def reach(self) -> Reach:
        return Reach(inf, inf) if self.pattern is None else self.pattern.reach()

    @property
    def stationary(self) -> int | None:
        """From which key position on a block depends on `i - j` alone; None: nowhere, or unknown."""
        if self.real is not None or not (self.bias is None or getattr(self.bias, "stationary", False)):
            return None
        return 0 if self.pattern is None else self.pattern.stationary()

    def mask(self, rows: Int[Tensor, "t r"], keys: Int[Tensor, "t s"]) -> Bool[Tensor, "#b t #h r s"] | None:
        """True where a row sees a key; None where all see all."""
        mask = None
        if self.pattern is not None:
            mask = self.pattern.block(rows + self.offset, keys, batch=self.batch, heads=self.heads)
            mask = mask.transpose(1, 2)
        if self.real is not None:
            real = self.real.to(keys.device)[:, keys.clamp(0, self.keys - 1)][:, :, None, None, :]
            mask = real if mask is None else mask & real
        for positions, count, axes in (
            (rows, self.queries, (..., None)),
            (keys, self.keys, (..., None, slice(None))),
        ):
            inside = (positions >= 0) & (positions < count)
            if not bool(inside.all()):
                inside = inside[axes][None, :, None]
                mask = inside if mask is None else mask & inside
        if mask is None:
            return None
        return mask.expand(*mask.shape[:3], rows.shape[1], keys.shape[1])

    def biases(
        self, rows: Int[Tensor, "t r"], keys: Int[Tensor, "t s"]
    ) -> Float[Tensor, "#b t h r s"] | None:
        if self.bias is None:
            return None
        blocks = [self.bias.block(i + self.offset, j.clamp(0, self.keys - 1)) for i, j in zip(rows, keys)]
        stacked = torch.stack(blocks, dim=-4)
        return stacked if stacked.ndim == 5 else stacked[None]

    def addend(
        self, rows: Int[Tensor, "t r"], keys: Int[Tensor, "t s"], dtype: torch.dtype
    ) -> Float[Tensor, "#b t #h r s"] | None:
        """Mask and bias as one term to add to the logits: -inf where a row does not see a key."""
        mask, bias = self.mask(rows, keys), self.biases(rows, keys)
        if mask is None:
            return None if bias is None else bias.to(dtype)
        if bias is None:
            return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -inf)
        return bias.to(dtype).masked_fill(~mask, -inf)


def without_idle_windows(sees: Visibility) -> Visibility:
    """The same without windows that are at least as wide as the sequence is long."""
    span = max(sees.offset + sees.queries, sees.keys)
    parts = sees.pattern.patterns if isinstance(sees.pattern, And) else (sees.pattern,)
    rest = [part for part in parts if not (isinstance(part, Window) and part.width >= span)]
    return sees if len(rest) == len(parts) else replace(sees, pattern=both(*rest))
