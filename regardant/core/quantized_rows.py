"""Rows in few bits: groups of numbers on a grid between their least and their greatest.

    code = round((x - low) / step),  x' = low + step · code,      step = (high - low) / (2^bits - 1)

A group is a row by itself, or a channel along some consecutive rows. `QuantizedRows` holds the codes, several
in a byte where they are small, so that what is said to be saved is saved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from regardant.core.errors import require
from regardant.core.state import State

PACKED = (1, 2, 4, 8)


def coded(
    x: Float[Tensor, "*lead n d"], bits: int, group: int | None
) -> tuple[UInt8[Tensor, "*lead n d"], Float[Tensor, "*lead g e"], Float[Tensor, "*lead g e"]]:
    """Codes, steps and least values: of each channel in every `group` rows, or of each row (None)."""
    require(bits in PACKED, f"bits is {bits}, but a code takes 1, 2, 4 or 8")
    parts = x[..., None, :] if group is None else x.unflatten(-2, (-1, group))
    axis = -1 if group is None else -2
    low, high = parts.amin(axis, keepdim=True), parts.amax(axis, keepdim=True)
    step = (high - low) / (2**bits - 1)
    code = ((parts - low) / step.where(step > 0, 1)).round().clamp(0, 2**bits - 1).to(torch.uint8)
    return code.flatten(-3, -2), step.squeeze(-2), low.squeeze(-2)


def on_grid(x: Float[Tensor, "*lead n d"], bits: int, group: int | None) -> Float[Tensor, "*lead n d"]:
    """x with every group on its grid. Its gradient is x's, as if nothing were rounded."""
    with torch.no_grad():
        code, step, low = coded(x, bits, group)
        moved = _spread(low, x) + _spread(step, x) * code.to(x.dtype) - x
    return x + moved


def _spread(each: Tensor, rows: Tensor) -> Tensor:
    """A number a group for all rows of the group."""
    groups = each.shape[-2]
    return each if groups == rows.shape[-2] else each.repeat_interleave(rows.shape[-2] // groups, dim=-2)


@dataclass
class QuantizedRows(State):
    """`length` rows [*lead, n, d] in `bits` bits."""

    codes: UInt8[Tensor, "*lead n p"]
    step: Float[Tensor, "*lead g e"]
    low: Float[Tensor, "*lead g e"]
    bits: int
    width: int

    @classmethod
    def of(cls, x: Float[Tensor, "*lead n d"], bits: int, group: int | None) -> Self:
        code, step, low = coded(x, bits, group)
        return cls(x.shape[-2], _packed(code, bits), step, low, bits, x.shape[-1])

    def values(self) -> Float[Tensor, "*lead n d"]:
        codes = _unpacked(self.codes, self.bits, self.width).to(self.step.dtype)
        return _spread(self.low, codes) + _spread(self.step, codes) * codes

    def append(self, other: QuantizedRows) -> QuantizedRows:
        return self._made(
            *(torch.cat([mine, theirs], dim=-2) for mine, theirs in zip(self._parts, other._parts))
        )

    def part(self, first: int, last: int) -> QuantizedRows:
        """The rows from `first` to `last`, both at the edge of a group."""
        each = max(self.length // max(self.step.shape[-2], 1), 1)
        rows, groups = slice(first, last), slice(first // each, last // each)
        codes, step, low = self._parts
        return self._made(codes[..., rows, :], step[..., groups, :], low[..., groups, :])

    @property
    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.codes, self.step, self.low

    def _made(self, codes: Tensor, step: Tensor, low: Tensor) -> QuantizedRows:
        return QuantizedRows(codes.shape[-2], codes, step, low, self.bits, self.width)


def _packed(code: UInt8[Tensor, "*n d"], bits: int) -> UInt8[Tensor, "*n p"]:
    each = 8 // bits
    if each == 1:
        return code
    code = torch.nn.functional.pad(code, (0, -code.shape[-1] % each)).unflatten(-1, (-1, each))
    packed = torch.zeros_like(code[..., 0])
    for place in range(each):
        packed = packed | (code[..., place] << (bits * place))
    return packed


def _unpacked(packed: UInt8[Tensor, "*n p"], bits: int, width: int) -> UInt8[Tensor, "*n d"]:
    each = 8 // bits
    if each == 1:
        return packed
    parts = [(packed >> (bits * place)) & (2**bits - 1) for place in range(each)]
    return torch.stack(parts, dim=-1).flatten(-2)[..., :width]
