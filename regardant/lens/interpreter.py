"""Runs a cascade, line by line; recurrences step by step. It is there to be right, not to be fast."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from regardant.core.errors import require
from regardant.lens.einsum import (
    BINARY,
    REDUCE,
    SYMBOLS,
    UNARY,
    Line,
    Ranks,
    indices_of,
    rank_of,
    reduced_by,
    uses_of,
)

Named = tuple[Tensor, Ranks]
"""A tensor and the ranks of its axes."""


def run(
    lines: Sequence[Line], tensors: Mapping[str, Tensor], scalars: Mapping[str, float]
) -> dict[str, Tensor]:
    """Every tensor of the cascade, the given ones too."""
    return _Run(lines, tensors, scalars).all()


class _Run:
    def __init__(self, lines: Sequence[Line], tensors: Mapping[str, Tensor], scalars: Mapping[str, float]):
        self.lines, self.scalars = lines, scalars
        self.values: dict[str, Tensor] = dict(tensors)
        self.sizes: dict[str, int] = {}
        self.at: dict[str, int] = {}
        """Where the recurrent ranks are."""
        made = {line.name for line in lines}
        for line in lines:
            for use in uses_of(line.value):
                name, indices = ast.unparse(use.value), indices_of(use)
                if name in made:
                    continue
                require(name in tensors, f"tensors has no {name!r}, which {line.text!r} uses")
                given = tensors[name]
                require(
                    given.ndim == len(indices),
                    f"{name} has {given.ndim} axes, but {line.text!r} gives it {len(indices)}",
                )
                for index, size in zip(indices, given.shape):
                    known = self.sizes.setdefault(rank_of(index), size)
                    require(known == size, f"{name} has {size} along {index}, but others have {known}")

    def all(self) -> dict[str, Tensor]:
        waiting = list(self.lines)
        while waiting:
            rank = self._advances(waiting)
            if rank is None:
                self._work_out(waiting.pop(0))
                continue
            group = []
            while waiting and self._advances(waiting) == rank:
                group.append(waiting.pop(0))
            for step in range(self.sizes[rank]):
                self.at[rank] = step
                for line in group:
                    self._work_out(line)
            del self.at[rank]
        return self.values

    def _advances(self, waiting: list[Line]) -> str | None:
        """The recurrent rank along which the next line is worked out step by step, if there is one.

        Neighbouring lines up to the last step of a recurrence advance together; what uses the
        recurrence's end, or reduces its rank, waits for the whole of it.
        """
        line = waiting[0]
        recurrent = {
            index.removesuffix("+1") for each in waiting for index in each.indices if index.endswith("+1")
        }
        ends = {index for use in uses_of(line.value) for index in indices_of(use) if index.isupper()}
        own = recurrent & set(map(rank_of, line.indices)) - {end.lower() for end in ends}
        return next(iter(own), None)

    def _work_out(self, line: Line) -> None:
        value, ranks = self._value(line.value)
        running = [index for index in line.indices if rank_of(index) and rank_of(index) not in self.at]
        for each in set(running) - set(ranks):  # a value that is the same along a rank of the output
            value, ranks = value.unsqueeze(0).expand(self.sizes[each], *value.shape), (each, *ranks)
        value = value.permute(tuple(ranks.index(index) for index in running))
        place = tuple(self._place(index) for index in line.indices)
        if all(part == slice(None) for part in place):
            self.values[line.name] = value
            return
        if line.name not in self.values:
            shape = tuple(self._room(line.name, axis, index) for axis, index in enumerate(line.indices))
            self.values[line.name] = value.new_zeros(shape)
        self.values[line.name] = self.values[line.name].clone()
        self.values[line.name][place] = value

    def _room(self, name: str, axis: int, index: str) -> int:
        """How long an axis is that is filled step by step: one longer than its rank where it has a start."""
        if rank_of(index) and rank_of(index) not in self.at:
            return self.sizes[rank_of(index)]
        others = [line.indices[axis] for line in self.lines if line.name == name]
        shifted = [each for each in others if "+" in each]
        rank = next(rank_of(each) for each in others if rank_of(each))
        return self.sizes[rank] + bool(shifted)

    def _place(self, index: str) -> slice | int:
        if index.isdigit():
            return int(index)
        if index.isupper():
            return self.sizes[index.lower()]
        rank = rank_of(index)
        return self.at[rank] + ("+" in index) if rank in self.at else slice(None)

    def _value(self, node: ast.expr) -> Named:
        if isinstance(node, ast.Constant):
            return torch.tensor(float(node.value), dtype=self._dtype), ()
        if isinstance(node, ast.UnaryOp):
            value, ranks = self._value(node.operand)
            return -value, ranks
        if isinstance(node, ast.Name):
            if node.id == "inf":
                return torch.tensor(torch.inf, dtype=self._dtype), ()
            require(node.id in self.scalars, f"no scalar {node.id!r} is given")
            return torch.tensor(self.scalars[node.id], dtype=self._dtype), ()
        if isinstance(node, ast.Subscript):
            indices = indices_of(node)
            place = tuple(self._place(index) for index in indices)
            kept = tuple(rank_of(index) for index, part in zip(indices, place) if isinstance(part, slice))
            # A recurrence that has ended is one longer than its rank: m is all but its end, m+1 all but its
            # start.
            place = tuple(
                slice(int("+" in index), self.sizes[rank_of(index)] + ("+" in index))
                if isinstance(part, slice)
                else part
                for index, part in zip(indices, place)
            )
            return self.values[ast.unparse(node.value)][place], kept
        if isinstance(node, ast.BinOp):
            return self._pair(SYMBOLS[type(node.op)], node.left, node.right)
        if reduced := reduced_by(node):
            return self._reduce(node, reduced)
        name = ast.unparse(node.func)
        if name in BINARY:
            return self._pair(name, *node.args)
        value, ranks = self._value(node.args[0])
        return UNARY[name](value), ranks

    def _pair(self, name: str, left: ast.expr, right: ast.expr) -> Named:
        (a, first), (b, second) = self._value(left), self._value(right)
        ranks = (*first, *(rank for rank in second if rank not in first))
        return BINARY[name](_aligned(a, first, ranks), _aligned(b, second, ranks)), ranks

    def _reduce(self, node: ast.Call, reduced: Ranks) -> Named:
        (inner,) = node.args
        name = ast.unparse(node.func.value)
        if name == "sum" and isinstance(inner, ast.BinOp) and isinstance(inner.op, ast.Mult):
            (a, first), (b, second) = self._value(inner.left), self._value(inner.right)
            letters = {rank: chr(ord("a") + at) for at, rank in enumerate(dict.fromkeys((*first, *second)))}
            left = tuple(rank for rank in letters if rank not in reduced)
            spelled = ["".join(letters[rank] for rank in ranks) for ranks in (first, second, left)]
            return torch.einsum(f"{spelled[0]},{spelled[1]}->{spelled[2]}", a, b), left
        value, ranks = self._value(inner)
        axes = tuple(ranks.index(rank) for rank in reduced)
        return REDUCE[name][0](value, dim=axes), tuple(rank for rank in ranks if rank not in reduced)

    @property
    def _dtype(self) -> torch.dtype:
        return next(iter(self.values.values())).dtype


def _aligned(value: Tensor, ranks: Ranks, to: Ranks) -> Tensor:
    """The tensor with its axes in the order of `to`, of length 1 where it has none."""
    order = [rank for rank in to if rank in ranks]
    value = value.permute(tuple(ranks.index(rank) for rank in order))
    return value[tuple(slice(None) if rank in ranks else None for rank in to)]
