"""Logits by relative position, q_i·E[j - i]: a term for `regardant.core.plan` that depends on the query.

Written out, E[j - i] is a tensor [m, n, d]. Skewing (Huang et al., "Music Transformer", 2018) needs the
products with each row of E only, which number m + n - 1 over a block of m × n pairs:

    X[a, t] = q_a · E[t]                        one matrix product
    S[a, b] = X[a, b - a + m - 1]               the same numbers, read with a row that is one shorter

The second line moves nothing: in memory, row a of S begins one element earlier than the last one ended.
"""

from __future__ import annotations

from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor


def skewed(products: Float[Tensor, "*lead m t"], columns: int) -> Float[Tensor, "*lead m n"]:
    """S[a, b] = products[a, b - a + m - 1] for b < `columns`, where t = m + columns - 1: a view."""
    rows, width = products.shape[-2:]
    if rows == 1:
        return products
    return products.flatten(-2)[..., rows - 1 : -1].unflatten(-1, (rows, width - 1))[..., :columns]


class RelativeLogits:
    """What q_i·E[j - i] adds to the logits of queries that stand at `offset` and after it.

    Row r of the table is for j - i = r - `origin`; what lies farther out takes the outermost row. A table
    of several rows that ends with row `origin` is for queries that look back only: what stands ahead of one
    means nothing. What is added is scaled, as the logits are.
    """

    stationary = False

    def __init__(
        self, q: Float[Tensor, "b h m d"], table: Float[Tensor, "#h p d"], *, origin: int, offset: int = 0,
        scale: float = 1.0,
    ):  # fmt: skip
        self.asked, self.scale = q, scale
        self.table, self.origin, self.offset = table, origin, offset

    @cached_property
    def q(self) -> Float[Tensor, "b h m d"]:
        """The queries, scaled."""
        return self.asked if self.scale == 1 else self.asked * self.scale

    def serves(self, q: Float[Tensor, "b h m d"], k: Float[Tensor, "b g n d"]) -> bool:
        """Whether these queries and keys are one sequence, and the table is for queries that look back."""
        alike = q.shape == self.asked.shape and q.shape[:3] == k.shape[:3] and 0 not in q.shape
        return alike and not self.offset and self.origin == self.table.shape[-2] - 1

    def block(self, i: Int[Tensor, "m"], j: Int[Tensor, "n"]) -> Float[Tensor, "b h m n"]:
        table, at = self.table, i - self.offset
        if table.device.type == "cpu":  # few CPUs multiply halves fast, and none sums them well
            table = table.to(torch.promote_types(table.dtype, torch.float32))
        last = table.shape[-2] - 1
        if not (_consecutive(i) and _consecutive(j)):
            q = self.q[:, :, at.clamp(0, self.q.shape[2] - 1)].to(table.dtype)
            row = (j - i[:, None] + self.origin).clamp(0, last)
            return (q @ table.mT).gather(-1, row.expand(*q.shape[:2], -1, -1))
        rows, columns = len(i), len(j)
        # The table's row at the lower left corner of the block, which goes up by one a column and a row.
        low, width = int(j[0] - i[0]) - (rows - 1) + self.origin, rows + columns - 1
        begin, end = (min(max(row, 0), last) for row in (low, low + width - 1))
        rest = width - (end + 1 - begin)
        before = min(max(-low, 0), width - 1)
        q = self.q.narrow(2, int(at[0]), rows).to(table.dtype)
        if 0 < last == self.origin and rows > 1 and rest - before == rows - 1:
            # A block up to the diagonal: with one column more on the left, rows can be read as long as
            # they are, and run on into the next one where nothing is meant.
            table = torch.cat([table[:, begin : begin + 1], table[:, begin:]], dim=1)
            products = _widened(q @ table.mT, before, 0)
            return products.flatten(-2)[..., rows:].unflatten(-1, (rows, columns))
        return skewed(_widened(q @ table[:, begin : end + 1].mT, before, rest - before), columns)


def _widened(products: Float[Tensor, "b h m t"], before: int, after: int) -> Float[Tensor, "b h m w"]:
    """Beyond the table, every distance has the same product."""
    if not (before or after):
        return products
    lead, left, right = products.shape[:3], products[..., :1], products[..., -1:]
    return torch.cat([left.expand(*lead, before), products, right.expand(*lead, after)], dim=-1)


def _consecutive(positions: Int[Tensor, "n"]) -> bool:
    return len(positions) == 1 or bool((positions.diff() == 1).all())
