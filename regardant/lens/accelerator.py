"""How long a cascade takes on a spatial accelerator: a square array, a vector beside it, a buffer, a memory.

All work at once, so the busiest decides. FLAT's mapping has the matrix products on the array and the softmax
on the vector, whose exponential takes the difference in; it keeps a block of whole rows of logits on
chip as far as they fit. FuseMax's runs everything that has a logit's rank on the array, exponentials as six
multiply-adds. A model to compare with, not a simulation: no energy, which would need calibrating, no stalls.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from math import ceil

from regardant.core.errors import require, unknown
from regardant.lens.attention_cascades import attention_cascade
from regardant.lens.cascade import Cascade
from regardant.lens.einsum import Line, reduced_by

MAPPINGS = {"flat": "3-pass", "fusemax": "1-pass"}


@dataclass(frozen=True)
class Cycles:
    """Cycles of each part, and the bytes that go to and from memory."""

    array: float
    vector: float
    memory: float
    traffic: int

    @property
    def total(self) -> float:
        return max(self.array, self.vector, self.memory)

    @property
    def utilisation(self) -> float:
        """The share of the time in which the array works."""
        return self.array / self.total


@dataclass(frozen=True)
class Accelerator:
    """`side` × `side` multiply-adders, `side` lanes beside them; sizes in bytes."""

    side: int = 256
    buffer: int = 16 * 2**20
    bytes_per_cycle: float = 457.0
    """400 GiB/s at 940 MHz."""
    width: int = 2

    def cost(self, mapping: str, length: int, *, head_dim: int = 64, heads: int = 1) -> Cycles:
        """Self-attention of `length` queries over as many keys, for `heads` heads one after the other."""
        if mapping not in MAPPINGS:
            raise unknown("mapping", mapping, MAPPINGS)
        require(
            length >= self.side and length % self.side == 0,
            f"length is {length}, but it comes in tiles of {self.side} here",
        )
        cascade = attention_cascade(MAPPINGS[mapping])
        tiles = length // self.side
        sizes = dict(e=head_dim, f=head_dim, p=length, m=length, m1=tiles, m0=self.side)
        fused = mapping == "fusemax"
        array = vector = 0
        for line in cascade.lines:
            on_array = line.ranks >= {"m1", "m0", "p"} if fused else _is_product(line)
            work = _work(line, sizes, **(dict(exp=6) if fused else dict(subtract=0)))
            array, vector = (array + work, vector) if on_array else (array, vector + work)
        traffic = (self._fused if fused else self._flat)(length, head_dim)
        return Cycles(
            array=heads * array / self.side**2,
            vector=heads * vector / self.side,
            memory=heads * traffic / self.bytes_per_cycle,
            traffic=heads * traffic,
        )

    def queries_at_once(self, length: int, head_dim: int) -> int:
        """How many queries, with their running sums, stay on chip while all keys go by (FuseMax)."""
        tiles = self.side * 4 * head_dim * self.width  # keys and values, two of each in turn
        room = (self.buffer - tiles) // ((2 * head_dim + 2) * self.width * self.side)
        blocks = length // self.side
        fitting = [count for count in range(1, blocks + 1) if blocks % count == 0 and count <= room]
        require(bool(fitting), f"buffer is {self.buffer} bytes, too few for {self.side} queries")
        return max(fitting) * self.side

    def _fused(self, length: int, head_dim: int) -> int:
        """Queries and outputs once, keys and values once for every block of queries."""
        rounds = ceil(length / self.queries_at_once(length, head_dim))
        return (2 + 2 * rounds) * length * head_dim * self.width

    def _flat(self, length: int, head_dim: int) -> int:
        """Keys and values once for every block of rows; what does not fit is written, and read every pass."""
        rows = self.side * length * self.width
        spilled = max(0.0, 1 - self.buffer / rows)
        blocks = length // self.side
        passes = attention_cascade("3-pass").passes("m")
        moved = (2 + 2 * blocks) * length * head_dim * self.width
        return moved + int(spilled * blocks * rows * (1 + passes))


def _is_product(line: Line) -> bool:
    """Whether a line sums products of tensors: a matrix product."""
    inner = line.value.args[0] if reduced_by(line.value) else None
    return isinstance(inner, ast.BinOp) and isinstance(inner.op, ast.Mult)


def _work(line: Line, sizes: dict[str, int], **price: int) -> int:
    """Operations at their price, 1 where none is given; in a matrix product an addition comes with its
    multiplication."""
    count = Cascade((line,)).operations(sizes)
    if _is_product(line):
        return count["multiply"]
    return sum(number * price.get(name, 1) for name, number in count.items())
