"""Extended Einsums: one line of a cascade, read from text.

    GM[p] = max[m](QK[m,p])         reductions: sum, max
    SN[m,p] = exp(QK[m,p] - GM[p])  arithmetic, max and min of two, exp, softplus, sigmoid, relu
    RM[m1+1,p] = max(RM[m1,p], LM[m1,p])

An index is a rank in small letters; `m1+1` is the next place of a recurrence, `0` its start and `M1` its
end. A bare name is a number that is given when the cascade is run.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor
from torch.nn import functional as F

from regardant.core.errors import require

Ranks = tuple[str, ...]


def _difference(a: Tensor, b: Tensor) -> Tensor:
    """a − b, where −∞ minus anything is −∞: the first tile's correction exp(RM − RM') is then 0."""
    return torch.where(a == -inf, a, a - b)


SYMBOLS = {ast.Add: "add", ast.Sub: "subtract", ast.Mult: "multiply", ast.Div: "divide", ast.Pow: "power"}
BINARY: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "subtract": _difference,
    "multiply": torch.mul,
    "divide": torch.div,
    "power": torch.pow,
    "max": torch.maximum,
    "min": torch.minimum,
}
UNARY: Mapping[str, Callable[[Tensor], Tensor]] = {
    "exp": torch.exp,
    "softplus": F.softplus,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
}
REDUCE = {"sum": (torch.sum, "add"), "max": (torch.amax, "max")}


@dataclass(frozen=True)
class Line:
    """One Einsum: an output's name and indices, and the expression that gives it."""

    text: str
    name: str
    indices: Ranks
    value: ast.expr

    @property
    def ranks(self) -> frozenset[str]:
        """The ranks that the line runs over, its own and those it reduces."""
        inner = (rank_of(index) for use in uses_of(self.value) for index in indices_of(use))
        return frozenset(rank for rank in (*map(rank_of, self.indices), *inner) if rank)


def read_line(text: str) -> Line:
    try:
        (statement,) = ast.parse(text).body
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{text!r} is no Einsum: write it as `GM[p] = max[m](QK[m,p])`") from error
    require(
        isinstance(statement, ast.Assign)
        and len(statement.targets) == 1
        and isinstance(statement.targets[0], ast.Subscript),
        f"{text!r} is no Einsum: write it as `GM[p] = max[m](QK[m,p])`",
    )
    target = statement.targets[0]
    line = Line(text, ast.unparse(target.value), indices_of(target), statement.value)
    for node in ast.walk(statement.value):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func.value if isinstance(node.func, ast.Subscript) else node.func)
            known = REDUCE if isinstance(node.func, ast.Subscript) else UNARY | BINARY
            require(name in known, f"{text!r} calls {name}, but a cascade knows {', '.join(known)}")
    free = {rank_of(index) for use in uses_of(line.value) for index in indices_of(use)}
    reduced = {rank for node in ast.walk(line.value) for rank in reduced_by(node)}
    own = {rank_of(index) for index in line.indices}
    lost = free - reduced - own - {""}
    require(not lost, f"{text!r} loses {', '.join(sorted(lost))}: reduce it or put it on the left")
    return line


def indices_of(node: ast.Subscript) -> Ranks:
    parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    return tuple(ast.unparse(part).replace(" ", "") for part in parts)


def rank_of(index: str) -> str:
    """The rank that an index runs over; none where it is fixed (0, or M1: where m1 ends)."""
    name = index.removesuffix("+1")
    return "" if name.isdigit() or name.isupper() else name


def reduced_by(node: ast.AST) -> Ranks:
    """The ranks that a node reduces: m of max[m](…)."""
    reduces = isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript)
    return indices_of(node.func) if reduces else ()


def parts_of(node: ast.expr) -> list[ast.expr]:
    """The terms right below a node."""
    if isinstance(node, ast.BinOp):
        return [node.left, node.right]
    if isinstance(node, ast.UnaryOp):
        return [node.operand]
    return list(node.args) if isinstance(node, ast.Call) else []


def terms(node: ast.expr) -> Iterator[ast.expr]:
    """A term and all terms in it, those of indices left out."""
    yield node
    for part in parts_of(node):
        yield from terms(part)


def uses_of(node: ast.expr) -> Iterator[ast.Subscript]:
    """The tensors that an expression uses (and not the ranks of its reductions)."""
    if isinstance(node, ast.Subscript):
        yield node
    for part in parts_of(node):
        yield from uses_of(part)
