"""Receptive fields of networks: which positions of the input each output hears of, part after part.

`field_of(part, height, width)` asks a part, or finds out from what it is. The contract suite probes what a
backbone says with gradients, in both directions: nothing outside is seen, and everything inside is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from regardant.core.grid_mixer import GridMixer
from regardant.core.pattern import Pattern

Size = tuple[int, int]

POINTWISE = (
    nn.Linear, nn.LayerNorm, nn.BatchNorm2d, nn.GELU, nn.ReLU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Hardswish,
    nn.Dropout, nn.Identity,
)  # fmt: skip
"""Layers that leave every position to itself."""


@dataclass(frozen=True)
class Field:
    """`relation[o, i]`: position o of the output, row by row, hears of position i of the input."""

    before: Size
    after: Size
    relation: Bool[Tensor, "o i"]

    @classmethod
    def itself(cls, size: Size) -> Field:
        return cls(size, size, torch.eye(prod(size), dtype=torch.bool))

    @classmethod
    def everything(cls, before: Size, after: Size | None = None) -> Field:
        after = before if after is None else after
        return cls(before, after, torch.ones(prod(after), prod(before), dtype=torch.bool))

    @classmethod
    def window(cls, before: Size, kernel: int, stride: int = 1, margin: Size | int | None = None) -> Field:
        """Of a convolution that has `margin` zeros before the map, half the kernel unless given."""
        margin = kernel // 2 if margin is None else margin
        margin = (margin, margin) if isinstance(margin, int) else margin
        axes = []
        for length, zeros in zip(before, margin):
            first = torch.arange(-(-length // stride))[:, None] * stride - zeros
            place = torch.arange(length)[None, :]
            axes.append((place >= first) & (place < first + kernel))
        rows, columns = axes
        relation = rows[:, None, :, None] & columns[None, :, None, :]
        return cls(before, (len(rows), len(columns)), relation.flatten(2).flatten(0, 1))

    @classmethod
    def of_pattern(cls, pattern: Pattern | None, size: Size, heads: int = 1) -> Field:
        """Of a mixer that sees what the pattern allows, and itself."""
        if pattern is None:
            return cls.everything(size)
        count = prod(size)
        seen = pattern.dense(count, heads=heads).reshape(-1, count, count).any(0)
        return cls(size, size, seen | torch.eye(count, dtype=torch.bool))

    def then(self, later: Field) -> Field:
        """One part behind the other."""
        if bool(self.relation.all()) and bool(later.relation.any(1).all()):
            return Field.everything(self.before, later.after)
        relation = later.relation.float() @ self.relation.float() > 0
        return Field(self.before, later.after, relation)

    def beside(self, other: Field) -> Field:
        """Two parts whose outputs are added up, or multiplied."""
        return Field(self.before, self.after, self.relation | other.relation)


def field_of(part: nn.Module, height: int, width: int) -> Field:
    """The field of a part on a map of this size: what it says itself, or what is known of its kind.

    A part with a mixer's `receptive_field` has that; layers in `POINTWISE` see nothing but themselves; a
    sequence is its parts in turn. Of anything else it is said that it sees everything.
    """
    size = (height, width)
    if hasattr(part, "field"):
        return part.field(height, width)
    if isinstance(part, GridMixer):
        return Field.of_pattern(part.receptive_field(height, width), size, getattr(part, "heads", 1))
    if isinstance(part, POINTWISE):
        return Field.itself(size)
    if isinstance(part, nn.Sequential):
        return in_turn(part, height, width)
    return Field.everything(size)


def in_turn(parts: Iterable[nn.Module], height: int, width: int) -> Field:
    """The field of parts one behind the other."""
    found = Field.itself((height, width))
    for part in parts:
        found = found.then(field_of(part, *found.after))
    return found
